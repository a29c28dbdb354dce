"""Rules of scales: the spacing of the grid in each block of an array."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..common import checks
from . import grids
from .grids import E2M1, E4M3, Grid

SCALES = ("absmax", "pow2_floor", "pow2_ceil", "nvfp4", "nvfp4_up")
# Scales for which no element of a block exceeds the largest code.
UNBIASED = ("absmax", "pow2_ceil", "nvfp4_up")
_TWO_LEVELS = ("nvfp4", "nvfp4_up")
_HEADROOM = 17 / 16  # E4M3 rounds a normal number down by 1 / 17 at most.
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
      "nvfp4_up"    the same with A and max |x| times 17 / 16, and an E4M3 below
                    A / (c t) replaced by the next one: nothing saturates, so
                    that rounding at random is unbiased

  Exponents are limited to [-126, 127]: the exponents of E8M0 whose power is a
  normal float32. So s is never 0. "absmax" has s = 1 where A / c is below
  2^-126. The E4M3 of "nvfp4" is at least 2^-9, its smallest number, so faint
  blocks keep some of their codes. A block of zeros has s = 1. A block with an
  infinity or a NaN becomes NaN.

  With `batch_axes=1`, each layer of a stack [N, I, O] has its own scales. With
  an `axis`, each line along the axis has its own scales in any case. If `axis`
  is counted from the end, one quantizer serves stacked and single matrices.
  With two axes blocks are squares: the same for a matrix and its transpose.

  Attributes:
    grid: `INT4`, `INT8`, `MXINT8`, `E2M1`, `E2M3`, `E3M2`, `E4M3` or `E5M2`.
    axis: The axis that is cut into blocks, or a pair of axes. None: one block
      for the whole array.
    block_size: Elements of a block along each axis. None: the whole axis.
    scale: The rule of the scales: one of the five names above.
    batch_axes: Number of leading axes over which separate arrays are stacked.
  """

  grid: Grid
  axis: int | tuple[int, int] | None = None
  block_size: int | None = None
  scale: str = "absmax"
  batch_axes: int = 0

  def __post_init__(self):
    if not isinstance(self.grid, Grid):
      raise ValueError(f"grid={self.grid!r} must be a Grid, e.g. optim.INT4.")
    checks.choice("scale", self.scale, SCALES)
    if isinstance(self.axis, tuple) and len(self.axis) != 2:
      raise ValueError(f"axis={self.axis} must be an int, two ints or None.")
    for axis in self.axes:
      check_whole("axis", axis, None, "-2, or None for one block")
    if self.block_size is not None:
      check_whole("block_size", self.block_size, 1, "32 or None")
      if self.axis is None:
        raise ValueError(
          f"block_size={self.block_size} needs the axis that is cut into "
          "blocks, e.g. axis=-2 for the inputs of kernels [.., I, O]."
        )
    check_whole("batch_axes", self.batch_axes, 0, "1 for stacked layers")
    if self.scale in _TWO_LEVELS and self.grid != E2M1:
      raise ValueError(
        f"scale={self.scale!r} is for grid=E2M1 only, got {self.grid.name}; "
        "take scale='pow2_ceil' or 'absmax'."
      )

  @property
  def axes(self) -> tuple[int, ...]:
    """The axes that are cut into blocks."""
    if isinstance(self.axis, tuple):
      return self.axis
    return () if self.axis is None else (self.axis,)


class Scale(NamedTuple):
  """Scales of the blocks, s = factor 2^exponent; broadcast to the blocks."""

  factor: jax.Array  # NaN for blocks that are not finite.
  exponent: jax.Array | None  # int32; None: 0.
  top: jax.Array | None  # |x| of the largest elements; NaN if not on the grid.
  inverse: jax.Array | None = None  # 1 / factor, where elements are times it.


def check_whole(name: str, value: Any, least: int | None, example: str) -> None:
  """Raises unless value is an int and at least `least`."""
  whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
  if not whole or (least is not None and value < least):
    rule = "an int" if least is None else f"an int >= {least}"
    raise ValueError(f"{name}={value!r} must be {rule}, e.g. {example}.")


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


def divide(x: jax.Array, scale: Scale) -> jax.Array:
  """x / s."""
  if scale.inverse is not None:
    return x * scale.inverse
  if scale.exponent is None:
    return x / scale.factor
  return grids.times_power(x, -scale.exponent, scale.factor)


def from_codes(codes: jax.Array, scale: Scale) -> jax.Array:
  """s times codes."""
  if scale.exponent is None:
    return codes * scale.factor
  return grids.times_power(codes, scale.exponent, scale.factor)


def block_scales(x: jax.Array, axes: tuple, quantizer: Quantizer) -> Scale:
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
    return Scale(jnp.where(bad, nan, one), exponent, None)
  if quantizer.scale in _TWO_LEVELS:
    gain = _nvfp4_gain(amax, quantizer)
    s = _nvfp4_block_scale(amax, gain, quantizer) * _inverse(gain)
    s = jnp.where(bad, nan, jnp.where(amax > 0, s, one))
    return Scale(s, None, None, _inverse(s))
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


def _inverse(x: jax.Array) -> jax.Array:
  """1 / x, which XLA does not merge with what comes before or after.

  TransformerEngine multiplies by rounded reciprocals. So do we: then codes are
  equal where an element lies midway between two codes.
  """
  return jax.lax.optimization_barrier(1 / jax.lax.optimization_barrier(x))


def nvfp4_tensor_scale(amax: jax.Array, quantizer: Quantizer) -> jax.Array:
  """t, from the maxima of the blocks; one t for each stacked array."""
  return _inverse(_nvfp4_gain(amax, quantizer))


def _nvfp4_gain(amax: jax.Array, quantizer: Quantizer) -> jax.Array:
  """1 / t; 1 where t times the least number of E4M3 would not be normal."""
  axes = tuple(range(quantizer.batch_axes, amax.ndim))
  top = block_max(jnp.where(jnp.isfinite(amax), amax, 0), axes)
  if quantizer.scale == "nvfp4_up":
    top = top * _HEADROOM
  most = E4M3.code_max * quantizer.grid.code_max
  usable = top >= most * 2**9 * float(jnp.finfo(top.dtype).tiny)
  return jnp.where(usable, most / jnp.where(usable, top, 1), 1)


def _nvfp4_block_scale(amax, gain, quantizer: Quantizer) -> jax.Array:
  """E4M3(A / (c t)), at least its smallest positive number."""
  least = _quotient(amax, quantizer.grid.code_max) * gain
  wanted = least * _HEADROOM if quantizer.scale == "nvfp4_up" else least
  wanted = jnp.clip(wanted, 2.0**-9, E4M3.code_max)
  found = grids.nearest(wanted, E4M3)
  if quantizer.scale == "nvfp4":
    return found
  # Below 2^-6 numbers of E4M3 are 2^-9 apart.
  return jnp.where(found < least, found + 2.0**-9, found)
