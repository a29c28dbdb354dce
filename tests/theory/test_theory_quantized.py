"""The smoothed risk against all roundings, all grid points, and `optim`."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim
import theory

INT4 = np.arange(-7.0, 8)
E2M1 = optim.E2M1.codes()


def _problem(size, seed):
  rng = np.random.default_rng(seed)
  root = rng.normal(size=(size, size)) / np.sqrt(size)
  return root @ root.T + 0.05 * np.eye(size), rng.normal(size=size)


def _risk(w, h, wstar):
  return (w - wstar) @ h @ (w - wstar) / 2


def _mean_over_roundings(w, h, wstar, codes, s):
  """The definition: every way to round every weight, with its chance."""
  options = []
  for x in w / s:
    k = np.searchsorted(codes, x - 1e-12)
    if abs(codes[k] - x) < 1e-9:
      options.append([(codes[k], 1.0)])
    else:
      low, high = codes[k - 1], codes[k]
      up = (x - low) / (high - low)
      options.append([(low, 1 - up), (high, up)])
  total = 0.0
  for choice in itertools.product(*options):
    values, chances = zip(*choice, strict=True)
    total += np.prod(chances) * _risk(s * np.array(values), h, wstar)
  return total


@pytest.mark.parametrize("codes", [INT4, E2M1], ids=["INT4", "E2M1"])
def test_smoothed_risk_is_the_mean_over_all_roundings(codes):
  h, wstar = _problem(6, 0)
  w = np.random.default_rng(1).normal(size=6)
  s = np.abs(w).max() / codes[-1]
  wanted = _mean_over_roundings(w, h, wstar, codes, s)
  assert theory.smoothed_risk(w, h, wstar, codes) == pytest.approx(wanted)
  wanted = _mean_over_roundings(w, h, wstar, codes, 0.7)
  fixed = theory.smoothed_risk(w, h, wstar, codes, 0.7)
  assert fixed == pytest.approx(wanted)
  assert fixed != pytest.approx(_risk(w, h, wstar))


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("codes", [INT4, E2M1], ids=["INT4", "E2M1"])
def test_gradient_is_that_of_differences(codes, block_size):
  h, wstar = _problem(8, 0)
  w = np.random.default_rng(2).normal(size=8)

  def differences(fn):
    eye = 1e-6 * np.eye(8)
    return np.array([(fn(w + e) - fn(w - e)) / 2e-6 for e in eye])

  args = dict(h=h, wstar=wstar, codes=codes, block_size=block_size)
  moving = theory.smoothed_risk_gradient(w, **args)
  np.testing.assert_allclose(
    moving, differences(lambda w: theory.smoothed_risk(w, **args)), atol=1e-8
  )
  fixed = theory.smoothed_risk_gradient(w, scale_gradient=False, **args)
  blocks = np.abs(w).reshape(-1, block_size or 8)
  largest = (blocks == blocks.max(axis=1, keepdims=True)).ravel()
  assert np.all((fixed != moving) == largest)
  # No snap at the largest: what is left is the risk's own gradient.
  plain = h @ (w - wstar)
  np.testing.assert_allclose(fixed[largest], plain[largest])
  if block_size is None:
    s = 0.9
    args = dict(args, step_size=s)
    np.testing.assert_allclose(
      theory.smoothed_risk_gradient(w, **args),
      differences(lambda w: theory.smoothed_risk(w, **args)),
      atol=1e-8,
    )


@pytest.mark.parametrize(("size", "top"), [(3, 3), (4, 2), (5, 1)])
def test_smoothing_keeps_the_minimum(size, top):
  codes = np.arange(-top, top + 1.0)
  for seed in range(3):
    h, wstar = _problem(size, seed)
    best = theory.best_grid_point(h, wstar, codes)
    rng = np.random.default_rng(seed)
    radius = 10 ** rng.uniform(-3, 0, size=(30_000, 1))
    near = best.w + radius * rng.normal(size=(30_000, size))
    points = np.concatenate([3 * rng.normal(size=near.shape), near])
    with theory.float64():
      smooth = functools.partial(
        theory.smoothed_risk, h=h, wstar=wstar, codes=codes
      )
      smoothed = np.asarray(jax.jit(jax.vmap(smooth))(jnp.asarray(points)))
    assert np.min(smoothed) >= best.risk - 1e-12
    assert np.min(smoothed) < best.risk + 0.05  # The bound is not idle.
    at_best = theory.smoothed_risk(best.w, h, wstar, codes)
    assert at_best == pytest.approx(best.risk, abs=1e-14)
    # Rounding the minimum of the risk is no match for it.
    s = np.abs(wstar).max() / top
    plain = _risk(s * np.round(wstar / s), h, wstar)
    assert plain >= best.risk - 1e-12


def test_best_grid_point_is_best():
  h, wstar = _problem(3, 4)
  codes = np.arange(-2.0, 3)
  best = theory.best_grid_point(h, wstar, codes)
  assert best.risk == pytest.approx(_risk(best.w, h, wstar))
  np.testing.assert_allclose(best.w, best.step_size * best.codes)
  assert np.max(np.abs(best.codes)) == 2
  for s in np.linspace(0.01, 3, 300):
    for k in itertools.product(codes, repeat=3):
      if max(np.abs(k)) == 2:
        assert _risk(s * np.array(k), h, wstar) >= best.risk - 1e-12
  fixed = theory.best_grid_point(h, wstar, codes, 0.5)
  assert fixed.step_size == 0.5
  risks = [
    _risk(0.5 * np.array(k), h, wstar)
    for k in itertools.product(codes, repeat=3)
  ]
  assert fixed.risk == pytest.approx(min(risks))


def test_a_fixed_lattice_and_no_rotation_leave_nothing_to_gain():
  # Diagonal H: the minimum of the smoothed risk is w* rounded to nearest.
  lam = np.array([1.0, 0.3, 2.0])
  wstar = np.array([0.8, -1.3, 0.26])
  best = theory.best_grid_point(lam, wstar, INT4, 0.5)
  np.testing.assert_array_equal(best.w, [1.0, -1.5, 0.5])
  # And it is convex along any line.
  a, b = wstar - 1, wstar + np.array([0.5, 1.2, -0.7])
  values = [
    theory.smoothed_risk(a + t * (b - a), lam, wstar, INT4, 0.5)
    for t in np.linspace(0, 1, 101)
  ]
  assert np.min(np.diff(values, 2)) > -1e-12


def test_agrees_with_optim():
  rng = np.random.default_rng(0)
  w, lam = rng.normal(size=64), rng.uniform(size=64)
  penalty = jax.jit(
    jax.value_and_grad(optim.rounding_penalty), static_argnums=2
  )
  for codes, quantizer in (
    (INT4, optim.Quantizer(optim.INT4)),
    (E2M1, optim.Quantizer(optim.E2M1, 0, 16)),
  ):
    size = quantizer.block_size
    with jax.enable_x64(True):
      theirs, grad = penalty(jnp.asarray(w), jnp.asarray(lam), quantizer)
    ours = theory.rounding_risk(w, lam, codes, block_size=size)
    assert ours == pytest.approx(float(theirs), rel=1e-12)
    gradient = theory.smoothed_risk_gradient(w, lam, w, codes, block_size=size)
    np.testing.assert_allclose(gradient, grad, rtol=1e-9, atol=1e-13)


def test_ties_and_zeros():
  ones = np.ones(3)
  tied = np.array([2.0, -2.0, 0.5])
  gradient = theory.smoothed_risk_gradient(tied, ones, tied, INT4)
  assert gradient[0] == -gradient[1] != 0
  assert theory.rounding_risk(np.zeros(3), ones, INT4) == 0
  saturated = theory.rounding_risk(np.array([9.0, 0, 0]), ones, INT4, 1.0)
  assert saturated == 0


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: theory.rounding_risk(np.ones(3), np.ones(3), [0.0, 1, 2]),
     "codes=.*symmetric"),
    (lambda: theory.rounding_risk(np.ones(3), np.ones(2), INT4),
     r"h has shape \(2,\) but w \(3,\)"),
    (lambda: theory.rounding_risk(np.ones(3), np.ones(3), INT4, -1.0),
     "step_size=-1.0 must be finite and > 0"),
    (lambda: theory.rounding_risk(np.ones(3), np.ones(3), INT4, block_size=2),
     "block_size=2 divides"),
    (lambda: theory.best_grid_point(np.ones(6), np.ones(6), INT4),
     r"15\^6 points"),
  ],
)  # fmt: skip
def test_bad_input(make, message):
  with pytest.raises(ValueError, match=message):
    make()
