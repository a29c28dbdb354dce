"""Fits against independent optimisers, closed solutions and refits."""

import numpy as np
import pytest
from scipy import optimize, stats

import theory

N, TOKENS = (
  x.ravel() for x in np.meshgrid(np.logspace(7, 9.5, 6), np.logspace(9, 11, 6))
)
LAW = 1.7 + 400 * N**-0.34 + 410 * TOKENS**-0.28
NOISY = LAW * np.exp(0.004 * np.random.default_rng(0).standard_normal(N.size))


def _huber(residual, delta):
  """Mean Huber loss, one residual at a time."""
  total = 0.0
  for r in np.abs(residual):
    total += r**2 / 2 if r <= delta else delta * (r - delta / 2)
  return total / len(residual)


def _chinchilla_loss(theta, delta):
  a, b, e, alpha, beta = theta
  law = np.exp(e) + np.exp(a) * N**-alpha + np.exp(b) * TOKENS**-beta
  return _huber(np.log(law) - np.log(NOISY), delta)


@pytest.mark.parametrize("delta", [1e-3, 1e-1])
def test_chinchilla_is_at_the_minimum_of_the_huber_loss(delta):
  fit = theory.chinchilla(N, TOKENS, NOISY, delta=delta)
  p = fit.params
  theta = [*np.log([p["A"], p["B"], p["E"]]), p["alpha"], p["beta"]]
  assert fit.objective == pytest.approx(
    _chinchilla_loss(theta, delta), rel=1e-8
  )
  # A simplex started at the optimum finds nothing better.
  better = optimize.minimize(
    _chinchilla_loss,
    theta,
    args=(delta,),
    method="Nelder-Mead",
    options={"maxiter": 600, "xatol": 1e-9, "fatol": 1e-15},
  )
  assert fit.objective <= better.fun * (1 + 1e-5)
  residual = np.log(fit.predict(N, TOKENS) / NOISY)
  spread = np.sum((np.log(NOISY) - np.log(NOISY).mean()) ** 2)
  assert fit.r2 == pytest.approx(1 - residual @ residual / spread, rel=1e-10)


def test_chinchilla_with_a_wide_huber_is_curve_fit():
  fit = theory.chinchilla(N, TOKENS, NOISY, delta=10.0)

  def law(x, a, b, e, alpha, beta):
    n, d = x
    size, data = (n / 1e8) ** -alpha, (d / 1e10) ** -beta
    return np.log(np.exp(e) + np.exp(a) * size + np.exp(b) * data)

  start = [-0.3, -0.4, 0.5, 0.3, 0.3]
  found, _ = optimize.curve_fit(
    law, (N, TOKENS), np.log(NOISY), p0=start, xtol=1e-13, ftol=1e-13
  )
  assert fit.params["E"] == pytest.approx(np.exp(found[2]), rel=1e-4)
  assert fit.params["alpha"] == pytest.approx(found[3], rel=1e-3)
  assert fit.params["beta"] == pytest.approx(found[4], rel=1e-3)
  assert fit.params["A"] == pytest.approx(
    np.exp(found[0]) * 1e8 ** found[3], rel=1e-2
  )


def test_kaplan_is_at_the_minimum_of_its_loss():
  al, be = 0.3, 0.25
  law = 1.5 + ((1e6 / N) ** (al / be) + 1e7 / TOKENS) ** be
  noisy = law * np.exp(0.003 * np.random.default_rng(1).standard_normal(N.size))
  fit = theory.kaplan(N, TOKENS, noisy, delta=1e-2)

  def loss(theta):
    a, b, e, alpha, beta = theta
    inner = (np.exp(a) / N) ** (alpha / beta) + np.exp(b) / TOKENS
    return _huber(np.log(np.exp(e) + inner**beta) - np.log(noisy), 1e-2)

  p = fit.params
  theta = [*np.log([p["A"], p["B"], p["E"]]), p["alpha"], p["beta"]]
  assert fit.objective == pytest.approx(loss(theta), rel=1e-8)
  assert fit.objective <= loss([np.log(1e6), np.log(1e7), np.log(1.5), al, be])
  for k in range(5):  # Stationary in every direction.
    h = 1e-4 * np.eye(5)[k]
    up, down = loss(theta + h), loss(theta - h)
    assert abs(up - down) < 0.05 * abs(up + down - 2 * loss(theta))
  inner = (p["A"] / 2e8) ** (p["alpha"] / p["beta"]) + p["B"] / 3e10
  assert fit.predict(2e8, 3e10) == pytest.approx(
    p["E"] + inner ** p["beta"], rel=1e-13
  )


