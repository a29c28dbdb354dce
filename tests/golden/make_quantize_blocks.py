"""Makes `quantize_blocks.npz` with gfloat 0.5.2 (PyPI), in pure Python.

    pip install gfloat==0.5.2 && python tests/golden/make_quantize_blocks.py

Blocks of 32 float32 numbers and what MX makes of them: `gfloat.quantize_block`
under OCP's scale rule, and with the scale rounded up.
"""

import math
import pathlib

import gfloat
import numpy as np
from gfloat import formats

NAMES = ("mxfp4_e2m1", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2")
NAMES = (*NAMES, "mxint8")


def inputs():
  """[120, 32]: many magnitudes, ties, clusters, zeros."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(120, 32))
  x[:60] *= 2.0 ** rng.integers(-60, 60, size=(60, 1))
  x[60:70] = 0.97 + 0.005 * rng.normal(size=(10, 32))
  # Few bits, as after a cast to bfloat16: many exact ties.
  x[70:100] = np.round(x[70:100] * 32) / 32
  x[100:104] = 2.0 ** rng.integers(-8, 8, size=(4, 32))
  x[104] = 0
  x[105, 1:] = 0
  return x.astype(np.float32)


def ceil_scale(largest):
  """A scale rule for `quantize_block`: nothing exceeds the format's largest."""

  def compute(emax, block):
    del emax
    top = float(np.max(np.abs(block)))
    if top == 0:
      return 1.0
    exponent = math.frexp(top)[1] - math.frexp(largest)[1]
    return 2.0 ** (exponent + (top > largest * 2.0**exponent))

  return compute


def main():
  """Writes the file beside this one."""
  data = dict(x=inputs())
  for name in NAMES:
    block = getattr(formats, f"format_info_{name}")
    rules = dict(
      pow2_floor=gfloat.block.compute_scale_amax,
      pow2_ceil=ceil_scale(float(block.etype.max)),
    )
    short = "MXINT8" if name == "mxint8" else name.split("_")[1].upper()
    for rule, compute in rules.items():
      rows = [
        gfloat.quantize_block(block, row, compute)
        for row in data["x"].astype(np.float64)
      ]
      data[f"{short}/{rule}"] = np.asarray(rows, np.float32)
  path = pathlib.Path(__file__).with_name("quantize_blocks.npz")
  np.savez_compressed(path, **data)


if __name__ == "__main__":
  main()
