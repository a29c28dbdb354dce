"""Microscaling formats against microxcaling, TransformerEngine and torchao."""

import pathlib

import jax
import numpy as np
import pytest
from oracles import microscaling

NPZ = np.load(pathlib.Path(__file__).parents[1] / "golden/mx.npz")
# Where the peers err or the CPU flushes: the judge is OCP's rule in float64.
_JUDGED = ("huge", "powers", "edges", "tiny")
_SECTIONS = ("quantize", "linear", "matmul", "nvfp4", "torchao", "bump")


@pytest.fixture(scope="module", autouse=True)
def _many_shapes():
  """JAX keeps 8,192 calls of compiled functions; these would be most."""
  yield
  jax.clear_caches()


def _cases():
  """Keys by the first parts of their path, for one test each."""
  cases = {}
  for key in NPZ.files:
    section, *rest = key.split("/")
    if section in _SECTIONS and not key.endswith("released_bump"):
      cases.setdefault("/".join([section, *rest[:2]][:3]), []).append(key)
  return cases


CASES = _cases()


def _equal(found, wanted):
  assert found.dtype == wanted.dtype
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
  "case",
  [
    c
    for c in CASES
    if c.startswith("quantize/") and c.split("/")[1] not in
    (*_JUDGED, "subnormal")
  ],
)  # fmt: skip
def test_quantize(case):
  for key in CASES[case]:
    _equal(microscaling.run(NPZ, key), NPZ[key])


@pytest.mark.parametrize(
  "case", [c for c in CASES if c.split("/")[:2][-1] in _JUDGED and "_" in c]
)
def test_quantize_where_a_peer_errs(case):
  for key in CASES[case]:
    *_, name, form, axis, block, mode = key.split("/")
    if mode != "even":
      continue
    x = NPZ[f"quantize/{name}/x"]
    axis, block = int(axis[4:]), int(block[5:])
    found = microscaling.run(NPZ, key)
    wide = microscaling.blocks(x, form, axis, block, "even", "float64")
    # Subnormal inputs count as zero, and 2^-127 is not a scale here.
    normal = (np.abs(x) >= 2.0**-126) | (x == 0)
    near = np.abs(wide) >= 2.0**-126
    kept = normal & (near | (wide == 0)) if name != "tiny" else normal
    off = (found != wide) & kept & ~np.isnan(wide)
    assert off.sum() <= (3 if name == "tiny" else 0), key


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("linear/")])
def test_linear(case):
  for key in CASES[case]:
    found, wanted = microscaling.run(NPZ, key), NPZ[key]
    if wanted.dtype.kind == "U":
      assert found == wanted
      continue
    assert found.dtype == wanted.dtype
    gap, most = np.abs(found - wanted), np.abs(wanted).max()
    if "bfloat16" in case:  # One unit of bfloat16, in few entries.
      assert np.mean(gap > 5e-7 * most) < 0.01
      assert np.all(gap <= 2.0**-7 * np.abs(wanted))
    else:
      assert gap.max() <= 5e-7 * most


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("matmul/")])
def test_matmul(case):
  for key in CASES[case]:
    found, wanted = microscaling.run(NPZ, key), NPZ[key]
    assert np.abs(found - wanted).max() <= 5e-7 * np.abs(wanted).max()


@pytest.mark.parametrize(
  "case", [c for c in CASES if c.split("/")[0] in ("nvfp4", "torchao", "bump")]
)
def test_two_levels_and_other_scales(case):
  for key in CASES[case]:
    found, wanted = microscaling.run(NPZ, key), NPZ[key]
    if "faint_blocks" not in key or key.endswith(("x", "amax")):
      _equal(found, wanted)
      continue
    # A scale below E4M3's smallest number: the peer's is 0, ours is 2^-9.
    if key.endswith("scale"):
      other = found != wanted
      assert np.all(wanted[other] == 0)
      assert np.all(found[other] == 2.0**-9)
    else:
      scale = NPZ[key.replace("codes", "scale")]
      kept = np.repeat(scale > 0, 16, -1)
      _equal(found[kept], wanted[kept])


def test_the_released_bump_is_not_the_scale_rounded_up():
  """It takes the largest of all blocks: single elements of many move."""
  differ = {}
  for name in ("many_blocks", "one_block", "gains"):
    x, released = NPZ[f"bump/{name}/x"], NPZ[f"bump/{name}/released_bump"]
    up = microscaling.blocks(x, "fp8_e4m3", -1, 32, "even", "pow2_ceil")
    differ[name] = int(np.sum(up != released))
  assert differ == {"many_blocks": 3, "one_block": 0, "gains": 0}


def test_other_keys_raise():
  for key in ("norm/x", "dither/x", "quantize/none/x", "bump/gains/released"):
    with pytest.raises(KeyError):
      microscaling.run(NPZ, key)
  with pytest.raises(KeyError):
    microscaling.run(NPZ, "bump/gains/released_bump")