def test_power_law_is_linear_regression():
  rng = np.random.default_rng(2)
  x = np.logspace(0, 3, 15)
  y = 3 * x**-0.4 * np.exp(0.1 * rng.standard_normal(15))
  fit = theory.power_law_fit(x, y)
  line = stats.linregress(np.log(x), np.log(y))
  assert fit.params["p"] == pytest.approx(line.slope, rel=1e-10)
  assert fit.params["k"] == pytest.approx(np.exp(line.intercept), rel=1e-10)
  assert fit.r2 == pytest.approx(line.rvalue**2, rel=1e-10)
  same = theory.cbs_law(x, y)
  assert same.params == fit.params
  assert fit.predict(7.0) == pytest.approx(
    np.exp(line.intercept + line.slope * np.log(7.0)), rel=1e-12
  )


def test_power_law_with_offset_beats_every_offset_of_a_grid():
  rng = np.random.default_rng(3)
  x = np.logspace(0, 3, 25)
  y = (0.5 + 3 * x**-0.4) * np.exp(0.01 * rng.standard_normal(25))
  fit = theory.power_law_fit(x, y, offset=True)

  def loss(c):
    line = stats.linregress(np.log(x), np.log(y - c))
    value = c + np.exp(line.intercept) * x**line.slope
    return np.mean((np.log(value) - np.log(y)) ** 2)

  assert fit.objective == pytest.approx(loss(fit.params["c"]), rel=1e-9)
  grid = np.linspace(0, 0.999 * y.min(), 3000)
  assert fit.objective <= min(loss(c) for c in grid) * (1 + 1e-9)


def test_bootstrap_of_a_line_has_the_spread_of_regression():
  rng = np.random.default_rng(4)
  x = np.logspace(0, 2, 60)
  y = 2 * x**0.5 * np.exp(0.1 * rng.standard_normal(60))
  fit = theory.power_law_fit(x, y)
  low, high = fit.bootstrap(800, seed=3, level=0.9)["p"]
  stderr = stats.linregress(np.log(x), np.log(y)).stderr
  # A 90 % interval is 2 x 1.645 standard errors wide.
  assert high - low == pytest.approx(3.29 * stderr, rel=0.15)
  wide = fit.bootstrap(800, seed=3, level=0.99)["p"]
  assert wide[0] < low < high < wide[1]
  rows = np.r_[np.arange(60), 5, 5, 5]
  again = stats.linregress(np.log(x[rows]), np.log(y[rows]))
  assert fit.refit(rows)["p"] == pytest.approx(again.slope, rel=1e-10)


def test_shifted_power_law_with_offsets_is_linear_regression():
  rng = np.random.default_rng(5)
  x = np.linspace(2.5, 4, 30)
  y = 1.2 + 0.8 * (x - 1.9) ** 1.1 * np.exp(0.02 * rng.standard_normal(30))
  fit = theory.shifted_power(x, y, E0=1.9, E1=1.2)
  line = stats.linregress(np.log(x - 1.9), np.log(y - 1.2))
  assert fit.params["kappa"] == pytest.approx(line.slope, rel=1e-10)
  assert fit.params["K"] == pytest.approx(np.exp(line.intercept), rel=1e-10)
  value = 1.2 + np.exp(line.intercept) * (3.0 - 1.9) ** line.slope
  assert fit.predict(3.0) == pytest.approx(value, rel=1e-12)
  loss = np.mean((np.log(fit.predict(x)) - np.log(y)) ** 2)
  assert fit.objective == pytest.approx(loss, rel=1e-10)
  with pytest.raises(ValueError, match="both of E0 and E1"):
    theory.shifted_power(x, y, E0=1.9)


@pytest.mark.parametrize("kappa", [0.8, 1.1, 1.5])
def test_kappa_profile_is_the_best_of_a_search(kappa):
  x = np.linspace(2.5, 4, 20)
  y = 1.2 + 0.8 * (x - 1.9) ** 1.1
  found = theory.kappa_profile(x, y, [kappa])[0]

  def loss(theta):
    e0, e1, log_k = theta
    value = e1 + np.exp(log_k) * (x - e0) ** kappa
    return np.mean((np.log(value) - np.log(y)) ** 2)

  best = min(
    optimize.minimize(
      loss,
      [e0, e1, -0.3],
      bounds=[(0, 2.49), (0, y.min() - 1e-3), (-5, 5)],
      method="L-BFGS-B",
      options={"maxiter": 4000, "ftol": 1e-15, "gtol": 1e-12},
    ).fun
    for e0 in (0.5, 1.5, 2.2)
    for e1 in (0.3, 1.0)
  )
  # The profile is a grid over E0 and relative least squares, so above it.
  assert best <= found * (1 + 1e-6) + 1e-12
  assert found < 1.5 * best + 2e-7


def test_parabola_of_three_points_is_the_parabola():
  n = np.array([1e7, 1e8, 1e9])
  x = np.log(n)
  L = 3 + 0.1 * (x - np.log(2.5e8)) ** 2
  assert theory.isoflop_optimum(n, L) == pytest.approx(2.5e8, rel=1e-9)
  shuffled = theory.isoflop_optimum(n[[2, 0, 1]], L[[2, 0, 1]])
  assert shuffled == pytest.approx(2.5e8, rel=1e-9)
