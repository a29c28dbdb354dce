"""The best step size against searches over dense risks; arrays of times."""

import jax
import numpy as np
import pytest
from oracles import linear_regression as oracle
from scipy import optimize

import theory

LAM = np.array([1.0, 0.6, 0.2, 0.05])
M0 = np.arange(1.0, 5.0)
H = np.diag(LAM)
PROBLEM = theory.from_spectrum(LAM, M0, 0.4)

AVERAGES = {  # name -> weights of w_0, ..., w_T
  None: lambda T: np.eye(T + 1)[T],
  "tail:0.5": lambda T: np.r_[
    np.zeros(T + 1 - round(T / 2)), np.full(round(T / 2), 1 / round(T / 2))
  ],
  "ema:0.8": lambda T: np.r_[0.8**T, 0.2 * 0.8 ** np.arange(T - 1, -1, -1.0)],
}


def _dense(average, batch, T):
  """eta -> risk, by the double sum over all pairs of iterates."""

  def risk(eta):
    return oracle.average_risk(
      AVERAGES[average](T), np.diag(M0), H, np.full(T, eta),
      np.full(T, batch), 0.4,
    )  # fmt: skip

  return risk


@pytest.mark.parametrize("average", AVERAGES)
def test_best_step_is_that_of_a_search_over_dense_risks(average):
  batches, horizons = np.array([1.0, 1.0, 8.0]), np.array([6.0, 20.0, 20.0])
  found = theory.best_step(PROBLEM, batches, horizons, average)
  assert found.eta.shape == found.risk.shape == (3,)
  for k, (batch, T) in enumerate(zip(batches, horizons, strict=True)):
    risk = _dense(average, batch, int(T))
    limit = theory.eta_max(PROBLEM, batch)
    grid = limit * np.logspace(-3, 0, 40)
    start = grid[np.argmin([risk(x) for x in grid])]
    best = optimize.minimize_scalar(
      risk,
      bounds=(start / 1.3, min(1.3 * start, limit)),
      method="bounded",
      options={"xatol": 1e-9},
    )
    assert found.risk[k] == pytest.approx(best.fun, rel=1e-8)
    assert found.risk[k] == pytest.approx(risk(found.eta[k]), rel=1e-10)
    # A flat minimum: step sizes are compared where the risk is.
    assert found.eta[k] == pytest.approx(best.x, rel=1e-3)


def test_best_single_update_has_a_formula():
  """One step: R(eta) is a parabola in eta."""
  r, B = LAM @ M0, 8.0
  push = np.sum((1 + 1 / B) * LAM**3 * M0) + np.sum(LAM**2) * (r + 0.4) / B
  found = theory.best_step(PROBLEM, [B] * 3, [1.0] * 3)
  assert found.eta[0] == pytest.approx(np.sum(LAM**2 * M0) / push, rel=1e-6)


def test_no_step_is_best_at_the_optimum():
  settled = PROBLEM._replace(m0=np.zeros(4))
  found = theory.best_step(settled, [1.0, 8.0, 8.0], [1.0, 1.0, 9.0])
  np.testing.assert_array_equal(found.eta, 0)
  np.testing.assert_array_equal(found.risk, 0)


def test_best_step_moves_with_the_noise_as_differences_say():
  @theory.float64()
  def eta(sigma2, batch):
    problem = PROBLEM._replace(sigma2=sigma2)
    return theory.best_step(problem, batch, 20.0).eta

  with theory.float64():
    slopes = jax.grad(eta, argnums=(0, 1))(0.4, 3.0)
  h = 1e-2
  up, down = eta(0.4 + h, 3.0), eta(0.4 - h, 3.0)
  assert slopes[0] == pytest.approx((up - down) / (2 * h), rel=1e-3)
  up, down = eta(0.4, 3.0 + h), eta(0.4, 3.0 - h)
  assert slopes[1] == pytest.approx((up - down) / (2 * h), rel=1e-3)


@pytest.mark.parametrize(
  "average", ["tail", "tail:0", "tail:1.1", "ema:1", "ema:x", "uniform", 0.5]
)
def test_unknown_averages_are_named(average):
  with pytest.raises(ValueError, match=f"average={average!r} must be None"):
    theory.best_step(PROBLEM, 8.0, 20.0, average)


