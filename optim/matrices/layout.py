"""Which axes of a leaf are stack, inputs or outputs: the user says so."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from ..common.tree import by_path, is_function, is_masked


def _as_tuple(axes: int | Iterable[int]) -> tuple[int, ...]:
  return (axes,) if isinstance(axes, int) else tuple(axes)


@dataclasses.dataclass(frozen=True)
class DimensionNumbers:
  """How a leaf is read as a stack of matrices.

  `sides` and `stack` together name each axis of the leaf exactly once. An
  attention kernel [layers, embed, heads, head] has
  `DimensionNumbers(sides=(1, (2, 3)), stack=0)`: one matrix embed x (heads
  head) a layer. With `stack=(0, 2), sides=(1, 3)` each head is a matrix of
  its own. Three or more sides make a tensor with one factor a side.

  Attributes:
    sides: Input axes, then output axes. Each is an int, or a tuple of axes that
      are merged in order.
    stack: Axes over which the leaf is a stack: layers, experts, heads.
    precondition: Indices of the sides that get a Kronecker factor, e.g. `(1,)`
      for the second side only. None: the transform decides.
  """

  sides: tuple[tuple[int, ...] | int, ...] = (0, 1)
  stack: tuple[int, ...] | int = ()
  precondition: tuple[int, ...] | None = None

  @property
  def side_axes(self) -> tuple[tuple[int, ...], ...]:
    """`sides`, each side as a tuple of axes."""
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


# A weight [outputs, inputs], as Equinox and ports from PyTorch keep it.
OUT_IN = DimensionNumbers(sides=(1, 0))
# A kernel [height, width, inputs, outputs], as Flax and Haiku keep it.
CONV = DimensionNumbers(sides=((0, 1, 2), 3))

# A tree of `DimensionNumbers | None` (None: no matrix, a leaf for the
# element-wise rule), or a prefix of such a tree; a function of params that
# makes such a tree; or None. `_default` says what a leaf without an entry is.
DimensionTree = Any | Callable[[Any], Any] | None


def by_rank(
  rules: Mapping[int, DimensionNumbers | None],
) -> Callable[[Any], Any]:
  """Makes dimension numbers from the number of a leaf's axes.

      optim.muon(0.02, dimension_numbers=optim.by_rank({2: optim.OUT_IN}))

  Args:
    rules: {number of axes: `DimensionNumbers` of such leaves, or None for the
      element-wise rule}. Leaves of other numbers of axes get the default: a
      leaf of fewer than two axes gets the element-wise rule, a leaf of two
      axes is a matrix [inputs, outputs].

  Returns:
    A function of params, to be passed as `dimension_numbers`.

  Raises:
    ValueError: When called with a leaf of three or more axes without a rule.
  """

  def numbers(params):
    def of_leaf(path, leaf):
      if leaf.ndim in rules:
        return rules[leaf.ndim]
      return _default(jax.tree_util.keystr(path), leaf)

    return jax.tree_util.tree_map_with_path(of_leaf, params)

  return numbers


def from_muon_dimension_numbers(
  weight_dimension_numbers: Any,
) -> Callable[[Any], Any]:
  """Converts the dimension numbers of `optax.contrib.muon`.

  Args:
    weight_dimension_numbers: A tree of `optax.contrib.MuonDimensionNumbers |
      None` like params or a prefix of it, or a function of params that makes
      such a tree. None: leaves of two axes are matrices.

  Returns:
    A function of params, to be passed as `dimension_numbers`. Axes that are
    neither reduced nor outputs become the stack. A leaf with None gets the
    element-wise rule.
  """
  kind = optax.contrib.MuonDimensionNumbers
  is_entry = lambda x: x is None or isinstance(x, kind)  # noqa: E731

  def convert(leaf, entry):
    if entry is None:
      return None
    sides = _as_tuple(entry.reduction_axis), _as_tuple(entry.output_axis)
    used = {axis % leaf.ndim for side in sides for axis in side}
    stack = tuple(axis for axis in range(leaf.ndim) if axis not in used)
    return DimensionNumbers(sides, stack)

  def numbers(params):
    tree = weight_dimension_numbers
    if is_function(tree):
      tree = tree(params)
    if tree is None:
      tree = jax.tree.map(lambda x: kind() if x.ndim == 2 else None, params)
    return jax.tree.map(
      lambda entry, part: jax.tree.map(lambda x: convert(x, entry), part),
      tree,
      params,
      is_leaf=is_entry,
    )

  return numbers


def numbers_by_path(
  params: Any, dimension_numbers: DimensionTree
) -> dict[str, DimensionNumbers | None]:
  """{path: dimension numbers} of the leaves that no mask has taken out.

  Raises:
    ValueError: For an entry that belongs to no leaf, or for a leaf of three or
      more axes without an entry.
  """
  flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_masked)
  entries = {}
  if dimension_numbers is not None:
    if is_function(dimension_numbers):
      dimension_numbers = dimension_numbers(params)
    entries = dict(
      jax.tree_util.tree_flatten_with_path(
        dimension_numbers,
        is_leaf=lambda x: x is None or isinstance(x, DimensionNumbers),
      )[0]
    )
  found, used = {}, set()
  for key_path, leaf in flat:
    path = jax.tree_util.keystr(key_path)
    starts = [key_path[:stop] for stop in range(len(key_path), -1, -1)]
    known = [start for start in starts if start in entries]
    used |= set(known)
    if is_masked(leaf):  # What is below is masked as well.
      used |= {entry for entry in entries if entry[: len(key_path)] == key_path}
    else:
      found[path] = entries[known[0]] if known else _default(path, leaf)
  # None says nothing of where no leaf is: trees of modules have such entries.
  idle = [
    x for x, dims in entries.items() if dims is not None and x not in used
  ]
  if idle and found:
    raise ValueError(
      f"dimension_numbers{jax.tree_util.keystr(idle[0])} belongs to no leaf of "
      f"params, whose leaves are {list(found)[:8]}. Give entries for leaves or "
      "subtrees of params only."
    )
  return found


def _default(path: str, leaf) -> DimensionNumbers | None:
  if leaf.ndim < 2 or leaf.size == 0:
    return None
  if leaf.ndim == 2:
    return DimensionNumbers()
  raise ValueError(
    f"Leaf {path} has shape {tuple(leaf.shape)}: which of its {leaf.ndim} axes "
    "are stacked, inputs or outputs is not known. Pass dimension_numbers with "
    "an entry for it, e.g. DimensionNumbers(sides=(1, 2), stack=0) for layers "
    "of matrices, optim.CONV for a kernel, or None to treat it element-wise."
  )


def checked(path: str, leaf, dims) -> DimensionNumbers | None:
  """Returns `dims` with axes counted from 0; errors name the leaf."""
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


def matrices_by_path(
  params: Any, dimension_numbers: DimensionTree
) -> dict[str, DimensionNumbers | None]:
  """{path: checked numbers of a leaf that holds matrices, else None}."""
  leaves = by_path(params)
  found: dict[str, DimensionNumbers | None] = {}
  for path, dims in numbers_by_path(params, dimension_numbers).items():
    dims, shape = checked(path, leaves[path], dims), leaves[path].shape
    if dims is not None:
      axes = [axis for axes in dims.side_axes for axis in axes]
      if leaves[path].size == 0 or math.prod(shape[a] for a in axes) == 1:
        dims = None
    found[path] = dims
  return found
