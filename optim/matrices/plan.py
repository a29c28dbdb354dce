"""Leaves as stacks of equal matrices: one batched product instead of many.

Every matrix method of this package (SOAP, Shampoo, Muon) sees its leaves
through a `Plan`. All matrices of one shape, scan-stacked layers included, are
put into one array [S, I, O], and the state lives in that layout. For a leaf of
more than two axes, `DimensionNumbers` say which axes are stack, input and
output axes; nothing is guessed.

Dimension key of `optim`: S stacked matrices, I input (reduced) axis, O output
axis, J and P the same axes once more (a left factor is [S, I, J], a right one
[S, O, P]).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..common.tree import by_path, work_dtype
from . import layout
from .layout import DimensionNumbers, DimensionTree
from .stacks import Split, Stacks


@dataclasses.dataclass(frozen=True)
class Piece:
  """One leaf's place in a bucket."""

  index: int  # Position among the leaves of the tree.
  path: str
  dims: DimensionNumbers
  shape: tuple[int, ...]
  blocks: tuple[int, ...]  # Blocks a side is cut into.

  @property
  def stack_shape(self) -> tuple[int, ...]:
    """Lengths of the stack axes."""
    return tuple(self.shape[axis] for axis in self.dims.stack_axes)

  @property
  def lengths(self) -> tuple[int, ...]:
    """Length of each side, its axes merged."""
    return _lengths(self.shape, self.dims)

  @property
  def count(self) -> int:
    """Matrices of this leaf in the bucket."""
    return math.prod(self.stack_shape) * math.prod(self.blocks)


@dataclasses.dataclass(frozen=True)
class Bucket:
  """Matrices of one shape, stacked.

  Attributes:
    name: Key in the state, e.g. "256x1024_01": shape and factored sides.
    shape: (I, O) of each matrix; longer for tensors.
    factored: For each side, whether the side has a Kronecker factor.
    dtype: Type of the arithmetic: float32, or float64 for float64 leaves.
    pieces: The leaves, in tree order.
    size: S.
    shard_axis: Axis of [S, I, O] that is spread over devices. Usually 0, the
      stack axis, so that each device factorises whole matrices. A stack with
      few matrices is cut along a side without a factor when that needs less
      memory: an embedding is cut along its vocabulary. None for a single matrix
      that fits neither way: every device does the same work.
  """

  name: str
  shape: tuple[int, ...]
  factored: tuple[bool, ...]
  dtype: np.dtype
  pieces: tuple[Piece, ...]
  size: int
  shard_axis: int | None


