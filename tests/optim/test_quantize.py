"""Rounding against ml_dtypes, gfloat, a NumPy loop, and its own laws."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import rounding

import optim

GOLDEN = pathlib.Path(__file__).parent.parent / "golden/quantize_blocks.npz"
NAMES = (*rounding.FLOATS, "INT4", "INT8", "MXINT8")
RULES = ("absmax", "pow2_floor", "pow2_ceil")
# One vector each; the kernels [.., 2] are one compilation a format and rule.
nearest = jax.jit(optim.round_nearest, static_argnums=1)
random = jax.jit(optim.round_random, static_argnums=2)
neighbours = jax.jit(optim.neighbours, static_argnums=1)
variances = jax.jit(optim.rounding_variance, static_argnums=1)


def _quantizer(name, *args, **kwargs):
  return optim.Quantizer(getattr(optim, name), *args, **kwargs)


def _numbers(shape, seed=0, decades=6):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=shape) * 10.0 ** rng.uniform(-decades, decades, shape)
  return x.astype(np.float32)


def _equal(actual, wanted):
  np.testing.assert_array_equal(np.asarray(actual), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_codes_are_the_formats(name):
  codes = getattr(optim, name).codes()
  positive = rounding.table(name)
  _equal(codes, np.concatenate([-positive[:0:-1], positive]))
  grid = getattr(optim, name)
  assert grid.code_max == codes[-1]
  assert 2.0**grid.max_exponent <= codes[-1] < 2.0 ** (grid.max_exponent + 1)


@pytest.mark.parametrize("name", rounding.FLOATS)
def test_elements_are_casts(name):
  codes = getattr(optim, name).codes()
  middle = ((codes[1:] + codes[:-1]) / 2).astype(np.float32)
  infinity = np.float32(np.inf)
  x = np.concatenate(
    [
      codes, middle, np.nextafter(middle, infinity),
      np.nextafter(middle, -infinity), _numbers(100_000),
    ]
  ).astype(np.float32)  # fmt: skip
  x = np.clip(x, -codes[-1], codes[-1])
  # A block of one, whose scale is 1 as its largest has the top exponent.
  x = np.stack([x, np.full_like(x, codes[-1])], axis=1)
  dtype, _ = rounding._FLOATS[name]
  _equal(
    nearest(x, _quantizer(name, -1, scale="pow2_ceil")),
    x.astype(dtype).astype(np.float32),
  )


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_are_next_in_the_table(name):
  # On each code and one float32 above and below, where exponents go wrong.
  codes = getattr(optim, name).codes()
  inner, far = codes[1:-1].astype(np.float32), np.float32(1e9)
  x = [inner, np.nextafter(inner, far), np.nextafter(inner, -far)]
  x = np.concatenate(x)
  x = np.where(np.abs(x) < 1e-30, 0, x)  # Not normal float32 numbers.
  row = np.append(x, codes[-1].astype(np.float32))
  q = _quantizer(name, scale="pow2_ceil")
  lower, upper = neighbours(row, q)
  _equal(lower[:-1], codes[np.searchsorted(codes, x, side="right") - 1])
  _equal(upper[:-1], codes[np.searchsorted(codes, x, side="left")])


@pytest.mark.parametrize("rule", ["pow2_floor", "pow2_ceil"])
@pytest.mark.parametrize("name", [*rounding.FLOATS, "MXINT8"])
def test_blocks_are_those_of_gfloat(name, rule):
  with np.load(GOLDEN) as data:
    x, wanted = data["x"], data[f"{name}/{rule}"]
  _equal(nearest(x, _quantizer(name, -1, 32, rule)), wanted)


@pytest.mark.parametrize("rule", ["absmax", "pow2_ceil"])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_those_of_a_loop(name, rule):
  # 37 = 16 + 16 + 5: the last block is shorter.
  x = _numbers((12, 37), decades=3)
  x[0] = 0
  x[1, 3], x[2, 20], x[3, 30] = np.nan, np.inf, -np.inf
  x[4, 16:] = 0
  wanted = rounding.round_rows(x, name, rule, 16)
  quantizer = _quantizer(name, -1, 16, rule)
  _equal(nearest(x, quantizer), wanted)
  assert np.isnan(wanted).sum() == 16 + 16 + 16
  if name not in ("INT4", "E4M3"):
    return
  _equal(optim.round_nearest(x, quantizer), wanted)  # Not jitted: the same.
  _equal(nearest(x.T, _quantizer(name, 0, 16, rule)), wanted.T)
  _equal(
    nearest(x[:, None], _quantizer(name, -1, 64, rule))[:, 0],
    rounding.round_rows(x, name, rule),
  )


@pytest.mark.parametrize("rule", RULES)
def test_no_bad_value_is_lost(rule):
  # A vectorised maximum of floats does lose some, depending on the place.
  q = _quantizer("INT4", -1, 32, rule)
  for bad in (np.nan, np.inf):
    x = np.ones((64, 96), np.float32)
    x[np.arange(64), np.arange(64)] = bad
    wanted = np.ones((64, 3), bool)
    wanted[:, 2] = False
    wanted[:32, 1] = wanted[32:, 0] = False
    actual = np.isnan(nearest(x, q)).reshape(64, 3, 32)
    _equal(actual.all(axis=2), wanted)
    _equal(actual.any(axis=2), wanted)


@pytest.mark.parametrize("rule", RULES)
def test_float64_and_bfloat16(rule):
  with jax.enable_x64(True):
    x = _numbers((6, 32), decades=1).astype(np.float64)
    quantizer = _quantizer("E2M3", -1, 16, rule)
    actual = nearest(x, quantizer)
    assert actual.dtype == np.float64
    _equal(actual, rounding.round_rows(x, "E2M3", rule, 16))
  x = jnp.asarray(x, jnp.bfloat16)
  actual = nearest(x, quantizer)
  assert actual.dtype == jnp.float32
  wide = np.asarray(x, np.float32)
  _equal(actual, rounding.round_rows(wide, "E2M3", rule, 16))


def test_exponents_of_scales_are_exact():
  # At every power of two and one unit below: log2 in float32 misses some.
  powers = np.float32(2.0 ** np.arange(-126, 128))
  x = np.concatenate([powers, np.nextafter(powers[1:], np.float32(0))])[:, None]
  step_size = jax.jit(optim.step_size, static_argnums=1)
  for name in ("INT4", "MXINT8", "E4M3", "E5M2"):
    for rule in ("pow2_floor", "pow2_ceil"):
      s = np.asarray(step_size(x, _quantizer(name, -1, scale=rule)))
      _equal(s[:, 0], [rounding.scale(row, name, rule) for row in x])
      # None is 0: the least is the smallest normal float32.
      assert s.min() >= 2.0**-126


@pytest.mark.parametrize("name", NAMES)
def test_ceil_is_floor_with_a_bump(name):
  top = getattr(optim, name).code_max
  x = _numbers((4000, 8))
  s_floor, s_ceil = (
    np.asarray(optim.step_size(x, _quantizer(name, -1, scale=rule)))
    for rule in ("pow2_floor", "pow2_ceil")
  )
  largest = np.max(np.abs(x), axis=1, keepdims=True)
  _equal(s_ceil, s_floor * np.where(largest > top * s_floor, 2, 1))
  assert np.all(largest <= top * s_ceil)
  assert 0.001 < np.mean(s_ceil > s_floor) < 0.5
  share = jax.jit(optim.saturated_share, static_argnums=1)
  shares = [share(row, _quantizer(name, scale="pow2_floor")) for row in x[:40]]
  _equal(np.array(shares) > 0, (largest > top * s_floor)[:40, 0])


_floats = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@settings(max_examples=60, deadline=None)
@given(
  x=st.lists(_floats, min_size=8, max_size=8),
  name=st.sampled_from(NAMES),
  rule=st.sampled_from(RULES),
  shift=st.integers(-20, 20),
)
def test_laws_of_rounding(x, name, rule, shift):
  x = np.array(x, np.float32)
  x[np.abs(x) < 1e-12] = 0
  q = _quantizer(name, scale=rule)
  once = np.asarray(nearest(x, q))
  _equal(nearest(once, q), once)
  # 7 (A / 7) need not be A, so bounds of "absmax" are good to the last bits.
  slack = 2.5e-7 * np.max(np.abs(x)) if rule == "absmax" else 0.0
  _equal(nearest(-x, q), -once)
  _equal(nearest(x * 2.0**shift, q), once * 2.0**shift)
  lower, upper = map(np.asarray, neighbours(x, q))
  assert np.all((once == lower) | (once == upper))
  if rule != "pow2_floor":
    assert np.all(lower <= x + slack)
    assert np.all(x <= upper + slack)


def test_stacked_layers_have_scales_of_their_own():
  x = np.stack([_numbers((6, 8), seed, decades=1) for seed in range(3)])
  for axis, size in ((None, None), (-2, None), (-2, 3), (-1, 4)):
    single = _quantizer("INT4", axis, size)
    stacked = _quantizer("INT4", axis, size, batch_axes=1)
    _equal(
      nearest(x, stacked), np.stack([nearest(layer, single) for layer in x])
    )
  assert np.any(nearest(x, _quantizer("INT4")) != nearest(x, stacked))
  s = optim.step_size(x, _quantizer("INT4", batch_axes=1))
  assert s.shape == (3, 1, 1)


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_shapes_without_much_in_them(shape):
  x = jnp.full(shape, 3.0)
  for q in (_quantizer("INT4"), _quantizer("E2M1", scale="pow2_ceil")):
    assert nearest(x, q).shape == shape
    assert random(jax.random.key(0), x, q).shape == shape
    codes, scale = jax.jit(optim.quantize, static_argnums=1)(x, q)
    back = jax.jit(optim.dequantize, static_argnums=2)(codes, scale, q)
    _equal(back, nearest(x, q))
  if len(shape) == 2:
    assert nearest(x, _quantizer("INT4", -1, 2)).shape == shape


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_axes_and_sizes_of_blocks(axis):
  x = _numbers((3, 4, 5), decades=1)
  rows = np.moveaxis(x, axis, -1)
  for size in (None, 1, 2, 5, 7):
    wanted = rounding.round_rows(
      rows.reshape(-1, rows.shape[-1]), "INT4", "absmax", size
    ).reshape(rows.shape)
    actual = optim.round_nearest(x, _quantizer("INT4", axis, size))
    _equal(np.moveaxis(np.asarray(actual), axis, -1), wanted)


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn", "float8_e5m2"])
def test_narrow_types_are_widened(dtype):
  x = jnp.asarray(_numbers((4, 6), decades=0.5), dtype)
  q = _quantizer("INT4", -1)
  actual = optim.round_nearest(x, q)
  assert actual.dtype == jnp.float32
  _equal(actual, optim.round_nearest(x.astype(jnp.float32), q))


def test_lists_are_arrays():
  q = _quantizer("INT4")
  _equal(optim.round_nearest([14.0, 3.2], q), [14, 4])
  _equal(optim.round_nearest(14.0, q), 14)
  _equal(optim.step_size([[14.0, 3.2]], q), [[2]])


# --- At random ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["INT4", "E2M1", "E4M3"])
@pytest.mark.parametrize("rule", ["absmax", "pow2_ceil"])
def test_mean_and_variance_at_random(name, rule):
  draws = 200_000
  x = np.array([1.0, 0.61, -0.3, 0.077, -0.9999, 0.005], np.float32)
  q = _quantizer(name, -1, scale=rule)
  many = random(jax.random.key(0), jnp.tile(x, (draws, 1)), q)
  many = np.asarray(many, np.float64)
  variance = np.asarray(variances(x, q), np.float64)
  error = np.sqrt(variance / draws)
  assert np.all(np.abs(many.mean(axis=0) - x) <= 5 * error + 1e-6)
  lower, upper = map(np.asarray, neighbours(x, q))
  # Of (R - E R)^2, which takes two values.
  chance = (x - lower) / np.where(upper > lower, upper - lower, 1)
  spread = (upper - lower) ** 2 * np.abs(1 - 2 * chance)
  spread = spread * np.sqrt(chance * (1 - chance) / draws)
  gap = np.abs(many.var(axis=0) - variance)
  assert np.all(gap <= 5 * spread + 2 * (error**2) + 1e-7)
  assert variance[3] > 0


def test_chances_worked_out_by_hand():
  # Scale 1 by the 7: 2.25 goes up in 1 case of 4, -0.9 in 1 of 10.
  x = np.tile(np.array([7, 2.25, -0.9, 4.0], np.float32), (100_000, 1))
  rounded = random(jax.random.key(1), x, _quantizer("INT4", -1))
  up = np.mean(np.asarray(rounded) == np.array([7, 3, 0, 4]), axis=0)
  np.testing.assert_allclose(up, [1, 0.25, 0.1, 1], atol=0.007)
  # Codes 2 and 3 of E2M1: 2.25 goes up in 1 case of 4; 5 is midway of 4 and 6.
  x = np.tile(np.array([6, 2.25, 5, -1.5], np.float32), (100_000, 1))
  rounded = random(jax.random.key(1), x, _quantizer("E2M1", -1))
  up = np.mean(np.asarray(rounded) == np.array([6, 3, 6, -1.5]), axis=0)
  np.testing.assert_allclose(up, [1, 0.25, 0.5, 1], atol=0.008)


def test_floor_is_biased_at_random_and_ceil_is_not():
  # Gains around 0.97: E4M3 under OCP's rule has one code for all of them.
  x = 0.97 + 0.005 * np.random.default_rng(0).normal(size=(256, 32))
  x = np.abs(x).astype(np.float32)
  floor = _quantizer("E4M3", -1, 32, "pow2_floor")
  ceil = _quantizer("E4M3", -1, 32, "pow2_ceil")
  bias = {}
  for name, q in dict(floor=floor, ceil=ceil).items():
    rounded = random(jax.random.key(0), x, q)
    bias[name] = np.mean(np.asarray(rounded)) / x.mean() - 1
  # Half of 0.97 is above 0.875, half of what is not saturated goes up.
  np.testing.assert_allclose(bias["floor"], -0.098, atol=0.005)
  np.testing.assert_allclose(bias["ceil"], 0, atol=0.002)


@pytest.mark.parametrize(
  ("name", "floor", "ceil"),
  [
    ("E4M3", (1.0, -0.098, 1), (0.0, 0.005, 2)),
    ("E5M2", (1.0, -0.098, 1), (0.0, 0.031, 1)),
    ("E3M2", (1.0, -0.098, 1), (0.0, 0.031, 1)),
    ("E2M3", (1.0, -0.034, 1), (0.0, 0.005, 2)),
    ("E2M1", (1.0, -0.227, 1), (0.0, 0.031, 1)),
  ],
)
def test_clusters_near_one_lose_everything(name, floor, ceil):
  x = 0.97 + 0.005 * np.random.default_rng(0).normal(size=(256, 32))
  x = x.astype(np.float32)

  @functools.partial(jax.jit, static_argnums=1)
  def measure(x, q):
    bias = jnp.mean(optim.round_nearest(x, q)) / jnp.mean(x) - 1
    return optim.saturated_share(x, q), bias, optim.unique_codes(x, q)

  for rule, wanted in dict(pow2_floor=floor, pow2_ceil=ceil).items():
    actual = measure(x, _quantizer(name, -1, 32, rule))
    np.testing.assert_allclose(actual, wanted, atol=1e-3)


def test_variance_of_integers_and_where_it_is_zero():
  with jax.enable_x64(True):
    x = np.random.default_rng(0).normal(size=1000)
    q = _quantizer("INT4")
    s = np.abs(x).max() / 7
    d = x / s - np.floor(x / s)
    variance = np.asarray(variances(x, q))
    largest = np.abs(x) == np.abs(x).max()
    np.testing.assert_allclose(
      variance[~largest], (s**2 * d * (1 - d))[~largest], rtol=0, atol=1e-15
    )
    assert variance[largest] == 0
  on_grid = np.array([7, 3, -2, 0, 1], np.float32)
  _equal(variances(on_grid, q), 0)
  saturated = np.array([1.9, 1.0], np.float32)
  floor = _quantizer("E2M1", scale="pow2_floor")
  _equal(variances(saturated, floor), 0)
  assert np.asarray(neighbours(saturated, floor))[:, 0].max() == 1.5


@pytest.mark.parametrize("name", NAMES)
def test_scales_are_quotients_and_stay(name):
  # XLA multiplies by the reciprocal where it can, half of the time a bit off.
  rng = np.random.default_rng(0)
  x = rng.normal(size=(20_000, 3)) * 2.0 ** rng.integers(-90, 90, (20_000, 1))
  x = x.astype(np.float32)
  q = _quantizer(name, -1)
  step_size = jax.jit(optim.step_size, static_argnums=1)
  top = np.float32(q.grid.code_max)
  largest = np.max(np.abs(x), axis=1, keepdims=True)
  _equal(step_size(x, q), largest / top)
  once = np.asarray(nearest(x, q))
  _equal(once[np.abs(x) == largest], (np.sign(x) * (largest / top * top))[
    np.abs(x) == largest
  ])  # fmt: skip
  # The largest may go to the next float, but neither s nor the codes change.
  moved = np.max(np.abs(once), axis=1, keepdims=True)
  assert np.all(np.abs(moved - largest) <= np.spacing(largest))
  _equal(step_size(once, q), largest / top)
  _equal(nearest(once, q), once)


@pytest.mark.parametrize("name", ["INT4", "INT8", "E4M3"])
def test_the_largest_is_on_the_grid_whatever_the_division(name):
  x = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
  q = _quantizer(name, -1)
  largest = np.abs(x) == np.abs(x).max(axis=1, keepdims=True)
  assert largest.sum() == 2000
  _equal(np.asarray(variances(x, q))[largest], 0)
  lower, upper = map(np.asarray, neighbours(x, q))
  _equal(lower[largest], upper[largest])
  # What it guards against: the plain division misses the grid.
  top = np.float32(optim.Quantizer(getattr(optim, name)).grid.code_max)
  size = np.abs(x[largest])
  z = size / (size / top)
  assert np.any(z != top)
