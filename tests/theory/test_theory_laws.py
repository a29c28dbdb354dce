"""Bounds, rates, schedules, batch ramps and critical batch sizes."""

import numpy as np
import pytest

import theory


def _random_problem(rng):
  d = 60  # One shape, one compilation.
  a, b = rng.uniform(1.05, 3.5, 2)
  index = np.arange(1.0, d + 1)
  m0 = index ** (a - b) * rng.standard_normal(d) ** 2
  return theory.from_spectrum(index**-a, m0, rng.uniform(0, 2))


def test_bounds_hold_on_random_problems_and_are_not_vacuous():
  rng = np.random.default_rng(0)
  ratios = {"zou": [], "chi": []}
  for _ in range(30):
    problem = _random_problem(rng)
    N = int(10 ** rng.uniform(1, 4))
    s = int(rng.choice([0, N]))
    eta = rng.uniform(0.1, 0.9) / (3 * problem.lam @ problem.mult)
    exact = theory.tail_average_at(problem, eta, 1, s, N)
    for name, bound in (
      ("zou", theory.zou_bound(problem, eta, s, N)),
      ("chi", theory.chi_bound(problem, eta, 1, s, N)),
    ):
      ratios[name].append(bound.total / exact.total)
      assert bound.total >= exact.total * (1 - 1e-12)
      parts = bound.bias + bound.additive + bound.multiplicative
      assert bound.total == pytest.approx(parts)
  assert 1 < np.median(ratios["chi"]) < 2
  assert 4 < np.median(ratios["zou"]) < 30


def test_bounds_are_infinite_where_they_do_not_apply():
  problem = theory.isotropic(10)
  assert theory.chi_bound(problem, 5.0, 1, 0, 10).total == np.inf
  assert theory.zou_bound(problem, 0.2, 0, 10).total == np.inf
  dim, k_star = theory.effective_dim(problem, 0.1, 1000)
  assert (dim, k_star) == (10, 10)


def _averaged_slope(a, b, gamma):
  problem = theory.power_law(1e7, a, b, 1.0, nodes=4)
  T = 100_000
  eta = theory.anytime(0.3 * theory.eta_max(problem, 1), T, gamma)
  _, averaged = theory.avg_scan(
    problem, theory.schedule(eta, 1), theory.theta_poly(T, 3.0), every=1000
  )
  ts = np.arange(0, T + 1, 1000)[1:]
  return theory.slope(ts, averaged.total[1:])


@pytest.mark.parametrize(("a", "b", "gamma"), [
  (1.5, 2.5, 0.0), (1.5, 2.5, 0.4), (2.0, 1.5, 0.0), (2.0, 1.5, 0.5),
])  # fmt: skip
def test_measured_slopes_are_the_predicted_ones(a, b, gamma):
  predicted = theory.exponents(a, b, gamma, "poly").risk
  assert _averaged_slope(a, b, gamma) == pytest.approx(predicted, abs=0.02)


@pytest.mark.parametrize(("a", "b"), [(1.5, 2.0), (1.5, 2.9), (2.0, 6.0)])
def test_noiseless_slopes_are_the_predicted_ones(a, b):
  problem = theory.power_law(1e9, a, b, 0.0)
  eta = 0.3 * theory.eta_max(problem, 1)
  ts = np.logspace(6, 7, 20)
  risks = theory.risk_at(problem, eta, 1, ts).total
  predicted = theory.exponents(a, b, average="last", noise=False).risk
  assert theory.slope(ts, risks) == pytest.approx(predicted, abs=0.02)


def test_predicted_exponents_of_the_table():
  assert theory.gamma_star(1.5, 2.5) == pytest.approx(0.4)
  assert theory.gamma_star(2.0, 1.5) == 0
  best = theory.exponents(1.5, 2.5, theory.gamma_star(1.5, 2.5))
  assert best.risk == pytest.approx(-1.5 / 2.5)
  assert best.bias == pytest.approx(best.variance)
  assert theory.exponents(1.5, 2.5, "tuned").risk == pytest.approx(-0.6)
  assert theory.exponents(2.0, 1.5, "tuned").risk == pytest.approx(-0.25)
  assert theory.exponents(1.5, 2.5, 0.0, "last").risk == 0  # A floor.
  assert theory.exponents(1.5, 2.5, 0.5).risk == pytest.approx(-0.5)
  with pytest.raises(ValueError, match="both exceed 1"):
    theory.exponents(0.9, 2.0)
  with pytest.raises(ValueError, match="two or more"):
    theory.slope([1.0, 100.0], [1.0, 0.5])


def test_shapes_of_schedules():
  T = 1000
  assert theory.cosine(2.0, T)[0] == 2.0
  assert theory.cosine(1.0, T).mean() == pytest.approx(0.5, abs=1e-3)
  assert theory.quarter_cosine(1.0, T).mean() == pytest.approx(
    2 / np.pi, abs=1e-3
  )
  assert theory.linear(1.0, T).mean() == pytest.approx(0.5, abs=1e-3)
  assert theory.power(1.0, T, 3).mean() == pytest.approx(0.25, abs=1e-3)
  wsd = theory.wsd(1.0, T, 0.2, warmup=0.1)
  assert wsd[0] == pytest.approx(0.01)
  np.testing.assert_allclose(wsd[100:801], 1)
  assert wsd[900] == pytest.approx(0.5)
  np.testing.assert_allclose(
    theory.anytime(1.0, 4, 0.5), [1, 2**-0.5, 3**-0.5, 0.5]
  )
  assert theory.inv_sqrt(1.0, 10, 5.0)[4] == pytest.approx(0.5**0.5)
  np.testing.assert_allclose(theory.step_decay(1.0, [2, 1], 2.0), [1, 1, 0.5])
  with pytest.raises(ValueError, match="sum <= 1"):
    theory.wsd(1.0, 10, 0.9, warmup=0.2)