# (bucket, leaf's place in it, [count, I, O]) -> the same, elsewhere on a mesh.
Place = Callable[[Bucket, Piece, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where every leaf of a tree goes; static, since made from shapes alone."""

  buckets: tuple[Bucket, ...]
  treedef: Any
  paths: tuple[str, ...]

  @property
  def empty(self) -> bool:
    """Whether the tree has no leaf at all."""
    return not self.paths

  def split(
    self, tree: Any, place: Place = lambda bucket, piece, x: x
  ) -> Split:
    """Stacks the matrices of a tree, in the type of the bucket's arithmetic.

    Args:
      tree: A tree like the tree that the plan was made for.
      place: Applied to the matrices of each leaf, before the leaves are joined.
    """
    if self.empty:  # A placeholder: a leaf is a prefix of any subtree.
      return Split(jnp.zeros(()), tree)
    leaves = self.treedef.flatten_up_to(tree)
    stacks = {}
    for bucket in self.buckets:
      parts = [
        place(bucket, piece, _to_stack(piece, bucket, leaves[piece.index]))
        for piece in bucket.pieces
      ]
      missing = bucket.size - sum(piece.count for piece in bucket.pieces)
      if missing:
        parts.append(jnp.zeros((missing, *bucket.shape), bucket.dtype))
      stacks[bucket.name] = (
        jnp.concatenate(parts) if len(parts) > 1 else parts[0]
      )
      for piece in bucket.pieces:
        leaves[piece.index] = optax.MaskedNode()
    return Split(Stacks(stacks), jax.tree.unflatten(self.treedef, leaves))

  def merge(
    self, split: Split, like: Any, place: Place = lambda bucket, piece, x: x
  ) -> Any:
    """Undoes `split`.

    Args:
      split: The result of `split`, or arrays of the same shapes.
      like: A tree of the same shapes; the leaves get the types of its leaves.
      place: Applied to the matrices of each leaf, after they are cut out.
    """
    targets = self.treedef.flatten_up_to(like)
    leaves = self.treedef.flatten_up_to(split.rest)
    for bucket in self.buckets:
      stack, start = split.stacks[bucket.name], 0
      for piece in bucket.pieces:
        part = place(bucket, piece, stack[start : start + piece.count])
        leaves[piece.index] = _from_stack(piece, bucket, part)
        start += piece.count
    cast = [
      leaf.astype(target.dtype)
      for leaf, target in zip(leaves, targets, strict=True)
    ]
    return jax.tree.unflatten(self.treedef, cast)


def make_plan(
  params: Any,
  dimension_numbers: DimensionTree = None,
  *,
  max_precond_dim: int = 10_000,
  one_sided: bool = False,
  block_size: int | None = None,
  stack_shards: int = 1,
) -> Plan:
  """Groups the leaves of a tree into buckets of equal matrices.

  Args:
    params: Any tree of floating-point arrays or `jax.ShapeDtypeStruct`s.
    dimension_numbers: A tree of `DimensionNumbers` (None: no matrix) like
      params or a prefix of it, or a function of params that makes such a tree.
      A leaf without an entry gets the default: a leaf of two axes is a matrix
      [inputs, outputs], a leaf of fewer axes is no matrix, and a leaf of more
      axes is an error.
    max_precond_dim: A side longer than this gets no factor (identity).
    one_sided: True: only the shorter side gets a factor; of equal sides, the
      second.
    block_size: A side longer than this is cut into equal blocks, with padding.
    stack_shards: Number of devices that each bucket is spread over. If the
      stack axis is spread, S is padded to a multiple of this number.

  Returns:
    The plan. The element-wise rule gets two kinds of leaves: leaves whose
    dimension numbers are None, and matrices without a factored side.

  Raises:
    ValueError: For a leaf that is not floating, whose layout is unknown, or
      that does not fit its dimension numbers.
  """
  leaves, treedef = by_path(params), jax.tree.structure(params)
  numbers = layout.numbers_by_path(params, dimension_numbers)
  groups: dict[tuple, list[Piece]] = {}
  for index, (path, leaf) in enumerate(leaves.items()):
    dims = layout.checked(path, leaf, numbers[path])
    if dims is None or leaf.size == 0:
      continue
    lengths = _lengths(leaf.shape, dims)
    factored, blocks = _treatment(
      lengths, dims, max_precond_dim, one_sided, block_size
    )
    if not any(factored):
      continue
    shape = tuple(-(-n // b) for n, b in zip(lengths, blocks, strict=True))
    dtype = work_dtype(leaf)
    piece = Piece(index, path, dims, tuple(leaf.shape), blocks)
    groups.setdefault((shape, factored, dtype), []).append(piece)
  buckets = []
  for (shape, factored, dtype), pieces in groups.items():
    size = sum(piece.count for piece in pieces)
    axis = find_shard_axis(shape, factored, size, stack_shards)
    if axis == 0:
      size = _round_up(size, stack_shards)
    name = bucket_name(shape, factored, dtype)
    buckets.append(
      Bucket(name, shape, factored, dtype, tuple(pieces), size, axis)
    )
  return Plan(tuple(buckets), treedef, tuple(leaves))


def check_two_sides(plan: Plan, what: str) -> None:
  """Raises unless every bucket holds matrices rather than tensors."""
  for bucket in plan.buckets:
    if len(bucket.shape) != 2:
      piece = bucket.pieces[0]
      raise ValueError(
        f"{what} needs matrices, but leaf {piece.path} of shape {piece.shape} "
        f"has {len(bucket.shape)} sides in {piece.dims}. Merge them into two, "
        "or give the leaf None."
      )


def bucket_name(
  shape: tuple[int, ...], factored: tuple[bool, ...], dtype: Any
) -> str:
  """The sides, the factored sides, and the type unless it is float32."""
  sides = "".join(str(i) for i, has in enumerate(factored) if has)
  suffix = "" if dtype == jnp.float32 else f"_{jnp.dtype(dtype).name}"
  return "x".join(map(str, shape)) + f"_{sides}{suffix}"


def parse_bucket_name(name: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
  """(shape, factored) of a bucket, from its key in a state."""
  shape, sides = name.split("_")[:2]
  lengths = tuple(int(n) for n in shape.split("x"))
  return lengths, tuple(str(i) in sides for i in range(len(lengths)))


def find_shard_axis(
  shape: tuple[int, ...], factored: tuple[bool, ...], size: int, shards: int
) -> int | None:
  """See `Bucket.shard_axis`; `size` is S, before or after padding."""
  if _round_up(size, shards) <= 2 * size:
    return 0
  # Words a device keeps of moments and factors, each of both: one matrix, or a
  # slice of all and all of their factors.
  moment = math.prod(shape)
  factors = sum(n * n for n, has in zip(shape, factored, strict=True) if has)
  for side, has in enumerate(factored):
    sliced = size * (moment / shards + factors)
    if not has and shape[side] % shards == 0 and sliced < moment + factors:
      return 1 + side
  # Devices without a matrix work on zeros: all would do the work of all else.
  return 0 if size > 1 else None


def treatment_table(
  params: Any, dimension_numbers: DimensionTree = None, **options
) -> str:
  """Says which leaf gets which treatment, in a text table to print.

  Args:
    params: Any tree of arrays or `jax.ShapeDtypeStruct`s.
    dimension_numbers: As for the transform.
    **options: `max_precond_dim`, `one_sided`, `block_size` and `stack_shards`,
      as for `make_plan`.

  Returns:
    One line a leaf: leaf, shape, matrices, factors and bucket. Leaves that are
    not preconditioned have "element-wise".
  """
  plan = make_plan(params, dimension_numbers, **options)
  rows = [("leaf", "shape", "matrices", "factors", "bucket")]
  found = {}
  for bucket in plan.buckets:
    sides = "x".join(map(str, bucket.shape))
    factors = ", ".join(
      f"{n}x{n}" if has else "identity"
      for n, has in zip(bucket.shape, bucket.factored, strict=True)
    )
    for piece in bucket.pieces:
      found[piece.index] = (f"{piece.count} of {sides}", factors, bucket.name)
  for index, leaf in enumerate(plan.treedef.flatten_up_to(params)):
    shape = str(tuple(leaf.shape))
    last = found.get(index, ("-", "element-wise", "-"))
    rows.append((plan.paths[index], shape, *last))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
  return "\n".join(line.rstrip() for line in lines)


def _lengths(shape, dims: DimensionNumbers) -> tuple[int, ...]:
  return tuple(
    math.prod(shape[axis] for axis in axes) for axes in dims.side_axes
  )


def _round_up(n: int, multiple: int) -> int:
  return -(-n // multiple) * multiple


def _treatment(lengths, dims, max_precond_dim, one_sided, block_size):
  """Which sides are factored, and into how many blocks each is cut."""
  wanted = [n > 1 for n in lengths]  # A 1 x 1 factor would do nothing.
  if dims.precondition is not None:
    wanted = [
      want and side in dims.precondition for side, want in enumerate(wanted)
    ]
  elif one_sided:
    chosen = max(i for i, n in enumerate(lengths) if n == min(lengths))
    wanted = [want and i == chosen for i, want in enumerate(wanted)]
  blocks = tuple(
    -(-n // block_size) if want and block_size is not None else 1
    for n, want in zip(lengths, wanted, strict=True)
  )
  factored = tuple(
    want and -(-n // b) <= max_precond_dim
    for n, want, b in zip(lengths, wanted, blocks, strict=True)
  )
  blocks = tuple(
    b if has else 1 for b, has in zip(blocks, factored, strict=True)
  )
  return factored, blocks


def _to_stack(piece: Piece, bucket: Bucket, leaf: jax.Array) -> jax.Array:
  """[...] -> [count, I, O], blocks and stack axes first."""
  x = leaf.astype(bucket.dtype).transpose(piece.dims.order)
  x = x.reshape(-1, *piece.lengths)
  if math.prod(piece.blocks) == 1:
    return x
  cut = list(zip(piece.blocks, bucket.shape, strict=True))
  sides = zip(cut, piece.lengths, strict=True)
  x = jnp.pad(x, [(0, 0), *((0, b * n - length) for (b, n), length in sides)])
  x = x.reshape(x.shape[0], *(n for pair in cut for n in pair))
  k = len(bucket.shape)
  x = x.transpose(0, *range(1, 2 * k, 2), *range(2, 2 * k + 1, 2))
  return x.reshape(-1, *bucket.shape)


def _from_stack(piece: Piece, bucket: Bucket, x: jax.Array) -> jax.Array:
  """Undoes `_to_stack`."""
  if math.prod(piece.blocks) > 1:
    k = len(bucket.shape)
    x = x.reshape(-1, *piece.blocks, *bucket.shape)
    x = x.transpose(0, *(j for i in range(k) for j in (1 + i, 1 + k + i)))
    padded = [b * n for b, n in zip(piece.blocks, bucket.shape, strict=True)]
    x = x.reshape(-1, *padded)
    x = x[(slice(None), *(slice(0, n) for n in piece.lengths))]
  x = x.reshape([piece.shape[axis] for axis in piece.dims.order])
  return x.transpose(np.argsort(piece.dims.order))
