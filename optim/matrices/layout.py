"""Which axes of a leaf are stacked, inputs or outputs: said, never guessed."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp

from ..common.tree import by_path


def _as_tuple(axes: int | Iterable[int]) -> tuple[int, ...]:
  return (axes,) if isinstance(axes, int) else tuple(axes)


@dataclasses.dataclass(frozen=True)
class DimensionNumbers:
  """How a leaf is read as a stack of matrices.

  `sides` and `stack` together name each axis of the leaf exactly once. An
  attention kernel [layers, embed, heads, head] has
  `DimensionNumbers(sides=(1, (2, 3)), stack=0)`: one matrix embed x (heads
  head) a layer. With `stack=(0, 2), sides=(1, 3)` each head is a matrix of
  its own. Three or more sides make a tensor with one factor an axis.

  Attributes:
    sides: Input axes, then output axes; an int or a tuple, merged in order.
    stack: Axes over which the leaf is a stack: layers, experts, heads.
    precondition: Which sides get a Kronecker factor, e.g. `(1,)` for the
      second only; None leaves it to the transform.
  """

  sides: tuple[tuple[int, ...] | int, ...] = (0, 1)
  stack: tuple[int, ...] | int = ()
  precondition: tuple[int, ...] | None = None

  @property
  def side_axes(self) -> tuple[tuple[int, ...], ...]:
    """`sides`, each as a tuple."""
    return tuple(_as_tuple(axes) for axes in self.sides)

  @property
  def stack_axes(self) -> tuple[int, ...]:
    """`stack` as a tuple."""
    return _as_tuple(self.stack)

  @property
  def order(self) -> tuple[int, ...]:
    """The axes of the leaf: stack first, then side by side."""
    merged = (axis for axes in self.side_axes for axis in axes)
    return (*self.stack_axes, *merged)


# A tree of `DimensionNumbers | None` (None: no matrix, a leaf for the
# element-wise rule), a function of params that makes one, or None for the
# default: 2-D leaves are matrices.
DimensionTree = Any | Callable[[Any], Any] | None


def numbers_by_path(
  params: Any, dimension_numbers: DimensionTree
) -> dict[str, DimensionNumbers | None]:
  """Dimension numbers by path; paths rather than trees, to work masked."""
  leaves = by_path(params)
  if dimension_numbers is None:
    return {path: _default(path, leaf) for path, leaf in leaves.items()}
  if callable(dimension_numbers):
    dimension_numbers = dimension_numbers(params)
  known = by_path(
    dimension_numbers,
    is_leaf=lambda x: x is None or isinstance(x, DimensionNumbers),
  )
  for path, leaf in leaves.items():
    if path not in known:
      raise ValueError(
        f"dimension_numbers has no entry for leaf {path} of shape "
        f"{tuple(leaf.shape)}. Give each leaf a DimensionNumbers, or None to "
        f"treat it element-wise. Entries: {sorted(known)[:8]}."
      )
  return {path: known[path] for path in leaves}


def _default(path: str, leaf) -> DimensionNumbers | None:
  if leaf.ndim < 2 or leaf.size == 0:
    return None
  if leaf.ndim == 2:
    return DimensionNumbers()
  raise ValueError(
    f"Leaf {path} has shape {tuple(leaf.shape)}: which of its {leaf.ndim} axes "
    "are stacked, inputs or outputs is not known. Pass dimension_numbers, a "
    "tree like params, with e.g. DimensionNumbers(sides=(1, 2), stack=0) for "
    "layers of matrices, or None to treat the leaf element-wise."
  )


def checked(path: str, leaf, dims) -> DimensionNumbers | None:
  """Returns `dims` with axes counted from 0, or raises naming the leaf."""
  if not jnp.issubdtype(leaf.dtype, jnp.floating):
    raise ValueError(
      f"Leaf {path} of shape {tuple(leaf.shape)} has type {leaf.dtype}; only "
      "real floating leaves can be optimised. Leave it out with optax.masked "
      "or optax.partition, or cast it."
    )
  if dims is None:
    return None
  if not isinstance(dims, DimensionNumbers):
    raise ValueError(
      f"dimension_numbers of leaf {path} of shape {tuple(leaf.shape)} is "
      f"{dims!r}; it must be a DimensionNumbers, or None."
    )
  in_range = all(-leaf.ndim <= axis < leaf.ndim for axis in dims.order)
  axes = sorted(axis % leaf.ndim for axis in dims.order) if in_range else []
  sides_known = all(
    0 <= side < len(dims.sides) for side in dims.precondition or ()
  )
  if axes != list(range(leaf.ndim)) or not dims.sides or not sides_known:
    raise ValueError(
      f"{dims} does not fit leaf {path} of shape {tuple(leaf.shape)}: stack "
      f"and sides must name each of its axes 0..{leaf.ndim - 1} once, and "
      f"precondition may name sides 0..{len(dims.sides) - 1}."
    )
  return dataclasses.replace(
    dims,
    sides=tuple(
      tuple(axis % leaf.ndim for axis in axes) for axes in dims.side_axes
    ),
    stack=tuple(axis % leaf.ndim for axis in dims.stack_axes),
  )
