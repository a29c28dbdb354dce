"""Labels for the leaves of a parameter tree, by the components of their paths.

Whole components are compared: layer "1" is not layer "10", and a rule for
"layer_1" does not match "layer_10".
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

Pattern = str | Sequence[str | int]


def path_groups(
  params: Any, rules: Mapping[str, Pattern | Sequence[Pattern]]
) -> Any:
  """Gives each leaf the label of the one rule that its path begins with.

      path_groups(params, {
        "embed": "embed",
        "block {}": "blocks/*",                   # A group a layer.
        "end": ["final_norm", "head/kernel"],
      })

  A pattern is a tuple of components, or a string of components with slashes
  between them. A pattern matches the paths that begin with the pattern. "*"
  matches any one component. The matched component replaces {} in the label.

  Args:
    params: Any tree of dicts, lists, tuples and named tuples.
    rules: Label -> pattern, or list of patterns.

  Returns:
    A tree of labels like params.

  Raises:
    ValueError: If a leaf gets no label or several labels, or if a rule covers
      no leaf. The message names these leaves and rules.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
  labels, uncovered, doubled, used = [], [], [], set()
  for path, _ in leaves:
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    found = {}
    for label, patterns in rules.items():
      for pattern in _patterns(patterns):
        stars = _match(pattern, names)
        if stars is not None:
          used.add(label)
          found[label.format(*stars)] = label
    shown = "/".join(names)
    if not found:
      uncovered.append(shown)
    elif len(found) > 1:
      doubled.append(f"{shown} by {' and '.join(map(repr, sorted(found)))}")
    labels.append(next(iter(found), None))
  idle = [label for label in rules if label not in used]
  problems = [
    f"{what}: {', '.join(which)}"
    for what, which in (
      ("leaves that no rule covers", uncovered),
      ("leaves that several labels claim", doubled),
      ("rules that cover no leaf", idle if leaves else []),
    )
    if which
  ]
  if problems:
    raise ValueError(
      f"rules={dict(rules)!r} do not partition the leaves; "
      f"{'; '.join(problems)}. Each leaf needs exactly one label; "
      "e.g. 'block {}': 'blocks/*' is a label for each of the layers."
    )
  return jax.tree.unflatten(treedef, labels)


def _patterns(patterns):
  """A list of tuples of components."""
  if isinstance(patterns, str) or (
    isinstance(patterns, tuple) and not any("/" in str(p) for p in patterns)
  ):
    patterns = [patterns]
  return [
    tuple(p.split("/")) if isinstance(p, str) else tuple(map(str, p))
    for p in patterns
  ]


def _match(pattern, names):
  """What the stars matched, or None."""
  if len(pattern) > len(names):
    return None
  stars = []
  for want, have in zip(pattern, names, strict=False):
    if want == "*":
      stars.append(have)
    elif want != have:
      return None
  return stars
