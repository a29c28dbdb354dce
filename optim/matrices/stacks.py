"""Nodes of a state that say what they are: stacked, or turning with a basis."""

from typing import Any, NamedTuple

import jax


class Stacks(dict):
  """{bucket name: [S, I, O], or what a bucket keeps}: a dict, known by type.

  Whoever asks where an array of a state lies on a mesh finds what is stacked by
  this type, and not by the names of fields.
  """


class Momentum(Stacks):
  """Stacks that are sums of gradients: they turn when their basis does."""


def _flatten(stacks):
  names = tuple(sorted(stacks))
  return [stacks[name] for name in names], names


def _flatten_with_keys(stacks):
  names = tuple(sorted(stacks))
  keys = map(jax.tree_util.DictKey, names)
  return [(key, stacks[key.key]) for key in keys], names


for _kind in (Stacks, Momentum):
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


def turning(tree: Any) -> Any:
  """Marks all stacks of a tree as `Momentum`, for which see there."""
  return _retyped(tree, Stacks, Momentum)


def still(tree: Any) -> Any:
  """Undoes `turning`, for arithmetic with other stacks."""
  return _retyped(tree, Momentum, Stacks)


def _retyped(tree, old, new):
  is_old = lambda x: isinstance(x, old)  # noqa: E731
  return jax.tree.map(
    lambda x: new(x) if is_old(x) else x, tree, is_leaf=is_old
  )