def test_discretised_cosine_keeps_the_risk():
  problem = theory.power_law(1e4, 1.5, 2.0, 1.0, nodes=4)
  eta = theory.cosine(0.1 * theory.eta_max(problem, 4), 5000)
  schedule = theory.schedule(eta, 4)
  stages = theory.discretise(schedule, 1.1)
  assert stages.eta.size < 120
  assert stages.eta @ stages.steps == pytest.approx(eta.sum())
  assert stages.steps.sum() == 5000
  exact = theory.risk_scan(problem, schedule).total[-1]
  close = theory.final_risk(problem, theory.unroll(stages)).total
  assert close == pytest.approx(exact, rel=2e-3)


def _decay(samples_per_phase, phases=7, eta=1.0, batch=8.0, alpha=2.0):
  return theory.stages_of_steps(
    eta * alpha ** -np.arange(phases), batch, samples_per_phase / batch
  )


def _ramp(decay, a, b):
  """Each phase divides eta by a and multiplies B by b, same samples."""
  k = np.arange(decay.eta.size)
  batch = decay.batch * b**k
  return theory.Stages(
    decay.eta[0] * a**-k, batch, decay.batch * decay.steps / batch
  )


def test_seesaw_conversion_is_the_ramp_of_its_paper():
  decay = _decay(65_536.0)
  see = theory.seesaw(decay, 2.0)
  expected = _ramp(decay, 2**0.5, 2.0)
  for one, two in zip(see, expected, strict=True):
    np.testing.assert_allclose(one, two)
  sgd = theory.seesaw(decay, 2.0, rule="sgd")
  np.testing.assert_allclose(sgd.eta / sgd.batch, decay.eta / decay.batch)
  whole = theory.seesaw(decay, 2.0, whole=True)
  assert (whole.batch == np.round(whole.batch)).all()
  assert (whole.steps == np.round(whole.steps)).all()
  lost = decay.batch @ decay.steps - whole.batch @ whole.steps
  assert 0 <= lost < whole.batch[-1]


def _nsgd_end(problem, stages):
  curve = theory.nsgd_scan(problem, theory.unroll(stages))
  ends = np.cumsum(stages.steps).astype(int)
  return curve.total[ends]


def test_seesaw_holds_on_the_boundary_and_fails_beyond():
  problem = theory.power_law(1e6, 1.5, 2.0, 1.0, nodes=4)
  decay = _decay(65_536.0 * 4, eta=0.1)
  base = _nsgd_end(problem, decay)
  see = theory.seesaw(decay, 2.0)
  see = see._replace(steps=np.round(see.steps))
  far = _ramp(decay, 1.0, 4.0)
  far = far._replace(steps=np.round(far.steps))
  assert np.max(_nsgd_end(problem, see) / base) < 1.05
  assert np.max(_nsgd_end(problem, far) / base) > 2
  assert theory.serial_fraction(decay, see) == pytest.approx(0.28, abs=0.01)


def test_quarter_cosine_saves_36_percent_of_the_serial_steps():
  T = 20_000
  stages = theory.discretise(
    theory.schedule(theory.quarter_cosine(1.0, T), 64), 1.02
  )
  # Replacing lr factors f by batch growth 1 / f at the same samples.
  ramp = theory.seesaw(stages, 1.02)
  saved = 1 - theory.serial_fraction(stages, ramp)
  assert saved == pytest.approx(1 - 2 / np.pi, abs=5e-3)


def test_critical_batch_on_a_known_table():
  batches = np.array([1.0, 2, 4, 8, 16, 32])
  samples = np.logspace(3, 5, 21)
  # Data needed grows as 1 + B / 20: 1.2 times that of B = 1 at B = 5.2.
  table = 1e3 / samples * (1 + batches[:, None] / 20) / (1 + 1 / 20)
  found = theory.critical_batch(table[None], batches, samples)
  assert found[0] == pytest.approx(5.2, rel=1e-6)
  assert np.isnan(found[-1])  # No head room in the grid.
  table[1] *= 0.99  # A batch that is better than the reference is not past.
  again = theory.critical_batch(table[None], batches, samples)
  assert again[0] == pytest.approx(5.2, rel=1e-6)
  assert theory.data_to_target([4.0, 2.0, 1.0], [1, 2, 4], 2.0) == 2
  assert np.isnan(theory.data_to_target([4.0, 2.0], [1, 2], 1.0))


def test_risk_table_is_the_tail_average():
  problem = theory.power_law(1e3, 1.5, 2.0, 1.0, nodes=4)
  batches = np.array([1.0, 8.0])
  etas = theory.eta_grid(problem, batches, 3)
  table = theory.risk_table(problem, etas, batches, [100.0, 1001.0])
  assert table.shape == (3, 2, 2)
  half = theory.tail_average_at(problem, etas[1, 1], 8, 125 - 63, 63)
  assert table[1, 1, 1] == pytest.approx(half.total, rel=1e-12)
  wild = theory.risk_table(problem, 2 * etas, batches, [100.0, 1001.0])
  assert np.isinf(wild[2]).all()


def test_noise_scale_balances_noise_and_mean():
  problem = theory.power_law(50, 1.5, 2.0, 1.0, nodes=None)
  scale = theory.noise_scale(problem, problem.m0)
  total, share = theory.grad_second_moment(problem, problem.m0, scale)
  assert share == pytest.approx(0.5)
  assert total == pytest.approx(2 * np.sum(problem.lam**2 * problem.m0))
