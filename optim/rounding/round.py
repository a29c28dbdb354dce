"""Block-wise quantisation of arrays: scales, rounding, gradients, storage.

A block of elements x_i shares a scale s, and each element becomes s times a
code of a `Grid`. Values are returned as ordinary float32 arrays on the grid
("fake quantised", float64 for float64 inputs); `quantize` and `dequantize`
go to and from real storage types.

Rounding at random, R(x) is the code above or below x with such probabilities
that E[R] = x and Var[R] = (upper - x)(x - lower).

Differs from what a reader may expect: the largest element of an "absmax" block
has the largest code by definition, not by division; as c (A / c) need not be A
in float32, its value may be the float next to it, but its block's scale stays,
so that rounding again changes nothing. Blocks need not divide the axis, the
last one is then shorter; and float32 numbers below 2^-126 count as zero where
the platform flushes them (XLA on CPU does).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..common.meshes import on_any_mesh
from . import grids
from .scales import (
  Quantizer,
  as_floats,
  cut,
  from_codes,
  load,
  saturated,
  store,
  to_blocks,
  to_codes,
  to_largest,
  uncut,
)


def step_size(x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """Scale s of each element's block, in the units of x.

  Differentiable for "absmax" (largest elements that tie share the gradient),
  a constant for the other rules.

  Args:
    x: Any floating array.
    quantizer: Its blocks and rule.

  Returns:
    An array that broadcasts to x, never 0: 1 for blocks of zeros, and powers
    of two are at least 2^-126.
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
  """Grid points (lower, upper) around each element, in the units of x.

  Both are the same where x is on the grid or saturated.

  Args:
    x: Any floating array.
    quantizer: Its blocks and grid.

  Returns:
    Two arrays like x, float32.
  """
  x = as_floats(x)
  blocks = to_blocks(x, quantizer)
  codes = to_codes(blocks, quantizer.grid)
  lower, upper = grids.bracket(codes, quantizer.grid)

  def put_back(codes):
    return uncut(from_codes(codes, blocks.scale), x, quantizer)

  return put_back(lower), put_back(upper)


