"""Predicted exponents against sums over directions and minimisations."""

import numpy as np
import pytest
from scipy import optimize, special

import theory

INDEX = np.arange(1.0, 200_001)


def _moving(fn, x, ratio=4.0):
  """Slope of log fn against log x between x and ratio x."""
  return np.log(fn(ratio * x) / fn(x)) / np.log(ratio)


def _bias(average, a, b, p):
  """Risk of the averaged gradient flow at Gam = sum eta, direction by one.

  With x = lam Gam the average of exp(-u x) is (1 - e^-x) / x (uniform),
  (p + 1) int u^p e^(-u x) du (weights u^p), over u in [0, 1]; of the second
  half it is (e^(-x/2) - e^-x) / (x / 2).
  """
  lam, signal = INDEX**-a, INDEX**-b

  def total(gam):
    x = lam * gam
    mean = {
      "last": lambda: np.exp(-x),
      "uniform": lambda: -np.expm1(-x) / x,
      "tail": lambda: np.exp(-x / 2) * -np.expm1(-x / 2) / (x / 2),
      "poly": lambda: (
        (p + 1) * special.gamma(p + 1) * special.gammainc(p + 1, x)
        / x ** (p + 1)
      ),
    }[average]()  # fmt: skip
    return np.sum(signal * mean**2) / 2

  return total