@pytest.mark.parametrize("T", [0, 2.5, np.inf, np.nan])
def test_horizons_are_whole(T):
  with pytest.raises(ValueError, match="whole number of updates"):
    theory.best_step(PROBLEM, 8.0, T)


def _tail(s, N):
  weights = np.zeros(s + N)
  weights[s:] = 1 / N
  steps = s + N - 1
  return oracle.average_risk(
    weights, np.diag(M0), H, np.full(steps, 0.3), np.full(steps, 2.0), 0.4
  )


def test_tail_averages_take_arrays_of_starts_and_lengths():
  s, N = np.array([[0], [3]]), np.array([1, 2, 9])
  found = theory.tail_average_at(PROBLEM, 0.3, 2, s, N)
  assert found.total.shape == (2, 3)
  for i in range(2):
    for j in range(3):
      wanted = _tail(s[i, 0], N[j])
      assert found.total[i, j] == pytest.approx(wanted, rel=1e-11)
  np.testing.assert_allclose(found.bias + found.variance, found.total)


def test_exponential_averages_and_states_take_arrays_of_times():
  times = [0, 1, 7]
  found = theory.ema_at(PROBLEM, 0.3, 2, 0.8, times)
  states = theory.state_at(PROBLEM, 0.3, 2, times)
  assert states.shape == (3, 4)
  C, dense = np.diag(M0), {}
  for t in range(8):
    dense[t] = np.diag(C)
    C = oracle.sgd_step(C, H, 0.3, 2, 0.4)
  for k, t in enumerate(times):
    weights = AVERAGES["ema:0.8"](t)
    wanted = oracle.average_risk(
      weights, np.diag(M0), H, np.full(t, 0.3), np.full(t, 2.0), 0.4
    )
    assert found.total[k] == pytest.approx(wanted, rel=1e-11)
    np.testing.assert_allclose(states[k], dense[t], rtol=1e-10)


@pytest.mark.parametrize(
  "bound",
  [
    lambda s, N: theory.zou_bound(PROBLEM, 0.08, s, N),
    lambda s, N: theory.chi_bound(PROBLEM, 0.08, 4.0, s, N),
    lambda s, N: theory.effective_dim(PROBLEM, 0.08, s + N),
  ],
)
def test_bounds_take_arrays(bound):
  """Scalar calls are tested against loops; arrays are many of them."""
  s, N = np.array([0, 5, 40]), np.array([20, 300, 7])
  many = bound(s, N)
  for k in range(3):
    for one, other in zip(bound(s[k], N[k]), many, strict=True):
      assert other[k] == pytest.approx(one, rel=1e-12)


def test_limits_take_arrays_of_batches():
  batches = np.array([1.0, 4.0, 64.0])
  problem = theory.isotropic(50, 1.0, 0.3)
  limits = theory.eta_max(problem, batches)
  np.testing.assert_allclose(limits, 2 * batches / (51 + batches), rtol=1e-12)
  etas = np.array([[0.01], [0.02]])
  wanted = etas / batches * 50 / (2 - (1 + 1 / batches) * etas)
  found = theory.chi(problem, etas, batches)
  np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_sketch_errors_take_arrays():
  lam = np.arange(1.0, 41) ** -1.4
  many = theory.sketch_error(lam, [5, 10, 20], samples=[[30], [np.inf]])
  assert many.shape == (2, 3)
  for j, n in enumerate((5, 10, 20)):
    root = optimize.brentq(
      lambda k, n=n: np.sum(lam / (lam + k)) - n, 1e-9, 1e3, xtol=1e-15
    )
    assert many[1, j] == pytest.approx(n * root, rel=1e-9)
    assert many[0, j] == pytest.approx(n * root / (1 - n / 30), rel=1e-9)


def test_lists_are_arrays():
  theta = list(theory.theta_uniform(3))
  schedule = theory.schedule([0.1, 0.2, 0.3], 2)
  one = theory.avg_scan(PROBLEM, schedule, theta)[1].total
  two = theory.avg_scan(PROBLEM, schedule, np.array(theta))[1].total
  np.testing.assert_array_equal(one, two)
  weights = np.array([0, 1, 1, 1]) / 3
  wanted = oracle.average_risk(
    weights, np.diag(M0), H, schedule.eta, schedule.batch, 0.4
  )
  assert one[-1] == pytest.approx(wanted, rel=1e-12)
