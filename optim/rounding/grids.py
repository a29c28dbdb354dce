"""Grids of numbers of few bits, and exact arithmetic on them.

A grid is the set of numbers that one element of a block can be, in units of the
block's scale. All arithmetic is in float32 (or float64), so a format works on a
platform that has no type for it. Powers of two are read from the bits and built
from bits, because jitted `log2` and `exp2` miss some powers.

Sources: OCP Microscaling Formats (MX) v1.0, 2023, for the floating formats and
INT8 of MX. INT4 and INT8 are symmetric: -8 and -128 stay unused.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Grid:
  """A symmetric set of codes; hashable.

  Attributes:
    name: The name of the constant, e.g. "INT4".
    code_max: The largest code.
    mantissa_bits: m of a floating format, whose codes are 2^(p - m) apart in
      the binade [2^p, 2^(p + 1)). None for equal spacing.
    min_exponent: p of the smallest normal code; codes below have the same
      spacing. With equal spacing: log2 of the spacing.
    max_exponent: floor(log2(code_max)).
  """

  name: str
  code_max: float
  mantissa_bits: int | None
  min_exponent: int
  max_exponent: int

  def codes(self) -> np.ndarray:
    """All codes in increasing order, float64."""
    if self.mantissa_bits is None:
      count = round(self.code_max / 2.0**self.min_exponent)
      return np.arange(-count, count + 1) * 2.0**self.min_exponent
    per_binade = 2**self.mantissa_bits
    fraction = np.arange(per_binade) / per_binade
    subnormal = fraction * 2.0**self.min_exponent
    exponents = np.arange(self.min_exponent, self.max_exponent + 1.0)
    normal = np.ravel((1 + fraction) * 2.0 ** exponents[:, None])
    positive = np.concatenate([subnormal, normal])
    positive = positive[positive <= self.code_max]
    return np.concatenate([-positive[:0:-1], positive])


INT4 = Grid("INT4", 7.0, None, 0, 2)
INT8 = Grid("INT8", 127.0, None, 0, 6)
MXINT8 = Grid("MXINT8", 127 / 64, None, -6, 0)
E2M1 = Grid("E2M1", 6.0, 1, 0, 2)
E2M3 = Grid("E2M3", 7.5, 3, 0, 2)
E3M2 = Grid("E3M2", 28.0, 2, -2, 4)
E4M3 = Grid("E4M3", 448.0, 3, -6, 8)
E5M2 = Grid("E5M2", 57344.0, 2, -14, 15)

_STORAGE = {
  "INT4": jnp.int4,
  "INT8": jnp.int8,
  "MXINT8": jnp.int8,
  "E2M1": jnp.float4_e2m1fn,
  "E2M3": jnp.uint8,
  "E3M2": jnp.uint8,
  "E4M3": jnp.float8_e4m3fn,
  "E5M2": jnp.float8_e5m2,
}


def floor_log2(x: jax.Array) -> jax.Array:
  """floor(log2 |x|), read from the bits.

  Args:
    x: float32 or float64.

  Returns:
    int32, of the shape of x. Subnormal numbers and 0 give -127 (float64:
    -1023), infinities and NaNs give 128 (float64: 1024).
  """
  integer, bits, bias = _layout(x.dtype)
  raw = jax.lax.bitcast_convert_type(x, integer)
  field = (raw >> bits) & (2 * bias + 1)
  return field.astype(jnp.int32) - bias


def power_of_two(exponent: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """2^exponent built from the bits; exponent >= -126 (float64: -1022)."""
  integer, bits, bias = _layout(dtype)
  field = (exponent + bias).astype(integer) << bits
  return jax.lax.bitcast_convert_type(field, dtype)


def times_power(
  x: jax.Array, exponent: jax.Array, factor: jax.Array | float = 1.0
) -> jax.Array:
  """x 2^exponent, exact for exponents in [-252, 254]; times a factor."""
  half = exponent >> 1
  x = x * (power_of_two(half, x.dtype) * factor)
  return x * power_of_two(exponent - half, x.dtype)


def locate(y: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array | float]:
  """(k, spacing) with y = k spacing; the codes around y have whole k.

  Returns:
    k, which is exact, and the spacing, which is a power of two.
  """
  if grid.mantissa_bits is None:
    spacing = 2.0**grid.min_exponent
    return y / spacing, spacing
  spacing = _binade(y, grid) * 2.0**-grid.mantissa_bits
  return y / spacing, spacing


def nearest(y: jax.Array, grid: Grid) -> jax.Array:
  """The code closest to y, ties to the even code, for |y| <= code_max.

  A float is rounded by adding a number whose last digit is worth the spacing,
  and taking this number away again.
  """
  if grid.mantissa_bits is None:
    spacing = 2.0**grid.min_exponent
    return jnp.round(y / spacing) * spacing
  _, bits, _ = _layout(y.dtype)
  large = _binade(y, grid) * (1.5 * 2.0 ** (bits - grid.mantissa_bits))
  return jnp.copysign((y + large) - large, y)


def _binade(y: jax.Array, grid: Grid) -> jax.Array:
  """2^floor(log2 |y|), at least that of the smallest normal code."""
  integer, bits, bias = _layout(y.dtype)
  raw = jax.lax.bitcast_convert_type(y, integer)
  power = raw & jnp.asarray((2 * bias + 1) << bits, integer)
  power = jax.lax.bitcast_convert_type(power, y.dtype)
  return jnp.maximum(power, 2.0**grid.min_exponent)


def bracket(y: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
  """The codes below and above y; both are y if y is a code."""
  k, spacing = locate(y, grid)
  return jnp.floor(k) * spacing, jnp.ceil(k) * spacing


def encode(codes: jax.Array, grid: Grid) -> jax.Array:
  """Converts codes from numbers to their storage type."""
  dtype = _STORAGE[grid.name]
  if grid.name == "MXINT8":
    codes = codes * 64
  if dtype != jnp.uint8:
    return codes.astype(dtype)
  # The bit patterns of the magnitudes are in the order of their values.
  magnitudes = jnp.asarray(_magnitudes(grid), codes.dtype)
  index = jnp.searchsorted(magnitudes, jnp.abs(codes)).astype(dtype)
  return index | (jnp.signbit(codes).astype(dtype) << 5)


def decode(stored: jax.Array, grid: Grid) -> jax.Array:
  """Converts stored codes to float32 numbers."""
  if _STORAGE[grid.name] == jnp.uint8:
    positive = _magnitudes(grid)
    table = np.concatenate([positive, -positive]).astype(np.float32)
    return jnp.asarray(table)[stored]
  codes = stored.astype(jnp.float32)
  return codes / 64 if grid.name == "MXINT8" else codes


def _magnitudes(grid: Grid) -> np.ndarray:
  codes = grid.codes()
  return codes[codes >= 0]


def _layout(dtype: jnp.dtype):
  """(integer of the same size, mantissa bits, exponent bias)."""
  if dtype == jnp.float64:
    return jnp.int64, 52, 1023
  return jnp.int32, 23, 127
