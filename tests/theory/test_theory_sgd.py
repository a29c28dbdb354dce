"""The O(D) recursion against dense moments, simulation and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import linear_regression as oracle

import theory

LAWS = {
  "gaussian": ("gaussian", None, {}),
  "rademacher": ("independent", 1.0, {"law": "rademacher"}),
  "laplace": ("independent", 6.0, {"law": "laplace"}),
  "elliptic": ("elliptic", 1.7, {"elliptic": 1.7}),
  "one-hot": ("one-hot", None, {"law": "one-hot"}),
}


def _random_covariance(rng, d):
  basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
  return basis @ np.diag(rng.uniform(0.05, 1.0, d)) @ basis.T


def _dense_curve(C, H, schedule, sigma2, law="gaussian", value=None):
  risks = [oracle.risk(C, H)]
  for eta, B in zip(schedule.eta, schedule.batch, strict=True):
    C = oracle.sgd_step(C, H, eta, B, sigma2, law, value)
    risks.append(oracle.risk(C, H))
  return np.array(risks)


def _schedule(eta, T, batch):
  ramp = 1 + 0.5 * np.sin(np.arange(T))
  return theory.Schedule(eta * ramp, np.full(T, float(batch)))


@pytest.mark.parametrize("batch", [1, 3])
def test_rotated_covariance_follows_the_dense_recursion(batch):
  rng = np.random.default_rng(batch)
  H, w0, wstar = _random_covariance(rng, 12), *rng.standard_normal((2, 12))
  problem = theory.from_covariance(H, w0, wstar, 0.4)
  schedule = _schedule(0.1, 300, batch)
  dense_T = _dense_curve(np.outer(w0 - wstar, w0 - wstar), H, schedule, 0.4)
  curve = theory.risk_scan(problem, schedule)
  np.testing.assert_allclose(curve.total, dense_T, rtol=1e-12)
  np.testing.assert_allclose(curve.bias + curve.variance, curve.total)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", LAWS)
def test_feature_laws_follow_the_dense_recursion(name, batch):
  law, value, options = LAWS[name]
  rng = np.random.default_rng(3)
  lam = rng.uniform(0.05, 1.0, 8)
  lam /= lam.sum()  # One-hot features need it, the others do not mind.
  root = rng.standard_normal((8, 8))
  C = root @ root.T
  problem = theory.with_features(
    theory.from_spectrum(lam, np.diag(C), 0.3), **options
  )
  if name == "one-hot":  # from_spectrum sorts: keep the oracle's order.
    assert problem.kappa.shape == (8,)
  schedule = _schedule(0.3, 200, batch)
  dense_T = _dense_curve(C, np.diag(lam), schedule, 0.3, law, value)
  curve_T = theory.risk_scan(problem, schedule).total
  np.testing.assert_allclose(curve_T, dense_T, rtol=1e-12)


def test_three_parts_add_up_and_mean_is_gradient_descent():
  problem = theory.power_law(20, 1.5, 2.0, 0.5, nodes=None)
  schedule = _schedule(0.2, 100, 2)
  parts = theory.risk_scan(problem, schedule, parts=True)
  curve = theory.risk_scan(problem, schedule)
  np.testing.assert_allclose(
    parts.mean + parts.multiplicative, curve.bias, rtol=1e-12
  )
  np.testing.assert_allclose(parts.additive, curve.variance, rtol=1e-12)
  decay = np.prod(1 - schedule.eta[:, None] * problem.lam, axis=0) ** 2
  descent = np.sum(problem.lam * problem.m0 * decay) / 2
  np.testing.assert_allclose(parts.mean[-1], descent, rtol=1e-12)


def test_multiplicity_stands_for_equal_directions():
  many = theory.Problem(np.ones(7), np.full(7, 2.0), np.ones(7), 0.3)
  one = theory.from_spectrum(many.lam, many.m0, 0.3)
  assert one.lam.shape == (1,)
  schedule = _schedule(0.1, 50, 2)
  np.testing.assert_allclose(
    theory.risk_scan(one, schedule).total,
    theory.risk_scan(many, schedule).total,
    rtol=1e-13,
  )


def test_simulated_risk_agrees():
  rng = np.random.default_rng(0)
  H = _random_covariance(rng, 8)
  w0, wstar = np.zeros(8), rng.standard_normal(8)
  etas, batches = np.full(40, 0.2), np.full(40, 2)
  risks_TR = oracle.simulate(rng, H, w0, wstar, 0.5, etas, batches, 20_000)
  problem = theory.from_covariance(H, w0, wstar, 0.5)
  exact_T = theory.risk_scan(
    problem, theory.Schedule(etas, batches.astype(float))
  ).total
  stderr_T = risks_TR.std(axis=1) / np.sqrt(risks_TR.shape[1])
  gap_T = np.abs(risks_TR.mean(axis=1) - exact_T)
  np.testing.assert_array_less(gap_T, 4.5 * stderr_T + 1e-12)


def test_every_and_final_agree_with_the_full_curve():
  problem = theory.power_law(500, 1.5, 2.0)
  schedule = _schedule(0.1, 107, 4)
  full = theory.risk_scan(problem, schedule)
  some = theory.risk_scan(problem, schedule, every=10)
  np.testing.assert_allclose(some.total, full.total[:101:10], rtol=1e-13)
  for checkpoint in (True, False):
    last = theory.final_risk(problem, schedule, checkpoint=checkpoint)
    np.testing.assert_allclose(last.bias, full.bias[-1], rtol=1e-12)
    np.testing.assert_allclose(last.variance, full.variance[-1], rtol=1e-12)
  one = theory.step(problem, problem.m0, 0.1, 4)
  assert one @ problem.lam / 2 == pytest.approx(full.total[1], rel=1e-13)


def test_gradient_through_a_schedule_matches_finite_differences():
  problem = theory.power_law(200, 1.5, 2.0)
  schedule = _schedule(0.05, 60, 4)

  @theory.float64()
  def value(eta):
    return theory.final_risk(problem, schedule._replace(eta=eta)).total

  with theory.float64():
    grad = jax.grad(value)(jnp.asarray(schedule.eta))
  bump = np.zeros(60)
  bump[17] = 1e-5
  slope = (value(schedule.eta + bump) - value(schedule.eta - bump)) / 2e-5
  np.testing.assert_allclose(grad[17], slope, rtol=1e-7)


def test_compensated_float32_keeps_the_curve():
  problem = theory.power_law(1e4, 1.5, 2.0, 0.5)
  schedule = theory.Schedule(np.full(10_000, 0.02), np.full(10_000, 64.0))
  exact = theory.risk_scan(problem, schedule, every=1000).total

  def single(compensated):  # Traced outside the scope: the caller's float32.
    run = jax.jit(
      lambda p, s: (
        theory.risk_scan(p, s, every=1000, compensated=compensated).total
      )
    )
    cast = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    out = run(jax.tree.map(cast, problem), jax.tree.map(cast, schedule))
    assert out.dtype == jnp.float32
    return np.max(np.abs(out / exact - 1))

  assert single(True) < 5e-7
  assert single(False) > 3 * single(True)


def test_precision_scope_leaves_the_process_alone():
  before = jax.config.jax_enable_x64
  out = theory.risk_at(theory.isotropic(4), np.float32(0.1), 2, 3.0)
  assert type(out.total) is np.float64
  assert jax.config.jax_enable_x64 == before is False
  assert jnp.ones(2).dtype == jnp.float32
  with pytest.raises(ValueError, match=r"theory.float64\(\)"):
    jax.grad(lambda e: theory.risk_at(theory.isotropic(4), e, 2, 3.0).total)(
      0.1
    )


def test_runs_beside_a_training_mesh():
  mesh = jax.make_mesh((8,), ("data",))
  with jax.set_mesh(mesh):
    inside = theory.risk_at(theory.isotropic(4), 0.1, 2, 3.0).total
    curve = theory.risk_scan(theory.isotropic(4), _schedule(0.1, 3, 2))
  assert inside == theory.risk_at(theory.isotropic(4), 0.1, 2, 3.0).total
  assert curve.total.shape == (4,)


GOOD = theory.power_law(8, 1.5, 2.0, nodes=None)
BAD = [
  (lambda: theory.from_spectrum([1.0, -0.1], [1, 1], 1.0), "problem.lam=-0.1"),
  (
    lambda: theory.from_spectrum([1.0, 0.5], [1.0], 1.0),
    "problem.m0 has shape",
  ),
  (lambda: theory.risk_at(GOOD, 0.1, 0.5, 3.0), "batch=0.5 is below 1"),
  (lambda: theory.risk_at(GOOD, 0.1, 2, [1.0, np.inf]), "t=inf"),
  (lambda: theory.risk_at(GOOD, np.nan, 2, 1.0), "eta=nan"),
  (
    lambda: theory.risk_scan(GOOD, theory.Schedule(np.ones(3), np.ones(2))),
    "schedule has shapes",
  ),
  (lambda: theory.from_covariance(np.eye(3)[:2], 0, 0, 1), "square"),
  (lambda: theory.from_covariance(-np.eye(3), [0] * 3, [1] * 3, 1), "< 0"),
  (lambda: theory.with_features(GOOD, "cauchy"), "law='cauchy'"),
  (lambda: theory.with_features(GOOD, "one-hot"), "divide lam by its sum"),
  (lambda: theory.theta_ema(5), "exactly one"),
  (lambda: theory.power_law(0, 2, 2), "d=0"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_unstable_steps_are_exact_and_say_so():
  problem = theory.power_law(30, 1.2, 2.0, nodes=None)
  eta = 1.2 * theory.eta_max(problem, 2)
  calm = _schedule(0.01, 20, 2)
  rough = theory.Schedule(np.r_[calm.eta, eta], np.r_[calm.batch, 2.0])
  assert theory.risk_scan(problem, calm).stable
  assert not theory.risk_scan(problem, rough).stable
  late = theory.risk_at(problem, eta, 2, [0.0, 1e3])
  assert not late.stable
  assert late.total[1] > late.total[0]
  assert theory.stationary(problem, eta, 2)[0] == np.inf


def test_order_of_eigenvalues_does_not_matter():
  rng = np.random.default_rng(1)
  shuffle = rng.permutation(GOOD.lam.size)
  mixed = GOOD._replace(lam=GOOD.lam[shuffle], m0=GOOD.m0[shuffle])
  t = np.array([0.0, 1.0, 50.0])
  np.testing.assert_allclose(
    theory.risk_at(mixed, 0.3, 2, t).total,
    theory.risk_at(GOOD, 0.3, 2, t).total,
    rtol=1e-13,
  )
  np.testing.assert_allclose(
    theory.state_at(mixed, 0.3, 2, 9.0),
    theory.state_at(GOOD, 0.3, 2, 9.0)[shuffle],
    rtol=1e-12,
  )
