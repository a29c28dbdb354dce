"""Block quantisation by table look-up in NumPy: every code is listed.

Floating formats are listed by ml_dtypes from their bit patterns; exponents come
from `frexp`. One block at a time, one element at a time.
"""

import math

import ml_dtypes
import numpy as np

_FLOATS = {
  "E2M1": (ml_dtypes.float4_e2m1fn, 4),
  "E2M3": (ml_dtypes.float6_e2m3fn, 6),
  "E3M2": (ml_dtypes.float6_e3m2fn, 6),
  "E4M3": (ml_dtypes.float8_e4m3fn, 8),
  "E5M2": (ml_dtypes.float8_e5m2, 8),
}
FLOATS = tuple(_FLOATS)


def table(name):
  """Codes >= 0 in the order of their bit patterns, float64."""
  if name in _FLOATS:
    dtype, bits = _FLOATS[name]
    patterns = np.arange(2 ** (bits - 1), dtype=np.uint8)
    codes = patterns.view(dtype).astype(np.float64)
    return codes[np.isfinite(codes)]
  largest, unit = {"INT4": (7, 1), "INT8": (127, 1), "MXINT8": (127, 64)}[name]
  return np.arange(largest + 1) / unit


def nearest(y, name):
  """The code closest to y; ties go to the even bit pattern; saturates."""
  codes = table(name)
  size = abs(float(y))
  above = int(np.searchsorted(codes, size))
  if above == len(codes):
    index = above - 1
  elif above == 0:
    index = 0
  else:
    below = above - 1
    gaps = size - codes[below], codes[above] - size
    index = below if gaps[0] < gaps[1] else above
    if gaps[0] == gaps[1]:
      index = below + below % 2
  return math.copysign(codes[index], y)


def scale(block, name, rule):
  """s of one block, in its dtype."""
  dtype, top = block.dtype, table(name)[-1]
  largest = np.max(np.abs(block))
  if not np.all(np.isfinite(block)):
    return dtype.type(np.nan)
  if largest == 0:
    return dtype.type(1)
  if rule == "absmax":
    return largest / dtype.type(top)
  exponent = math.frexp(largest)[1] - math.frexp(top)[1]
  if rule == "pow2_ceil" and float(largest) > top * 2.0**exponent:
    exponent += 1
  return dtype.type(2.0 ** max(-126, min(127, exponent)))


def round_block(block, name, rule):
  """Round to nearest, one block."""
  s = scale(block, name, rule)
  if np.isnan(s):
    return np.full_like(block, np.nan)
  codes = np.array([nearest(x / s, name) for x in block], block.dtype)
  largest = np.abs(block) == np.max(np.abs(block))
  if rule == "absmax" and np.any(block):
    codes[largest] = np.copysign(table(name)[-1], block[largest])
  return codes * s


def round_rows(x, name, rule, size=None):
  """Round to nearest, blocks of `size` along the last axis of a matrix."""
  out = np.empty_like(x)
  for i, row in enumerate(x):
    for start in range(0, len(row), size or len(row)):
      part = slice(start, start + (size or len(row)))
      out[i, part] = round_block(row[part], name, rule)
  return out


def penalty(w, g, name, s):
  """sum g (u - w)(w - l) / 2 at given scales s, float64; max excluded."""
  codes = np.concatenate([-table(name)[:0:-1], table(name)])
  total = 0.0
  for wi, gi, si in zip(w, g, s, strict=True):
    z = wi / si
    above = int(np.searchsorted(codes, z))
    if above in (0, len(codes)) or codes[above] == z:
      continue
    total += gi * (codes[above] * si - wi) * (wi - codes[above - 1] * si) / 2
  return total
