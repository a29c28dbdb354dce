"""Block-wise quantisation of arrays: scales, rounding, gradients, storage.

A block of elements x_i shares a scale s, and each element becomes s times a
code of a `Grid`. Values are returned as ordinary float32 arrays on the grid
("fake quantised"; float64 for float64 inputs). `quantize` and `dequantize`
convert to and from real storage types.

With rounding at random, R(x) is the grid point above or below x, with
probabilities that give E[R] = x and Var[R] = (upper - x)(x - lower).

Three facts that a reader may not expect. The largest element of an "absmax"
block has the largest code by definition, not by division. In float32, c (A / c)
need not be A, so the value of this element may be the float next to A. The
scale of the block does not change, so rounding again changes nothing. Second,
blocks need not divide the axis; the last block is then shorter. Third, float32
numbers below 2^-126 count as zero if the platform flushes them, as XLA does on
a CPU.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..common.meshes import on_any_mesh
from . import grids
from .blocks import (
  as_floats,
  cut,
  saturated,
  to_blocks,
  to_codes,
  to_largest,
  uncut,
)
from .scales import Quantizer, from_codes
from .storage import load, store


def step_size(x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """The scale s of each element's block, in the units of x.

  For "absmax" the scale is differentiable, and largest elements that tie share
  the gradient. For the other rules the scale is a constant.

  Args:
    x: Any floating array.
    quantizer: The blocks and the rule of the scales.

  Returns:
    An array that broadcasts to x. The scale is never 0: it is 1 for a block of
    zeros, and a power of two is at least 2^-126.
  """
  x = as_floats(x)
  blocks = to_blocks(x, quantizer)
  s = from_codes(jnp.ones((), blocks.x.dtype), blocks.scale)
  if quantizer.block_size is None:
    return s
  return uncut(jnp.broadcast_to(s, blocks.x.shape), x, quantizer)


def neighbours(
  x: jax.Array, quantizer: Quantizer
) -> tuple[jax.Array, jax.Array]:
  """The grid points (lower, upper) around each element, in the units of x.

  lower and upper are equal where x is on the grid or saturated.

  Args:
    x: Any floating array.
    quantizer: The blocks, the grid and the rule of the scales.

  Returns:
    Two arrays like x, float32.
  """
  x, blocks, codes = _in_codes(x, quantizer)
  lower, upper = grids.bracket(codes, quantizer.grid)

  def put_back(codes):
    return uncut(from_codes(codes, blocks.scale), x, quantizer)

  return put_back(lower), put_back(upper)


def round_nearest(x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """Rounds to the closest grid point, ties to the even code; no gradient.

  Args:
    x: Any floating array.
    quantizer: The blocks, the grid and the rule of the scales.

  Returns:
    Like x, float32.
  """
  x, blocks, codes = _in_codes(jax.lax.stop_gradient(x), quantizer)
  codes = grids.nearest(codes, quantizer.grid)
  return uncut(from_codes(codes, blocks.scale), x, quantizer)


def round_random(
  key: jax.Array, x: jax.Array, quantizer: Quantizer
) -> jax.Array:
  """Rounds to the upper or lower grid point, at random, with mean x.

  The draw has 16 random bits an element, so the mean is off by at most 2^-17 of
  the gap. "absmax", "pow2_ceil" and "nvfp4_up" are unbiased. "pow2_floor" and
  "nvfp4" saturate elements beyond the largest code, and are biased towards zero
  there.

  Args:
    key: A key of `jax.random`; draws are independent over elements.
    x: Any floating array.
    quantizer: The blocks, the grid and the rule of the scales.

  Returns:
    Like x, float32; without a gradient.
  """
  x = as_floats(x)
  return round_by(jax.random.bits(key, x.shape, jnp.uint16), x, quantizer)


def round_by(bits: jax.Array, x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """`round_random` by given bits, uint16 and of the shape of x."""
  x, blocks, codes = _in_codes(jax.lax.stop_gradient(x), quantizer)
  k, spacing = grids.locate(codes, quantizer.grid)
  lower = jnp.floor(k)
  draw, _ = cut((bits.astype(k.dtype) + 0.5) / 2**16, quantizer)
  # k - lower is exact, and 0 on the grid: such elements never move.
  k = lower + (draw < k - lower)
  return uncut(from_codes(k * spacing, blocks.scale), x, quantizer)


def rounding_variance(x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """The variance of `round_random`, (upper - x)(x - lower).

  For integers the variance is s^2 d (1 - d) with d = frac(x / s). The variance
  is 0 on the grid, and where x is saturated. The largest element of an "absmax"
  block is on the grid.

  Args:
    x: Any floating array.
    quantizer: The blocks, the grid and the rule of the scales.

  Returns:
    Like x, float32.
  """
  x, blocks, codes = _in_codes(x, quantizer)
  lower, upper = grids.bracket(codes, quantizer.grid)
  # In units of s, where neither difference can round below zero.
  variance = (upper - codes) * (codes - lower)
  for _ in range(2):
    variance = from_codes(variance, blocks.scale)
  return uncut(variance, x, quantizer)


def straight_through(
  x: jax.Array,
  quantizer: Quantizer,
  *,
  key: jax.Array | None = None,
  scale_gradient: bool = False,
) -> jax.Array:
  r"""Rounds x, and passes the gradient as if x had not been rounded.

  With `scale_gradient`, the gradient passes only the rounding of x / s. The
  scale s moves with the largest element m of its block, which gets in addition

      sign(x_m) / c  sum_i (code_i - x_i / s) dL_i     (shared by ties).

  Args:
    x: Any floating array.
    quantizer: The blocks, the grid and the rule of the scales.
    key: The key of `round_random`; None is `round_nearest`.
    scale_gradient: True differentiates the scale, see above. It has an effect
      for "absmax" only: the other scales are constants.

  Returns:
    Like x, float32.
  """
  return _straight_through(as_floats(x), key, quantizer, scale_gradient)


def quantize(x: jax.Array, quantizer: Quantizer) -> tuple[jax.Array, Any]:
  """Rounds to nearest and returns codes and scales in storage types.

  Args:
    x: Any floating array.
    quantizer: The blocks, the grid and the rule of the scales.

  Returns:
    Codes of the shape of x in int4, int8, float8, float4 or, for E2M3 and E3M2,
    the six bits in a uint8; and one scale a block. Scales are float32 for
    "absmax", float8_e8m0fnu for powers of two, and for "nvfp4" float8_e4m3fn
    together with a float32 for the array.
  """
  x, blocks, codes = _in_codes(x, quantizer)
  codes = uncut(grids.nearest(codes, quantizer.grid), x, quantizer)
  return grids.encode(codes, quantizer.grid), store(blocks, quantizer)


def dequantize(codes: jax.Array, scale: Any, quantizer: Quantizer) -> jax.Array:
  """Undoes `quantize`, up to the rounding.

  Args:
    codes: The codes that `quantize` returned.
    scale: The scales that `quantize` returned.
    quantizer: The quantizer that `quantize` got.

  Returns:
    `round_nearest` of the array that was stored, float32.
  """
  values = grids.decode(codes, quantizer.grid)
  blocks, axes = cut(values, quantizer)
  loaded = load(scale, axes, quantizer)
  return uncut(from_codes(blocks, loaded), values, quantizer)


def saturated_share(x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """The share of elements beyond the largest code; 0 for "absmax".

  Args:
    x: Any floating array.
    quantizer: The blocks, the grid and the rule of the scales.

  Returns:
    A scalar in [0, 1].
  """
  x = as_floats(x)
  blocks = to_blocks(x, quantizer)
  share = jnp.mean(saturated(blocks, quantizer), dtype=blocks.x.dtype)
  return share * (blocks.x.size / max(x.size, 1))  # Padding does not saturate.


@on_any_mesh
def unique_codes(x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """The number of different codes that the blocks of x use, all together.

  Args:
    x: Any floating array.
    quantizer: The blocks, the grid and the rule of the scales.

  Returns:
    int32 [].
  """
  x, _, codes = _in_codes(x, quantizer)
  codes = uncut(grids.nearest(codes, quantizer.grid), x, quantizer)
  table = jnp.asarray(quantizer.grid.codes(), codes.dtype)
  used = jnp.zeros(table.shape, bool)
  return jnp.sum(used.at[jnp.searchsorted(table, codes)].set(True))


def _in_codes(x, quantizer):
  """(x as floats, its blocks, x / s limited to the range of the grid)."""
  x = as_floats(x)
  blocks = to_blocks(x, quantizer)
  return x, blocks, to_codes(blocks, quantizer.grid)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _straight_through(x, key, quantizer, scale_gradient):
  if key is None:
    return round_nearest(x, quantizer)
  return round_random(key, x, quantizer)


def _straight_through_fwd(x, key, quantizer, scale_gradient):
  y = _straight_through(x, key, quantizer, scale_gradient)
  return y, (x, y if scale_gradient else None)


def _straight_through_bwd(quantizer, scale_gradient, residuals, cotangent):
  x, y = residuals
  blocks = to_blocks(x, quantizer)
  slope, _ = cut(cotangent, quantizer)
  passed = slope
  if scale_gradient and quantizer.scale == "absmax":
    moved = (cut(y, quantizer)[0] - blocks.x) / blocks.scale.factor
    passed = passed + to_largest(blocks, moved * slope, quantizer.grid)
  return uncut(passed, x, quantizer).astype(x.dtype), None


_straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)
