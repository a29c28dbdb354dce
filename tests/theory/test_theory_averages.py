"""Iterate averages against the double sum over all pairs of iterates."""

import numpy as np
import pytest
from oracles import linear_regression as oracle

import theory

T = 24
LAM = np.array([1.0, 0.6, 0.2, 0.05])
PROBLEM = theory.from_spectrum(LAM, np.arange(1.0, 5.0), 0.4)
SCHEDULE = theory.Schedule(0.3 / np.sqrt(1 + np.arange(T)), np.full(T, 2.0))


def _weights(theta):
  """Weights of w_0, ..., w_T in the average after T updates."""
  weights = np.eye(len(theta) + 1)[0]
  for t, th in enumerate(theta, 1):
    weights = (1 - th) * weights
    weights[t] += th
  return weights


def _pairs(weights, schedule):
  return oracle.average_risk(
    weights, np.diag(PROBLEM.m0), np.diag(LAM), *schedule, 0.4
  )


THETAS = {
  "none": np.ones(T),
  "uniform": theory.theta_uniform(T),
  "late": theory.theta_uniform(T, 9),
  "tail": theory.theta_tail(T, 0.25),
  "ema": theory.theta_ema(T, 0.8),
  "half-life": theory.theta_ema(T, half_life=3.0),
  "poly": theory.theta_poly(T, 3.0),
  "fraction": theory.theta_halflife_fraction(T, 0.1),
  "schedule-free": theory.theta_weighted(SCHEDULE.eta**2),
}


@pytest.mark.parametrize("name", THETAS)
def test_average_is_the_double_sum(name):
  last, averaged = theory.avg_scan(PROBLEM, SCHEDULE, THETAS[name])
  expected = _pairs(_weights(THETAS[name]), SCHEDULE)
  assert averaged.total[-1] == pytest.approx(expected, rel=1e-12)
  assert last.total[-1] == pytest.approx(
    theory.risk_scan(PROBLEM, SCHEDULE).total[-1], rel=1e-13
  )


def test_weights_are_what_the_names_say():
  np.testing.assert_allclose(
    _weights(theory.theta_uniform(6, 2)), [0, 0, 0, 0.25, 0.25, 0.25, 0.25]
  )
  np.testing.assert_allclose(
    _weights(theory.theta_tail(6, 0.5)), [0, 0, 0, 0, 1 / 3, 1 / 3, 1 / 3]
  )
  poly = _weights(theory.theta_poly(400, 3.0))[1:]
  np.testing.assert_allclose(
    poly[200:] / poly[-1], (np.arange(201, 401) / 400) ** 3, rtol=0.01
  )


@pytest.mark.parametrize("h", [1.0, 3.0, 8.0])
def test_half_lives_halve(h):
  """After h more updates an iterate's weight is half of a new one's."""
  weights = _weights(theory.theta_ema(20, half_life=h))[1:]
  np.testing.assert_allclose(
    weights[:-8], weights[8:] * 0.5 ** (8 / h), rtol=1e-12
  )


def test_anytime_half_life_is_a_share_of_the_time():
  """From t to (1 + f) t the old average keeps 2^(-log(1 + f) / f)."""
  f, t = 0.05, 100_000
  theta = theory.theta_halflife_fraction(2 * t, f)
  kept = np.prod(1 - theta[t : round((1 + f) * t)])
  assert kept == pytest.approx(2 ** (-np.log1p(f) / f), rel=1e-3)
  # A half-life as long as the run, or longer, is the uniform average.
  np.testing.assert_allclose(
    theory.theta_halflife_fraction(9, 1.0), theory.theta_uniform(9)
  )


@pytest.mark.parametrize(("s", "N"), [(0, 1), (0, 24), (10, 13), (7, 5)])
def test_tail_average_closed_form(s, N):
  schedule = theory.Schedule(np.full(s + N, 0.3), np.full(s + N, 2.0))
  weights = np.zeros(s + N + 1)
  weights[s : s + N] = 1 / N
  found = theory.tail_average_at(PROBLEM, 0.3, 2, s, N)
  assert found.total == pytest.approx(_pairs(weights, schedule), rel=1e-12)


@pytest.mark.parametrize("eta", [0.25, 0.95, 1.9])  # 1.9: q < 0.
def test_tail_average_matches_the_scan(eta):
  problem = theory.power_law(1e4, 1.6, 2.0, 0.3)
  schedule = theory.Schedule(np.full(300, eta), np.full(300, 64.0))
  _, scan = theory.avg_scan(problem, schedule, theory.theta_uniform(300, 99))
  found = theory.tail_average_at(problem, eta, 64, 100, 201)
  assert found.bias == pytest.approx(scan.bias[-1], rel=1e-12)
  assert found.variance == pytest.approx(scan.variance[-1], rel=1e-12)


@pytest.mark.parametrize("start", [0, 12, 20])
def test_average_over_stages(start):
  stages = theory.Stages(
    np.array([0.4, 0.2, 0.3]), np.array([4.0, 1.0, 2.0]), np.array([5, 9, 10.0])
  )
  schedule = theory.unroll(stages)
  weights = np.zeros(T + 1)
  weights[start + 1 :] = 1 / (T - start)
  found = theory.average_stages(PROBLEM, stages, start)
  assert found.total == pytest.approx(_pairs(weights, schedule), rel=1e-12)
  _, scan = theory.avg_scan(PROBLEM, schedule, theory.theta_uniform(T, start))
  assert found.bias == pytest.approx(scan.bias[-1], rel=1e-12)
  assert found.variance == pytest.approx(scan.variance[-1], rel=1e-12)