def round_nearest(x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """The closest grid point, ties to the even code; without a gradient.

  Args:
    x: Any floating array.
    quantizer: Its blocks and grid.

  Returns:
    Like x, float32.
  """
  x = as_floats(x)
  blocks = to_blocks(jax.lax.stop_gradient(x), quantizer)
  codes = grids.nearest(to_codes(blocks, quantizer.grid), quantizer.grid)
  return uncut(from_codes(codes, blocks.scale), x, quantizer)


def round_random(
  key: jax.Array, x: jax.Array, quantizer: Quantizer
) -> jax.Array:
  """Upper or lower grid point, at random such that the mean is x.

  With 16 random bits an element: the mean is off by at most 2^-17 of the gap.
  Unbiased for "absmax" and "pow2_ceil"; "pow2_floor" and "nvfp4" saturate the
  elements beyond the largest code, and are biased towards zero there.

  Args:
    key: Of `jax.random`; draws are independent over elements.
    x: Any floating array.
    quantizer: Its blocks and grid.

  Returns:
    Like x, float32; without a gradient.
  """
  x = as_floats(x)
  blocks = to_blocks(jax.lax.stop_gradient(x), quantizer)
  codes = to_codes(blocks, quantizer.grid)
  k, spacing = grids.locate(codes, quantizer.grid)
  lower = jnp.floor(k)
  bits = jax.random.bits(key, x.shape, jnp.uint16)
  draw, _ = cut((bits.astype(k.dtype) + 0.5) / 2**16, quantizer)
  # k - lower is exact, and 0 on the grid: such elements never move.
  k = lower + (draw < k - lower)
  return uncut(from_codes(k * spacing, blocks.scale), x, quantizer)


def rounding_variance(x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """Variance of `round_random`, (upper - x)(x - lower).

  For integers s^2 d (1 - d) with d = frac(x / s). 0 on the grid, so at the
  largest element of an "absmax" block, and where x is saturated.

  Args:
    x: Any floating array.
    quantizer: Its blocks and grid.

  Returns:
    Like x, float32.
  """
  x = as_floats(x)
  blocks = to_blocks(x, quantizer)
  codes = to_codes(blocks, quantizer.grid)
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
  saturated_gradient: bool = True,
) -> jax.Array:
  r"""Rounds, and passes the gradient as if it had not.

  With `scale_gradient`, only the rounding of x / s is passed; s moves with the
  largest element m of its block, which gets in addition

      sign(x_m) / c  sum_i (code_i - x_i / s) dL_i     (shared by ties).

  Args:
    x: Any floating array.
    quantizer: Its blocks and grid.
    key: For `round_random`; None is `round_nearest`.
    scale_gradient: See above; of no effect but for "absmax", as the other
      scales are constants.
    saturated_gradient: False stops the gradient where |x| exceeds c s.

  Returns:
    Like x, float32.
  """
  x = as_floats(x)
  return _straight_through(
    x, key, quantizer, scale_gradient, saturated_gradient
  )


def quantize(x: jax.Array, quantizer: Quantizer) -> tuple[jax.Array, Any]:
  """Rounds to nearest and stores: codes and scales.

  Args:
    x: Any floating array.
    quantizer: Its blocks and grid.

  Returns:
    Codes like x in int4, int8, float8, float4 or, for E2M3 and E3M2, the six
    bits in a uint8; and one scale a block: float32 ("absmax"), float8_e8m0fnu
    (powers of two), or for "nvfp4" float8_e4m3fn with a float32 for the array.
  """
  x = as_floats(x)
  blocks = to_blocks(x, quantizer)
  codes = grids.nearest(to_codes(blocks, quantizer.grid), quantizer.grid)
  codes = uncut(codes, x, quantizer)
  return grids.encode(codes, quantizer.grid), store(blocks, quantizer)


def dequantize(codes: jax.Array, scale: Any, quantizer: Quantizer) -> jax.Array:
  """Undoes `quantize`: `round_nearest` of the array, float32.

  Args:
    codes: As stored.
    scale: As stored.
    quantizer: The same.

  Returns:
    Like `codes`, float32.
  """
  values = grids.decode(codes, quantizer.grid)
  blocks, axes = cut(values, quantizer)
  loaded = load(scale, axes, quantizer)
  return uncut(from_codes(blocks, loaded), values, quantizer)


def saturated_share(x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """Share of elements beyond the largest code of their block; 0 for "absmax".

  Args:
    x: Any floating array.
    quantizer: Its blocks and grid.

  Returns:
    A scalar in [0, 1].
  """
  x = as_floats(x)
  blocks = to_blocks(x, quantizer)
  share = jnp.mean(saturated(blocks, quantizer), dtype=blocks.x.dtype)
  return share * (blocks.x.size / max(x.size, 1))  # Padding does not saturate.


@on_any_mesh
def unique_codes(x: jax.Array, quantizer: Quantizer) -> jax.Array:
  """Number of different codes in use over all blocks, at most the grid's.

  Args:
    x: Any floating array.
    quantizer: Its blocks and grid.

  Returns:
    int32 [].
  """
  x = as_floats(x)
  blocks = to_blocks(x, quantizer)
  codes = grids.nearest(to_codes(blocks, quantizer.grid), quantizer.grid)
  codes = uncut(codes, x, quantizer)
  table = jnp.asarray(quantizer.grid.codes(), codes.dtype)
  used = jnp.zeros(table.shape, bool)
  return jnp.sum(used.at[jnp.searchsorted(table, codes)].set(True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _straight_through(x, key, quantizer, scale_gradient, saturated_gradient):
  if key is None:
    return round_nearest(x, quantizer)
  return round_random(key, x, quantizer)


def _straight_through_fwd(
  x, key, quantizer, scale_gradient, saturated_gradient
):
  y = _straight_through(x, key, quantizer, scale_gradient, saturated_gradient)
  return y, (x, y if scale_gradient else None)


def _straight_through_bwd(
  quantizer, scale_gradient, saturated_gradient, residuals, cotangent
):
  x, y = residuals
  blocks = to_blocks(x, quantizer)
  slope, _ = cut(cotangent, quantizer)
  passed = slope
  if not saturated_gradient:
    passed = jnp.where(saturated(blocks, quantizer), 0, slope)
  if scale_gradient and quantizer.scale == "absmax":
    moved = (cut(y, quantizer)[0] - blocks.x) / blocks.scale.factor
    passed = passed + to_largest(blocks, moved * slope, quantizer.grid)
  return uncut(passed, x, quantizer).astype(x.dtype), None


_straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)
