"""Arrays cut into blocks, and their elements in units of the scales."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..common import meshes
from ..common.tree import work_dtype
from .grids import Grid
from .scales import UNBIASED, Quantizer, Scale, block_scales, divide


class Blocks(NamedTuple):
  """An array cut into blocks."""

  x: jax.Array  # In the type of the arithmetic.
  axes: tuple[int, ...]  # The axes of one block.
  scale: Scale


def as_floats(x: Any) -> jax.Array:
  """Converts an array or nested lists of numbers to an array of floats."""
  x = jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f"x has type {x.dtype}; only real floats are rounded, e.g. "
      "x.astype(jnp.float32)."
    )
  return x


def cut(x: jax.Array, quantizer: Quantizer) -> tuple[jax.Array, tuple]:
  """Cuts an array into blocks: (the array reshaped, the axes of a block)."""
  axes = _checked_axes(x, quantizer)
  if not axes:
    return x, tuple(range(quantizer.batch_axes, x.ndim))
  if quantizer.block_size is None:
    return x, axes
  shape: list[int] = []
  padding, inside = [], []
  for axis, length in enumerate(x.shape):
    size = min(quantizer.block_size, length) if axis in axes else 0
    count = -(-length // size) if size else 1
    if count > 1 and (length % size or count % meshes.num_shards(x, axis)):
      x = meshes.unsplit(x, axis)  # Blocks lie across devices.
    padding.append((0, count * size - length if size else 0))
    if axis in axes:
      shape += [count, size]
      inside.append(len(shape) - 1)
    else:
      shape.append(length)
  if any(after for _, after in padding):
    x = jnp.pad(x, padding)  # Zeros never are the largest.
  return x.reshape(shape), tuple(inside)


def uncut(blocks: jax.Array, x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """Undoes `cut`, for an array of the shape and the layout of x."""
  shape = x.shape
  if blocks.shape == shape:
    return blocks
  if 0 in shape:
    return blocks.reshape(shape)
  axes, lengths = _checked_axes(x, quantizer), list(blocks.shape)
  for axis in axes:
    lengths[axis : axis + 2] = [lengths[axis] * lengths[axis + 1]]
  whole = blocks.reshape(lengths)
  for axis in axes:
    whole = jax.lax.slice_in_dim(whole, 0, shape[axis], axis=axis)
  return meshes.placed(whole, x)


def to_blocks(x: jax.Array, quantizer: Quantizer) -> Blocks:
  """Cuts an array into blocks, and computes the scales."""
  blocks, axes = cut(x.astype(work_dtype(x)), quantizer)
  return Blocks(blocks, axes, block_scales(blocks, axes, quantizer))


def to_codes(blocks: Blocks, grid: Grid) -> jax.Array:
  """x / s, limited to the range of the grid; not yet rounded to codes."""
  x, scale = blocks.x, blocks.scale
  y = jnp.clip(divide(x, scale), -grid.code_max, grid.code_max)
  if scale.top is None:
    return y.astype(x.dtype)
  # A / (A / c) need not be c, but the largest is on the grid.
  return jnp.where(
    jnp.abs(x) == scale.top, jnp.copysign(grid.code_max, x), y
  ).astype(x.dtype)


def to_largest(blocks: Blocks, slopes: jax.Array, grid: Grid) -> jax.Array:
  """The gradient of x through the scale of its block.

  Args:
    blocks: x.
    slopes: dL/ds is the sum of the slopes over each block, without the largest
      elements.
    grid: The grid.

  Returns:
    sign(x) / c dL/ds at the largest elements, shared by ties; 0 elsewhere.
  """
  if blocks.scale.top is None:
    return jnp.zeros_like(blocks.x)
  largest = jnp.abs(blocks.x) == blocks.scale.top

  def total(x):
    return jnp.sum(x, axis=blocks.axes, keepdims=True)

  # Nothing is lost by the selection: the slope of the largest elements is zero.
  # But XLA on CPU gives sums to a library, together with the products that come
  # last; a selection makes it compute and store one array, not five.
  slope = total(jnp.where(largest, 0.0, slopes))
  ties = total(jnp.where(largest, 1.0, 0.0).astype(slopes.dtype))
  share = slope / (grid.code_max * jnp.maximum(ties, 1))
  return jnp.where(largest, jnp.sign(blocks.x) * share, 0)


def saturated(blocks: Blocks, quantizer: Quantizer) -> jax.Array:
  """Whether an element is beyond the largest code."""
  if quantizer.scale in UNBIASED:
    return jnp.zeros(blocks.x.shape, bool)
  return jnp.abs(divide(blocks.x, blocks.scale)) > quantizer.grid.code_max


def _checked_axes(x: jax.Array, quantizer: Quantizer) -> tuple[int, ...]:
  """The axes of a quantizer from 0, increasing, or an error with the shape."""
  batch, ndim = quantizer.batch_axes, x.ndim
  if batch > ndim:
    raise ValueError(
      f"batch_axes={batch} but x of shape {tuple(x.shape)} has {ndim} axes; "
      "use a Quantizer with fewer for this array."
    )
  for axis in quantizer.axes:
    if not -ndim <= axis < ndim or axis % ndim < batch:
      raise ValueError(
        f"axis={axis} of x of shape {tuple(x.shape)} must be one of its axes "
        f"{batch}..{ndim - 1} (batch_axes={batch}); -2 counts from the end."
      )
  found = tuple(sorted(axis % ndim for axis in quantizer.axes))
  if len({*found}) < len(found):
    raise ValueError(
      f"axis={quantizer.axis} of x of shape {tuple(x.shape)} must be two "
      "different axes."
    )
  return found
