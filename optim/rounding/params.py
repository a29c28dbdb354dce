"""Quantisation of trees: which leaves, with which quantizer and key."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..common.tree import is_function
from . import grids
from .blocks import to_blocks, to_codes, uncut
from .round import step_size, straight_through
from .scales import UNBIASED, Quantizer

# A Quantizer for every leaf; or a tree of `Quantizer | None` (None: the leaf
# is not rounded), or a function of params that makes such a tree.
QuantizerTree = Any | Callable[[Any], Any]


class Leaf(NamedTuple):
  """One leaf of a tree, with its quantizer."""

  path: str
  value: Any  # An array or a `jax.ShapeDtypeStruct`.
  quantizer: Quantizer | None


def find_leaves(
  params: Any,
  quantizer: QuantizerTree,
  mask: Any | None = None,
  *,
  unbiased: bool = False,
) -> list[Leaf]:
  """Lists the leaves of a tree in order, with their quantizers.

  Args:
    params: Any tree of floating arrays, or of `jax.ShapeDtypeStruct`s.
    quantizer: See `QuantizerTree`. A tree is looked up by path, so the tree may
      be larger than params (`optax.masked`) or may stop above the leaves.
    mask: Tree of bools, or a function of params that makes such a tree: True
      quantises the leaf. None: every leaf with a quantizer is quantised.
    unbiased: True refuses scale rules for which rounding at random is biased.

  Returns:
    A `Leaf` for each leaf.

  Raises:
    ValueError: For a leaf without an entry, for a leaf that is not floating,
      for blocks that do not divide the axis, or for a biased rule.
  """
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  quantizers = _by_path(params, quantizer, "quantizer")
  chosen = _by_path(params, True if mask is None else mask, "mask")
  leaves = []
  for key_path, value in flat:
    path = jax.tree_util.keystr(key_path)
    found = _look_up(quantizers, key_path, "quantizer")
    if not _look_up(chosen, key_path, "mask"):
      found = None
    if found is not None:
      _check(path, value, found, unbiased)
    leaves.append(Leaf(path, value, found))
  return leaves


def check_quantizers(quantizer: QuantizerTree, mask: Any | None = None) -> None:
  """Checks quantizers for rounding at random, before params are known.

  Args:
    quantizer: See `QuantizerTree`. A function is checked at `init` only.
    mask: As for `find_leaves`. With a mask, only `init` knows which quantizers
      of a tree are used.

  Raises:
    ValueError: For an entry of a wrong type, or for a biased rule.
  """
  if mask is not None and not is_function(mask):
    _by_path(None, mask, "mask")
  if is_function(quantizer):
    return
  for path, entry in _by_path(None, quantizer, "quantizer").items():
    if entry is not None and (mask is None or not path):
      _check_unbiased(entry, f"quantizer{jax.tree_util.keystr(path)}")


def quantize_params(
  params: Any,
  quantizer: QuantizerTree,
  *,
  mask: Any | None = None,
  key: jax.Array | None = None,
  scale_gradient: bool = False,
) -> Any:
  """Rounds the chosen leaves; gradients pass straight through.

  Use it for evaluation after training (PTQ). Use it inside the loss to train
  with rounded weights: to nearest (QAT), or at random with a fresh key each
  step (RAT). Every leaf draws with its own key, which is folded from the leaf's
  path. Replicas with the same key round alike.

  Args:
    params: Any tree of floating arrays.
    quantizer: A `Quantizer` for every leaf, a tree of `Quantizer | None` like
      params or a prefix of it, or a function of params that makes such a tree.
      None: the leaf is not rounded.
    mask: Tree of bools, or a function of params that makes such a tree: True
      quantises the leaf. None: every leaf with a quantizer is quantised.
    key: Random key; the leaves are rounded at random. None rounds to nearest.
    scale_gradient: True also differentiates the scales, as in
      `straight_through`.

  Returns:
    A tree like params, with the types of params.

  Raises:
    ValueError: For a leaf without an entry, for a leaf that is not floating,
      for blocks that do not divide the axis, or for a key with a biased rule.
  """

  def rounded(leaf: Leaf):
    if leaf.quantizer is None:
      return leaf.value
    own = None if key is None else leaf_key(key, leaf.path)
    return straight_through(
      leaf.value, leaf.quantizer, key=own, scale_gradient=scale_gradient
    ).astype(leaf.value.dtype)

  leaves = find_leaves(params, quantizer, mask, unbiased=key is not None)
  return jax.tree.unflatten(jax.tree.structure(params), map(rounded, leaves))


def leaf_key(key: jax.Array, path: str) -> jax.Array:
  """Folds `key` with a hash of the path, the same in every process."""
  return jax.random.fold_in(key, zlib.crc32(path.encode()))


def mean_step_size(
  params: Any, quantizer: QuantizerTree, *, mask: Any | None = None
) -> jax.Array:
  """The mean of the scale s over all quantised entries.

  Args:
    params: Any tree of floating arrays.
    quantizer: As for `quantize_params`.
    mask: As for `quantize_params`.

  Returns:
    float32 [].
  """

  def spread(x, q):
    return jnp.broadcast_to(step_size(x, q), x.shape)

  return _mean(spread, params, quantizer, mask)


def on_grid_share(
  params: Any,
  quantizer: QuantizerTree,
  *,
  mask: Any | None = None,
  tolerance: float = 0.05,
) -> jax.Array:
  """The share of quantised entries that are close to a grid point.

  The share is 2 `tolerance` for uniformly spread weights, and 1 for weights on
  the grid.

  Args:
    params: Any tree of floating arrays.
    quantizer: As for `quantize_params`.
    mask: As for `quantize_params`.
    tolerance: Largest distance that counts as close, in units of the gap
      between two grid points.

  Returns:
    float32 [].
  """

  def close(x, q):
    k, _ = grids.locate(to_codes(to_blocks(x, q), q.grid), q.grid)
    return uncut(jnp.abs(k - jnp.round(k)) < tolerance, x, q)

  return _mean(close, params, quantizer, mask)


def _mean(fn, params, quantizer, mask) -> jax.Array:
  """The mean of fn(x, quantizer) over the entries of all chosen leaves."""
  leaves = [
    leaf
    for leaf in find_leaves(params, quantizer, mask)
    if leaf.quantizer is not None
  ]
  size = sum(leaf.value.size for leaf in leaves)
  total = jnp.zeros((), jnp.float32)
  for leaf in leaves:
    values = fn(leaf.value, leaf.quantizer)
    total = total + jnp.sum(values, dtype=jnp.float32)
  return total / max(size, 1)


def _by_path(params, tree, name: str) -> dict[tuple, Any]:
  """{path: entry} of a tree, or of the tree that a function makes."""
  if is_function(tree):
    tree = tree(params)
  flat, _ = jax.tree_util.tree_flatten_with_path(
    tree, is_leaf=lambda x: x is None
  )
  if name == "quantizer":
    rule = (
      "an optim.Quantizer, e.g. optim.Quantizer(optim.INT4), or None to leave "
      "the leaf alone"
    )
    fits = lambda x: x is None or isinstance(x, Quantizer)  # noqa: E731
  else:
    rule = "True or False"
    fits = lambda x: isinstance(x, (bool, np.bool_))  # noqa: E731
  for key_path, entry in flat:
    if not fits(entry):
      raise ValueError(
        f"{name}{jax.tree_util.keystr(key_path)}={entry!r} must be {rule}."
      )
  return dict(flat)


def _look_up(entries: dict[tuple, Any], key_path: tuple, name: str):
  """The entry of a leaf, or of a subtree that contains the leaf."""
  for stop in range(len(key_path), -1, -1):
    if key_path[:stop] in entries:
      return entries[key_path[:stop]]
  known = [jax.tree_util.keystr(path) for path in entries]
  raise ValueError(
    f"{name} has no entry for leaf {jax.tree_util.keystr(key_path)}; give "
    f"each leaf one. Entries: {known[:8]}."
  )


def _check_unbiased(quantizer: Quantizer, whose: str) -> None:
  if quantizer.scale not in UNBIASED:
    raise ValueError(
      f"scale={quantizer.scale!r} of {whose} saturates its largest elements, "
      "so rounding at random is biased; take scale='pow2_ceil' or 'absmax'."
    )


def _check(path: str, leaf, quantizer: Quantizer, unbiased: bool) -> None:
  """Raises for a leaf that a quantizer does not fit."""
  if not hasattr(leaf, "shape"):
    raise ValueError(
      f"Leaf {path}={leaf!r} must be an array, e.g. jnp.asarray({leaf!r})."
    )
  shape = tuple(leaf.shape)
  if not jnp.issubdtype(leaf.dtype, jnp.floating):
    raise ValueError(
      f"Leaf {path} of shape {shape} has type {leaf.dtype}; only real "
      "floating leaves are quantised. Give it None or mask it out."
    )
  if unbiased:
    _check_unbiased(quantizer, f"leaf {path}")
  batch, size = quantizer.batch_axes, quantizer.block_size
  if batch > len(shape):
    raise ValueError(
      f"batch_axes={batch} but leaf {path} has shape {shape}. Give it a "
      "Quantizer of its own, None, or mask it out."
    )
  for axis in quantizer.axes:
    if not -len(shape) <= axis < len(shape) or axis % len(shape) < batch:
      raise ValueError(
        f"axis={axis} but leaf {path} has shape {shape} (batch_axes={batch}). "
        "Give it a Quantizer of its own, None, or mask it out."
      )
    if size is not None and shape[axis] % size:
      divisors = [n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0]
      near = sorted(divisors, key=lambda n: abs(n - size))[:2]
      raise ValueError(
        f"block_size={size} does not divide axis {axis} of leaf {path}, which "
        f"has shape {shape}. Divisors near it: {sorted(near)}; or "
        "block_size=None for one block a line."
      )
