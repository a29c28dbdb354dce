"""Blocks of an array and their scales; `round.py` has the public functions."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..common import checks, meshes
from ..common.tree import work_dtype
from . import grids
from .grids import E2M1, E4M3, Grid

SCALES = ("absmax", "pow2_floor", "pow2_ceil", "nvfp4")
# Scales for which no element of a block exceeds the largest code.
UNBIASED = ("absmax", "pow2_ceil")
# Of powers of two: E8M0's, without the one that no normal float32 has.
_LEAST, _MOST = -126, 127


@dataclasses.dataclass(frozen=True)
class Quantizer:
  """How an array is cut into blocks, and on which grid it is rounded; hashable.

  The scales, with A = max |x| over the block and c the largest code of the
  grid:

      "absmax"      s = A / c, rounded to the nearest float32
      "pow2_floor"  s = 2^(floor(log2 A) - floor(log2 c)), OCP's rule: elements
                    above c s saturate, so that rounding at random is biased
      "pow2_ceil"   s = 2^ceil(log2(A / c)): nothing saturates
      "nvfp4"       s = t E4M3(A / (c t)), t = max |x| over the array / (448 c);
                    E4M3 rounds to nearest, so some elements saturate

  Exponents are limited to [-126, 127]: the exponents of E8M0 whose power is a
  normal float32. So s is never 0. "absmax" has s = 1 where A / c is below
  2^-126. A block of zeros has s = 1. A block with an infinity or a NaN becomes
  NaN.

  With `batch_axes=1`, each layer of a stack [N, I, O] has its own scales. With
  an `axis`, each line along the axis has its own scales in any case. If `axis`
  is counted from the end, one quantizer serves stacked and single matrices.

  Attributes:
    grid: `INT4`, `INT8`, `MXINT8`, `E2M1`, `E2M3`, `E3M2`, `E4M3` or `E5M2`.
    axis: The axis that is cut into blocks. None: one block for the whole array.
    block_size: Elements of a block along `axis`. None: the whole axis.
    scale: The rule of the scales: one of the four names above.
    batch_axes: Number of leading axes over which separate arrays are stacked.
  """

  grid: Grid
  axis: int | None = None
  block_size: int | None = None
  scale: str = "absmax"
  batch_axes: int = 0

  def __post_init__(self):
    if not isinstance(self.grid, Grid):
      raise ValueError(f"grid={self.grid!r} must be a Grid, e.g. optim.INT4.")
    checks.choice("scale", self.scale, SCALES)
    if self.axis is not None:
      check_whole("axis", self.axis, None, "-2 or None for one block")
    if self.block_size is not None:
      check_whole("block_size", self.block_size, 1, "32 or None")
      if self.axis is None:
        raise ValueError(
          f"block_size={self.block_size} needs the axis that is cut into "
          "blocks, e.g. axis=-2 for the inputs of kernels [.., I, O]."
        )
    check_whole("batch_axes", self.batch_axes, 0, "1 for stacked layers")
    if self.scale == "nvfp4" and self.grid != E2M1:
      raise ValueError(
        f"scale='nvfp4' is for grid=E2M1 only, got {self.grid.name}; take "
        "scale='pow2_ceil' or 'absmax'."
      )


class Scale(NamedTuple):
  """Scales of the blocks, s = factor 2^exponent; broadcast to the blocks."""

  factor: jax.Array  # NaN for blocks that are not finite.
  exponent: jax.Array | None  # int32; None: 0.
  top: jax.Array  # |x| of the largest elements; NaN if not on the grid.


class Blocks(NamedTuple):
  """An array cut into blocks."""

  x: jax.Array  # In the type of the arithmetic.
  axes: tuple[int, ...]  # The axes of one block.
  scale: Scale


def check_whole(name: str, value: Any, least: int | None, example: str) -> None:
  """Raises unless value is an int and at least `least`."""
  whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
  if not whole or (least is not None and value < least):
    rule = "an int" if least is None else f"an int >= {least}"
    raise ValueError(f"{name}={value!r} must be {rule}, e.g. {example}.")


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
  axis, ndim = _checked_axis(x, quantizer), x.ndim
  if axis is None:
    return x, tuple(range(quantizer.batch_axes, ndim))
  if quantizer.block_size is None:
    return x, (axis,)
  length = x.shape[axis]
  size = min(quantizer.block_size, length)
  count = -(-length // size) if size else 1
  if count > 1 and (length % size or count % meshes.num_shards(x, axis)):
    x = meshes.unsplit(x, axis)  # Blocks lie across devices.
  if count * size != length:
    padding = [(0, 0)] * ndim
    padding[axis] = (0, count * size - length)
    x = jnp.pad(x, padding)  # Zeros never are the largest.
  shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
  return x.reshape(shape), (axis + 1,)


def uncut(blocks: jax.Array, x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """Undoes `cut`, for an array of the shape and the layout of x."""
  shape = x.shape
  if blocks.shape == shape:
    return blocks
  axis = (quantizer.axis or 0) % len(shape)
  merged = (*shape[:axis], -1, *shape[axis + 1 :])
  if 0 in shape:
    return blocks.reshape(shape)
  whole = blocks.reshape(merged)
  return meshes.placed(
    jax.lax.slice_in_dim(whole, 0, shape[axis], axis=axis), x
  )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def block_max(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """max |x| over some axes, which stay with length 1; 0 for empty arrays.

  The maximum is taken over the bits as integers, where a NaN is the largest
  number. A vectorised maximum of floats may lose a NaN, as XLA's on a CPU does.

  Returns:
    x, with length 1 along the axes.
  """
  integer = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
  bits = jax.lax.bitcast_convert_type(jnp.abs(x), integer)
  top = jnp.max(bits, axis=axes, keepdims=True, initial=0)
  return jax.lax.bitcast_convert_type(top, x.dtype)


@block_max.defjvp
def _block_max_jvp(axes, primals, tangents):
  (x,), (x_dot,) = primals, tangents
  top = block_max(x, axes)
  largest = jnp.abs(x) == top
  moved = jnp.sum(
    jnp.where(largest, jnp.sign(x) * x_dot, 0), axis=axes, keepdims=True
  )
  ties = jnp.sum(largest, axis=axes, keepdims=True)
  return top, moved / jnp.maximum(ties, 1).astype(x.dtype)


def to_blocks(x: jax.Array, quantizer: Quantizer) -> Blocks:
  """Cuts an array into blocks, and computes the scales."""
  blocks, axes = cut(x.astype(work_dtype(x)), quantizer)
  return Blocks(blocks, axes, _scale(blocks, axes, quantizer))


def to_codes(blocks: Blocks, grid: Grid) -> jax.Array:
  """x / s, limited to the range of the grid; not yet rounded to codes."""
  x, scale = blocks.x, blocks.scale
  y = jnp.clip(divide(x, scale), -grid.code_max, grid.code_max)
  # A / (A / c) need not be c, but the largest is on the grid.
  return jnp.where(
    jnp.abs(x) == scale.top, jnp.copysign(grid.code_max, x), y
  ).astype(x.dtype)


def divide(x: jax.Array, scale: Scale) -> jax.Array:
  """x / s."""
  if scale.exponent is None:
    return x / scale.factor
  return grids.times_power(x, -scale.exponent, scale.factor)


def from_codes(codes: jax.Array, scale: Scale) -> jax.Array:
  """s times codes."""
  if scale.exponent is None:
    return codes * scale.factor
  return grids.times_power(codes, scale.exponent, scale.factor)


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


def store(blocks: Blocks, quantizer: Quantizer):
  """Converts scales to their storage type, one a block."""
  scale = blocks.scale
  if scale.exponent is not None:
    stored = (scale.exponent + 127).astype(jnp.uint8)
    stored = jnp.where(jnp.isnan(scale.factor), jnp.uint8(255), stored)
    stored = jax.lax.bitcast_convert_type(stored, jnp.float8_e8m0fnu)
  else:
    stored = scale.factor
  if quantizer.block_size is not None:
    stored = jnp.squeeze(stored, blocks.axes)
  if quantizer.scale != "nvfp4":
    return stored
  tensor = _nvfp4_tensor_scale(block_max(blocks.x, blocks.axes), quantizer)
  if quantizer.block_size is not None:
    tensor = jnp.squeeze(tensor, blocks.axes)
  # Blocks of zeros have s = 1, which may be beyond E4M3.
  stored = jnp.clip(stored / tensor, 0, E4M3.code_max)
  return stored.astype(jnp.float8_e4m3fn), tensor


def load(stored, axes: tuple, quantizer: Quantizer) -> Scale:
  """Undoes `store`."""
  if quantizer.scale == "nvfp4":
    block, tensor = stored
    stored = block.astype(jnp.float32) * tensor
  if quantizer.block_size is not None:
    stored = jnp.expand_dims(stored, axes)
  nan = jnp.asarray(jnp.nan, jnp.float32)
  if stored.dtype != jnp.float8_e8m0fnu:
    return Scale(stored, None, nan)
  field = jax.lax.bitcast_convert_type(stored, jnp.uint8).astype(jnp.int32)
  factor = jnp.where(field == 255, nan, jnp.float32(1))
  return Scale(factor, jnp.where(field == 255, 0, field - 127), nan)


def _checked_axis(x, quantizer: Quantizer) -> int | None:
  """`quantizer.axis` counted from 0, or an error that names the array."""
  axis, batch, ndim = quantizer.axis, quantizer.batch_axes, x.ndim
  if batch > ndim:
    raise ValueError(
      f"batch_axes={batch} but x of shape {tuple(x.shape)} has {ndim} axes; "
      "use a Quantizer with fewer for this array."
    )
  if axis is None:
    return None
  if not -ndim <= axis < ndim or axis % ndim < batch:
    raise ValueError(
      f"axis={axis} of x of shape {tuple(x.shape)} must be one of its axes "
      f"{batch}..{ndim - 1} (batch_axes={batch}); -2 counts from the end."
    )
  return axis % ndim


def _scale(x: jax.Array, axes: tuple, quantizer: Quantizer) -> Scale:
  """Scales of blocks that are already cut."""
  grid = quantizer.grid
  amax = block_max(x, axes)
  bad = ~jnp.isfinite(amax)
  nan, one = jnp.asarray(jnp.nan, x.dtype), jnp.ones((), x.dtype)
  if quantizer.scale in ("pow2_floor", "pow2_ceil"):
    exponent = grids.floor_log2(amax) - grid.max_exponent
    if quantizer.scale == "pow2_ceil":
      largest = grids.times_power(amax, -jnp.maximum(exponent, _LEAST))
      exponent = exponent + (largest > grid.code_max)
    exponent = jnp.clip(exponent, _LEAST, _MOST)
    exponent = jnp.where((amax == 0) | bad, 0, exponent)
    return Scale(jnp.where(bad, nan, one), exponent, nan)
  if quantizer.scale == "nvfp4":
    tensor = _nvfp4_tensor_scale(amax, quantizer)
    block = _nvfp4_block_scale(amax, tensor, grid)
    s = jnp.where(amax > 0, block * tensor, one)
    return Scale(jnp.where(bad, nan, s), None, nan)
  s = _quotient(amax, grid.code_max)
  usable = s >= jnp.finfo(x.dtype).tiny
  s = jnp.where(bad, nan, jnp.where(usable, s, one))
  return Scale(s, None, jnp.where(usable & ~bad, amax, nan))


def _quotient(x: jax.Array, constant: float) -> jax.Array:
  """x / constant, rounded once, for finite x.

  XLA replaces a division by a known constant by a product with the rounded
  reciprocal. Then half of the scales would be off by a bit, and rounding again
  would change values. XLA cannot know the divisor of this division.

  Returns:
    Like x; where x is not finite, x.
  """
  return x / jnp.where(jnp.isfinite(x), constant, 1).astype(x.dtype)


def _nvfp4_tensor_scale(amax: jax.Array, quantizer: Quantizer) -> jax.Array:
  """t, from the maxima of the blocks; one t for each stacked array.

  t is 1 where t times the least number of E4M3 would not be a normal number.
  """
  axes = tuple(range(quantizer.batch_axes, amax.ndim))
  top = block_max(jnp.where(jnp.isfinite(amax), amax, 0), axes)
  t = _quotient(top, E4M3.code_max * quantizer.grid.code_max)
  least = jnp.finfo(t.dtype).tiny * 2**9
  return jnp.where(t >= least, t, jnp.ones((), t.dtype))


def _nvfp4_block_scale(amax, tensor, grid: Grid) -> jax.Array:
  """E4M3(A / (c t)), at least its smallest positive number."""
  wanted = amax / (grid.code_max * tensor)
  wanted = jnp.clip(wanted, 2.0**-9, E4M3.code_max)
  return grids.nearest(wanted, E4M3)
