"""Nodes of a state that say what they are: stacked, or turning with a basis."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Stacks(dict):
  """{bucket name: [S, I, O], or what a bucket keeps}: a dict, known by type.

  `optim.state_specs` finds stacked arrays by this type, and not by the names of
  fields.
  """


class Momentum(Stacks):
  """Stacks that are sums of gradients; they turn when their basis turns."""


class Squares(Stacks):
  """Stacks that are averages of squares: as diagonals, they turn as well."""


def _flatten(stacks):
  names = tuple(sorted(stacks))
  return [stacks[name] for name in names], names


def _flatten_with_keys(stacks):
  names = tuple(sorted(stacks))
  keys = map(jax.tree_util.DictKey, names)
  return [(key, stacks[key.key]) for key in keys], names


for _kind in (Stacks, Momentum, Squares):
  jax.tree_util.register_pytree_with_keys(
    _kind,
    _flatten_with_keys,
    lambda names, arrays, kind=_kind: kind(zip(names, arrays, strict=True)),
    _flatten,
  )


class Split(NamedTuple):
  """A tree in two parts: the matrices by bucket, and everything else."""

  stacks: Any  # `Stacks`.
  rest: Any  # Like the tree, `optax.MaskedNode()` where a matrix was.

  def map(self, function: Callable[[str, Any], Any]) -> "Split":
    """The split with function(bucket name, stack) for each stack."""
    stacks = {name: function(name, x) for name, x in self.stacks.items()}
    return self._replace(stacks=Stacks(stacks))


def marked(tree: Any, kind: type[Stacks]) -> Any:
  """Makes all stacks of a tree nodes of a kind, `Momentum` or `Squares`.

  With `Stacks` as the kind it undoes that, for arithmetic with other stacks.
  """
  return jax.tree.map(
    lambda x: kind(x) if isinstance(x, Stacks) else x,
    tree,
    is_leaf=lambda x: isinstance(x, Stacks),
  )