@pytest.mark.parametrize(
  ("average", "a", "b", "p", "capped"),
  [
    ("uniform", 1.5, 2.5, 3.0, False),
    ("uniform", 1.5, 6.0, 3.0, True),
    ("poly", 1.5, 6.0, 3.0, False),
    ("poly", 1.5, 9.0, 1.0, True),
    ("poly", 1.5, 9.5, 0.5, True),
    ("tail", 1.5, 6.0, 3.0, False),
    ("last", 1.5, 3.0, 3.0, False),
  ],
)
def test_bias_of_an_average_falls_as_predicted(average, a, b, p, capped):
  slope = _moving(_bias(average, a, b, p), 2000.0)
  predicted = theory.exponents(a, b, 0.0, average, p=p).bias
  assert slope == pytest.approx(predicted, abs=0.03)
  # The cap is what decides in these cases, not the signal.
  assert capped == (predicted > -(b - 1) / a + 1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("average", ["tail", "uniform", "poly"])
def test_variance_of_an_average_falls_as_predicted(average, gamma):
  """(1/T) sum_i min(1, (lam_i Gam)^2), Gam = T^(1 - gamma)."""
  lam = INDEX**-1.5

  def variance(T):
    return np.sum(np.minimum(1, (lam * T ** (1 - gamma)) ** 2)) / T

  predicted = theory.exponents(1.5, 2.5, gamma, average).variance
  assert _moving(variance, 1e5, 16.0) == pytest.approx(predicted, abs=0.02)


def test_variance_of_the_last_iterate_is_its_step_size():
  """Noise of eta_t = t^-gamma and forgetting rate lam eta_t, as a loop."""
  T, gamma, lam = 20_000, 0.4, np.arange(1.0, 60) ** -1.5
  z, seen = np.zeros(lam.size), {}
  for t in range(1, T + 1):
    eta = 0.3 * t**-gamma
    z = (1 - eta * lam) ** 2 * z + eta**2 * lam
    seen[t] = lam @ z
  slope = np.log(seen[T] / seen[T // 4]) / np.log(4)
  predicted = theory.exponents(1.5, 2.5, gamma, "last").variance
  assert predicted == -gamma
  assert slope == pytest.approx(predicted, abs=0.02)


@pytest.mark.parametrize(("a", "b"), [(1.5, 2.5), (1.5, 3.5), (2.0, 1.5)])
def test_tuned_exponent_is_the_best_balance(a, b):
  """min over Gam <= T of Gam^-(b-1)/a + Gam^(1/a) / T."""

  def best(T):
    fn = lambda g: np.exp(-(b - 1) / a * g) + np.exp(g / a) / T  # noqa: E731
    return optimize.minimize_scalar(
      fn, bounds=(0, np.log(T)), method="bounded", options={"xatol": 1e-12}
    ).fun

  slope = np.log(best(1e24) / best(1e20)) / np.log(1e4)
  predicted = theory.exponents(a, b, "tuned")
  assert slope == pytest.approx(predicted.risk, abs=0.005)
  if b <= a:
    assert predicted.variance == -np.inf
  else:
    assert predicted.variance == predicted.bias


@pytest.mark.parametrize(("a", "b"), [(1.5, 2.5), (1.5, 3.5), (2.0, 1.5)])
def test_gamma_star_is_the_best_decay(a, b):
  grid = np.linspace(0, 0.95, 96)
  risks = [theory.exponents(a, b, g).risk for g in grid]
  best = theory.gamma_star(a, b)
  assert theory.exponents(a, b, best).risk <= min(risks) + 1e-12
  assert abs(grid[np.argmin(risks)] - best) < 0.011


@pytest.mark.parametrize(("a", "b"), [(1.5, 2.0), (1.5, 6.0), (2.0, 1.5)])
def test_without_noise_the_slower_of_signal_and_kernel_decides(a, b):
  """r_t = F(t) + eta^2 sum_q K(t - q) r_q as a loop over t."""
  lam = np.arange(1.0, 3001) ** -a
  eta, T = 0.2, 3000
  z, risks = np.arange(1.0, 3001) ** (a - b), []
  for _ in range(T):
    r = lam @ z
    risks.append(r / 2)
    z = z - eta * lam * (2 - 2 * eta * lam) * z + eta**2 * lam * r
  slope = np.log(risks[-1] / risks[T // 4]) / np.log(4)
  found = theory.exponents(a, b, average="last", noise=False)
  assert slope == pytest.approx(found.risk, abs=0.06)
  assert found.variance == -np.inf


def test_slope_of_a_power_law_is_its_power():
  ts = np.logspace(0, 5, 60)
  assert theory.slope(ts, 3 * ts**-0.7) == pytest.approx(-0.7, abs=1e-12)
  # Only the last window counts, whatever lies before it.
  broken = np.where(ts < 1e3, 1.0, (ts / 1e3) ** -1.5)
  assert theory.slope(ts, broken) == pytest.approx(-1.5, abs=1e-9)
  # The last decade by default, not more: the break lies just outside it.
  late = np.where(ts < 1.01e4, 1.0, (ts / 1.01e4) ** -1.5)
  near = theory.slope(ts[ts >= 1e4], late[ts >= 1e4], window=1e9)
  assert theory.slope(ts, late) == pytest.approx(near, abs=1e-12)
  assert theory.slope(ts, broken, window=1e4) > -1.4


def test_slope_weights_log_intervals_not_points():
  ts = np.r_[1e4, 1.5e4, 2e4, 3e4, np.linspace(9.9e4, 1e5, 4000)]
  curve = np.log(ts) ** -2.0
  grid = np.linspace(np.log(1e4), np.log(1e5), 50)
  values = np.interp(grid, np.log(ts), np.log(curve))
  x, y = grid - grid.mean(), values - values.mean()
  assert theory.slope(ts, curve) == pytest.approx((x @ y) / (x @ x), rel=1e-10)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: theory.exponents(1.0, 2.0), "a=1.0 and b=2.0"),
    (lambda: theory.exponents(2.0, 1.0), "a=2.0 and b=1.0"),
    (lambda: theory.exponents(1.5, 2.0, 1.0), "gamma=1.0"),
    (lambda: theory.exponents(1.5, 2.0, -0.1), "gamma=-0.1"),
    (lambda: theory.exponents(1.5, 2.0, 0.0, "ema"), "average='ema'"),
    (lambda: theory.slope([1.0, 5, 9], [1.0, 0.5, 0]), "positive risks"),
  ],
)
def test_bad_exponents_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
