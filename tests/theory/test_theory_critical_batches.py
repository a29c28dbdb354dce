"""Critical batch sizes against dense averages, samples and curve fits."""

import fractions
import math

import numpy as np
import pytest
from oracles import linear_regression as oracle
from scipy import optimize

import theory

LAM = np.array([1.0, 0.6, 0.2, 0.05])
M0 = np.arange(1.0, 5.0)
PROBLEM = theory.from_spectrum(LAM, M0, 0.4)


def _half_average(eta, batch, samples, share="1/2"):
  """Risk of the mean of the last share of w_0, ..., w_{T-1}, dense."""
  T = int(samples // batch)
  half = math.ceil(fractions.Fraction(share) * T)
  weights = np.zeros(T)
  weights[T - half :] = 1 / half
  return oracle.average_risk(
    weights,
    np.diag(M0),
    np.diag(LAM),
    np.full(T - 1, eta),
    np.full(T - 1, float(batch)),
    0.4,
  )


def test_table_is_the_dense_second_half_average():
  etas, batches, samples = np.array([0.1, 0.3]), [1, 3, 8], [9.0, 17.0, 40.0]
  each = np.tile(etas[:, None], (1, 3))
  table = theory.risk_table(PROBLEM, each, batches, samples)
  assert table.shape == (2, 3, 3)
  for i, eta in enumerate(etas):
    for j, batch in enumerate(batches):
      for k, size in enumerate(samples):
        if size // batch < 2:
          assert table[i, j, k] == np.inf
        else:
          wanted = _half_average(eta, batch, size)
          assert table[i, j, k] == pytest.approx(wanted, rel=1e-11)


def test_table_takes_one_step_size_per_batch():
  batches = np.array([1.0, 4.0, 8.0])
  etas = theory.eta_grid(PROBLEM, batches, 2, lowest=0.1)
  limits = [theory.eta_max(PROBLEM, b) for b in batches]
  np.testing.assert_allclose(etas[0], 0.09 * np.array(limits), rtol=1e-12)
  np.testing.assert_allclose(etas[1], 0.9 * np.array(limits), rtol=1e-12)
  samples = [9.0, 25.0, 40.0]
  table = theory.risk_table(PROBLEM, etas, batches, samples)
  wanted = _half_average(etas[1, 1], 4, 40)
  assert table[1, 1, 2] == pytest.approx(wanted, rel=1e-11)
  wild = theory.risk_table(PROBLEM, [[0.1] * 3, [3.0] * 3], batches, samples)
  assert np.isinf(wild[1]).all()
  assert np.isfinite(wild[0, 0]).all()


@pytest.mark.parametrize("share", ["1/10", "7/25", "1/3", "7/10", "1"])
def test_table_averages_the_share_asked_for(share):
  """Ten and 25 steps: 0.28 * 25 is 7.000000000000001 and means seven."""
  etas, batches, samples = [[0.1] * 3, [0.3] * 3], [1, 2, 8], [10.0, 25.0, 7.0]
  number = float(fractions.Fraction(share))
  table = theory.risk_table(PROBLEM, etas, batches, samples, number)
  for k in (0, 1):
    wanted = _half_average(0.3, 1, samples[k], share)
    assert table[1, 0, k] == pytest.approx(wanted, rel=1e-11)
    wanted = _half_average(0.1, 2, samples[k], share)
    assert table[0, 1, k] == pytest.approx(wanted, rel=1e-11)
  assert table[0, 2, 2] == np.inf  # Less than one batch.


@pytest.mark.parametrize("share", [0.0, 1.1, np.nan])
def test_shares_outside_a_run_are_named(share):
  with pytest.raises(ValueError, match=r"share=.* must be in \(0, 1\]"):
    theory.risk_table(PROBLEM, [0.1], [1.0], [9.0], share)


def _need(curve, samples, target):
  """Where the log-log polygon through the curve falls to the target."""
  fn = lambda x: (  # noqa: E731
    np.interp(x, np.log(samples), np.log(curve)) - np.log(target)
  )
  return np.exp(optimize.brentq(fn, np.log(samples[0]), np.log(samples[-1])))


def test_data_to_target_is_the_root_of_the_polygon():
  samples = np.array([10.0, 30.0, 50.0, 400.0, 1000.0])
  risks = np.array([5.0, 2.0, 1.5, 0.4, 0.1])
  for target in (4.0, 1.7, 0.41, 0.11):
    found = theory.data_to_target(risks, samples, target)
    assert found == pytest.approx(_need(risks, samples, target), rel=1e-10)
  many = theory.data_to_target(risks, samples, [[4.0, 1.7], [6.0, 5.0]])
  assert many.shape == (2, 2)
  assert many[0, 1] == pytest.approx(_need(risks, samples, 1.7), rel=1e-10)
  assert theory.data_to_target(risks, samples, 5.0) == 10
  assert theory.data_to_target(risks, samples, 0.1) == 1000
  assert np.isnan(theory.data_to_target(risks, samples, 6.0))
  assert np.isnan(theory.data_to_target(risks, samples, 0.09))
  risks[0] = np.inf  # Unstable or unfinished: nothing to interpolate from.
  assert np.isnan(theory.data_to_target(risks, samples, 3.0))


@pytest.mark.parametrize("over", [0.1, 0.2, 0.7])
def test_critical_batch_is_the_first_crossing(over):
  batches = np.array([1.0, 3.0, 9.0, 30.0, 90.0])
  samples = np.logspace(3, 6, 40)
  # Needs D (1 + (B / b0)^0.7), b0 growing with the data.
  scale = 10 + 2 * np.log(samples)
  curves = np.array([(1 + (b / scale) ** 0.7) / samples for b in batches])
  worse = 3 * curves
  table = np.stack([worse, curves])  # The step size is tuned: the best rules.
  found = theory.critical_batch(table, batches, samples, over=over)
  for j in (0, 7, 15):
    target = curves[0, j]
    excess = [_need(c, samples, target) / samples[j] for c in curves[1:]]
    excess = np.array([1.0, *excess])
    k = np.flatnonzero(excess > 1 + over)[0]
    assert k >= 1
    share = (1 + over - excess[k - 1]) / (excess[k] - excess[k - 1])
    wanted = batches[k - 1] + share * (batches[k] - batches[k - 1])
    assert found[j] == pytest.approx(wanted, rel=1e-9)


def test_critical_batch_is_nan_outside_the_grid():
  samples = np.logspace(3, 4, 5)
  flat = np.tile(1 / samples, (3, 1))  # Every batch is as good as one.
  found = theory.critical_batch(flat[None], [1, 2, 4], samples)
  assert np.isnan(found).all()


def _gradients(rng, batch, replicas):
  """Batch gradients at errors of second moments M0 (random signs)."""
  delta = rng.choice([-1.0, 1.0], (replicas, 4)) * np.sqrt(M0)
  x = rng.standard_normal((replicas, batch, 4)) * np.sqrt(LAM)
  residual = np.einsum("rbd,rd->rb", x, delta)
  residual -= np.sqrt(0.4) * rng.standard_normal((replicas, batch))
  return np.einsum("rbd,rb->rd", x, residual) / batch, delta


def test_noise_scale_is_the_ratio_of_sampled_gradients():
  """tr cov of one sample's gradient over the square of the mean one."""
  rng = np.random.default_rng(0)
  one, delta = _gradients(rng, 1, 200_000)
  noise = np.sum((one - LAM * delta) ** 2, axis=1)
  mean = np.sum(LAM**2 * M0)
  stderr = noise.std() / np.sqrt(len(noise))
  found = theory.noise_scale(PROBLEM, M0)
  assert abs(found * mean - noise.mean()) < 4.5 * stderr
  # Simple closed value: Gaussian features have tr H (r + sigma2) + lam^2 z.
  r = LAM @ M0
  assert found == pytest.approx(
    (LAM.sum() * (r + 0.4) + mean) / mean, rel=1e-13
  )


@pytest.mark.parametrize("batch", [1, 6])
def test_second_moment_of_gradients_is_sampled(batch):
  g, _ = _gradients(np.random.default_rng(1), batch, 150_000)
  square = np.sum(g**2, axis=1)
  stderr = square.std() / np.sqrt(len(square))
  total, share = theory.grad_second_moment(PROBLEM, M0, batch)
  assert abs(total - square.mean()) < 4.5 * stderr
  assert share == pytest.approx(np.sum(LAM**2 * M0) / total, rel=1e-13)


def test_steps_fit_is_least_squares_in_logs():
  rng = np.random.default_rng(2)
  batches = 2.0 ** np.arange(4, 14)
  steps = (300 + 2e5 / batches) * np.exp(0.05 * rng.standard_normal(10))
  fit = theory.steps_fit(batches, steps, reference=16.0, over=0.3)
  (a, b), _ = optimize.curve_fit(
    lambda B, a, b: np.log(np.exp(a) + np.exp(b) / B),
    batches,
    np.log(steps),
    p0=[5.0, 12.0],
    ftol=1e-14,
    xtol=1e-14,
  )
  assert fit.steps_min == pytest.approx(np.exp(a), rel=1e-5)
  assert fit.samples_min == pytest.approx(np.exp(b), rel=1e-5)
  # Steps at B* are 1.3 times what linear scaling from 16 would give.
  linear = (np.exp(a) + np.exp(b) / 16) * 16 / fit.critical
  at = np.exp(a) + np.exp(b) / fit.critical
  assert at / linear == pytest.approx(1.3, rel=1e-4)


def test_steps_fit_names_bad_columns():
  with pytest.raises(ValueError, match="one length"):
    theory.steps_fit([1.0, 2.0], [3.0])


def test_a_batch_that_is_better_from_the_first_sample_on_is_not_past():
  batches = np.array([1.0, 2, 4, 8])
  samples = np.logspace(3, 5, 21)
  # Data needed grows as 1 + B / 20, but batch 2 is below the first target.
  table = 1e3 / samples * (1 + batches[:, None] / 20)
  table[1] *= 0.9
  assert table[1, 0] < table[0, 0]
  found = theory.critical_batch(table[None], batches, samples)
  # 1.2 times the data of batch 1: (1 + B / 20) / 1.05 = 1.2.
  assert found[0] == pytest.approx(20 * (1.2 * 1.05 - 1), rel=1e-6)