def test_average_of_fractional_steps_is_nan_not_wrong():
  assert np.isnan(theory.tail_average_at(PROBLEM, 0.3, 2, 0, 2.5).total)
  stages = theory.Stages(np.array([0.3]), np.array([2.0]), np.array([2.5]))
  assert np.isnan(theory.average_stages(PROBLEM, stages).total)


def test_stationary_ema_is_the_limit_of_the_scan():
  schedule = theory.Schedule(np.full(3000, 0.2), np.full(3000, 2.0))
  _, scan = theory.avg_scan(PROBLEM, schedule, theory.theta_ema(3000, 0.9))
  found = theory.ema_stationary(PROBLEM, 0.2, 2, 0.9)
  assert found == pytest.approx(scan.total[-1], rel=1e-12)
  assert theory.ema_stationary(PROBLEM, 5.0, 2, 0.9) == np.inf


def test_ema_closed_form_at_any_time():
  schedule = theory.Schedule(np.full(40, 0.2), np.full(40, 2.0))
  _, scan = theory.avg_scan(PROBLEM, schedule, theory.theta_ema(40, 0.9))
  found = theory.ema_at(PROBLEM, 0.2, 2, 0.9, 33)
  assert found.bias == pytest.approx(scan.bias[33], rel=1e-12)
  assert found.variance == pytest.approx(scan.variance[33], rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.8, 0.99])
def test_ema_over_stages(beta):
  stages = theory.Stages(
    np.array([0.4, 0.2, 0.3]), np.array([4.0, 1.0, 2.0]), np.array([5, 9, 10.0])
  )
  schedule = theory.unroll(stages)
  found = theory.ema_stages(PROBLEM, stages, beta)
  expected = _pairs(_weights(theory.theta_ema(T, beta)), schedule)
  assert found.total == pytest.approx(expected, rel=1e-12)
  _, scan = theory.avg_scan(PROBLEM, schedule, theory.theta_ema(T, beta))
  assert found.bias == pytest.approx(scan.bias[-1], rel=1e-12)
  assert found.variance == pytest.approx(scan.variance[-1], rel=1e-12)


@pytest.mark.parametrize("eta", [0.2, 1.9])  # 1.9: q < 0.
def test_ema_over_stages_of_many_nodes_and_long(eta):
  problem = theory.power_law(1e4, 1.6, 2.0, 0.3)
  stages = theory.Stages(
    np.array([eta, eta / 10]), np.array([64.0, 8.0]), np.array([2000.0, 500])
  )
  schedule = theory.unroll(stages)
  _, scan = theory.avg_scan(problem, schedule, theory.theta_ema(2500, 0.98))
  found = theory.ema_stages(problem, stages, 0.98)
  assert found.bias == pytest.approx(scan.bias[-1], rel=1e-10)
  assert found.variance == pytest.approx(scan.variance[-1], rel=1e-10)


def _two_stages(eta, batch, steps):
  return theory.Stages(*(np.array(x, float) for x in (eta, batch, steps)))


def test_ema_over_stages_at_its_ends():
  cut = _two_stages([0.2, 0.2], [2, 2], [20, 13])
  found = theory.ema_stages(PROBLEM, cut, 0.9)
  wanted = theory.ema_at(PROBLEM, 0.2, 2, 0.9, 33)
  assert found.total == pytest.approx(wanted.total, rel=1e-13)
  # 10^9 steps: at rest.
  rest = _two_stages([0.4, 0.2], [4, 2], [9, 1e9])
  found = theory.ema_stages(PROBLEM, rest, 0.9)
  limit = theory.ema_stationary(PROBLEM, 0.2, 2, 0.9)
  assert found.total == pytest.approx(limit, rel=1e-12)
  half = _two_stages([0.3, 0.3], [2, 2], [2.5, 2])
  assert np.isnan(theory.ema_stages(PROBLEM, half, 0.9).total)
  unstable = _two_stages([0.3, 5.0], [2, 2], [2, 9])
  assert not theory.ema_stages(PROBLEM, unstable, 0.9).stable


@pytest.mark.parametrize("beta", [1.0, -0.1, np.nan])
def test_decays_outside_the_unit_interval_raise(beta):
  with pytest.raises(ValueError, match="beta="):
    theory.ema_stages(PROBLEM, _two_stages([0.3], [2], [2]), beta)
  with pytest.raises(ValueError, match="beta="):
    theory.ema_at(PROBLEM, 0.3, 2, beta, 4)


def test_huge_tail_average_falls_at_the_predicted_rate():
  problem = theory.power_law(1e9, 1.5, 2.5, 0.3)
  eta = 0.2 * theory.eta_max(problem, 1)
  far = theory.tail_average_at(problem, eta, 1, 1e9, 1e9)
  double = theory.tail_average_at(problem, eta, 1, 2e9, 2e9)
  # The variance of a second-half average falls as N^(-(1 - 1/a)).
  slope = np.log2(double.variance / far.variance)
  assert slope == pytest.approx(-1 / 3, abs=0.01)
