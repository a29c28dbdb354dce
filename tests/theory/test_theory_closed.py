"""Closed forms against the time loop, 60 digits and dense operators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import linear_regression as oracle

import theory

CASES = [  # d, a, b, batch, eta / eta_max
  (200, 1.2, 1.5, 1, 0.5),
  (200, 2.0, 3.0, 4, 0.9),
  (200, 1.5, 2.5, 64, 0.99),  # Beyond the vertex: s falls with lam again.
  (200, 1.5, 2.0, 4, 1.05),  # Divergent.
]


def _constant(eta, batch, T):
  return theory.Schedule(np.full(T, eta), np.full(T, float(batch)))


@pytest.mark.parametrize("case", CASES)
def test_risk_and_state_match_the_time_loop(case):
  d, a, b, batch, fraction = case
  problem = theory.power_law(d, a, b, 0.3, nodes=None)
  eta = fraction * theory.eta_max(problem, batch)
  scan = theory.risk_scan(problem, _constant(eta, batch, 500))
  risk = theory.risk_at(problem, eta, batch, np.arange(501.0))
  np.testing.assert_allclose(risk.bias, scan.bias, rtol=1e-12)
  np.testing.assert_allclose(risk.variance, scan.variance, rtol=1e-12, atol=0)
  assert risk.stable == (fraction < 1)
  z = problem.m0
  for _ in range(7):
    z = theory.step(problem, z, eta, batch)
  np.testing.assert_allclose(
    theory.state_at(problem, eta, batch, 7), z, rtol=1e-10
  )


LAWS = [{"law": "rademacher"}, {"law": "laplace"}, {"elliptic": 1.5}]


@pytest.mark.parametrize("batch", [1.0, 3.0, np.inf])
@pytest.mark.parametrize("law", LAWS)
def test_other_features_match_the_time_loop(law, batch):
  problem = theory.power_law(30, 1.2, 1.5, 0.3, nodes=None)
  problem = theory.with_features(problem, **law)
  eta = 0.6 * theory.eta_max(problem, batch)
  scan = theory.risk_scan(problem, _constant(eta, batch, 200))
  risk = theory.risk_at(problem, eta, batch, np.arange(201.0))
  np.testing.assert_allclose(risk.bias, scan.bias, rtol=1e-12)
  np.testing.assert_allclose(risk.variance, scan.variance, rtol=1e-12, atol=0)


@pytest.mark.parametrize("batch", [1.0, 3.0])
def test_one_hot_features_match_the_time_loop(batch):
  problem = theory.power_law(30, 1.2, 1.5, 0.3, nodes=None)
  problem = problem._replace(lam=problem.lam / problem.lam.sum())
  problem = theory.with_features(problem, "one-hot")
  scan = theory.risk_scan(problem, _constant(0.9, batch, 200))
  risk = theory.risk_at(problem, 0.9, batch, np.arange(201.0))
  np.testing.assert_allclose(risk.total, scan.total, rtol=1e-13)
  assert theory.eta_max(problem, 1.0) == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("fraction", [0.5, 0.7])
def test_sixty_digits_over_twelve_decades(fraction):
  lam = np.logspace(0, -11.5, 9)
  m0 = 1 / lam  # Every direction carries the same risk.
  problem = theory.from_spectrum(lam, m0, 0.3)
  eta = fraction * theory.eta_max(problem, 2)
  times = np.logspace(0, 12, 13)
  exact = oracle.decimal_risk(lam, m0, 0.3, eta, 2, times)
  risk = theory.risk_at(problem, eta, 2, times)
  np.testing.assert_allclose(risk.bias, exact[:, 0], rtol=4e-15)
  np.testing.assert_allclose(risk.variance, exact[:, 1], rtol=4e-15)


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_eta_max_is_where_the_dense_operator_stops_contracting(batch):
  lam = np.array([1.0, 0.7, 0.3, 0.1, 0.03])
  problem = theory.from_spectrum(lam, np.ones(5), 1.0)
  limit = theory.eta_max(problem, batch)
  one = np.ones(1)
  for side in (-1, 1):
    eta = limit * (1 + side * 1e-6)
    operator = oracle.block_operator(
      np.diag(lam), np.eye(1), eta * one, one, batch
    )
    assert (oracle.radius(operator) > 1) == (side > 0)


@pytest.mark.parametrize("batch", [1, 7])
def test_isotropic_limits(batch):
  problem = theory.isotropic(50, 1.0, 0.3)
  limit = theory.eta_max(problem, batch)
  assert limit == pytest.approx(2 * batch / (50 + batch + 1), rel=1e-12)
  eta = 0.4 * limit
  chi = theory.chi(problem, eta, batch)
  rest = theory.stationary(problem, eta, batch) @ problem.lam / 2
  assert rest == pytest.approx(0.15 * chi / (1 - chi), rel=1e-12)
  late = theory.risk_at(problem, eta, batch, 1e6)
  assert late.total == pytest.approx(rest, rel=1e-12)


# Three equal directions with different errors; and eta c_B lam = 1 +- 1/2,
# which gives one pole twice (c_B = 1.25, eta = 0.8).
REPEATED = theory.Problem(
  np.array([1.0, 0.5, 0.5, 0.5, 0.1]), np.arange(1.0, 6), np.ones(5), 0.3
)
MIRRORED = theory.from_spectrum([1.5, 0.5, 0.2, 0.1, 0.01], np.ones(5), 0.3)


@pytest.mark.parametrize(
  ("problem", "eta", "batch"), [(REPEATED, 0.4, 2.0), (MIRRORED, 0.8, 4.0)]
)
def test_coincident_poles_keep_states_and_gradients(problem, eta, batch):
  z, T = problem.m0, 30
  for _ in range(T):
    z = theory.step(problem, z, eta, batch)
  np.testing.assert_allclose(
    theory.state_at(problem, eta, batch, T), z, rtol=1e-12
  )

  def closed(p):
    return theory.risk_at(p, eta, batch, float(T)).total

  def scanned(p):
    return theory.final_risk(p, _constant(eta, batch, T)).total

  problem = jax.tree.map(np.asarray, problem)
  with theory.float64():
    one, two = jax.grad(closed)(problem), jax.grad(scanned)(problem)
  np.testing.assert_allclose(one.lam, two.lam, rtol=1e-8)
  np.testing.assert_allclose(one.m0, two.m0, rtol=1e-8)
  assert closed(problem) == pytest.approx(scanned(problem), rel=1e-13)


def test_compressed_power_law_is_the_full_one():
  full = theory.power_law(10_000, 1.5, 2.5, 0.3, nodes=None)
  eta = 0.4 * theory.eta_max(full, 4)
  exact = theory.risk_scan(full, _constant(eta, 4, 400), every=100)
  t = np.arange(0, 401.0, 100)
  errors = []
  for nodes in (4, 8):
    small = theory.power_law(10_000, 1.5, 2.5, 0.3, nodes=nodes)
    errors.append(
      np.abs(theory.risk_at(small, eta, 4, t).total / exact.total - 1).max()
    )
  assert errors[1] < 1e-11
  assert errors[0] < 1e-5
  assert theory.power_law(1e5, 1.5, 2.5).lam.size == 151
  assert theory.power_law(1e12, 1.5, 2.5).lam.size < 400


def test_compressed_random_signal_is_the_full_one():
  rng = np.random.default_rng(0)
  lam = np.arange(1, 10_001) ** -1.5
  full = theory.from_spectrum(lam, rng.standard_normal(lam.size) ** 2, 0.3)
  small = theory.compress(full)
  assert small.lam.size < 300
  eta = 0.4 * theory.eta_max(full, 4)
  assert theory.eta_max(small, 4) == pytest.approx(
    theory.eta_max(full, 4), rel=1e-12
  )
  exact = theory.risk_scan(full, _constant(eta, 4, 300))
  risk = theory.risk_at(small, eta, 4, np.arange(301.0))
  np.testing.assert_allclose(risk.bias, exact.bias, rtol=1e-11)
  np.testing.assert_allclose(risk.variance, exact.variance, rtol=1e-11, atol=0)
  z = small.m0
  for _ in range(9):
    z = theory.step(small, z, eta, 4)
  # Signal nodes that happen to lie beside a noise node lose a few digits.
  np.testing.assert_allclose(
    theory.state_at(small, eta, 4, 9), z, rtol=1e-7, atol=1e-16
  )


def _stages():
  return theory.Stages(
    np.array([0.2, 0.1, 0.07]), np.array([4.0, 8.0, 2.0]), np.array([30, 70, 9])
  )


def test_stages_match_the_time_loop():
  problem = theory.power_law(1e4, 1.5, 2.5, 0.3)
  stages = _stages()
  scan = theory.risk_scan(problem, theory.unroll(stages))
  risk = theory.risk_stages(problem, stages, np.arange(110.0))
  np.testing.assert_allclose(risk.total, scan.total, rtol=1e-12)
  np.testing.assert_allclose(risk.variance, scan.variance, rtol=1e-12)
  assert np.isnan(theory.risk_stages(problem, stages, 110.0).total)


def test_volterra_form_matches_the_time_loop():
  problem = theory.power_law(40, 1.3, 2.0, 0.3, nodes=None)
  T = 100
  schedule = theory.Schedule(
    0.3 * np.cos(np.linspace(0, 1.5, T)), np.full(T, 3.0)
  )
  np.testing.assert_allclose(
    theory.volterra_risk(problem, schedule),
    theory.risk_scan(problem, schedule).total,
    rtol=1e-12,
  )
  kernel = theory.kernel(problem, 0.2, 3, np.array([0.0, 2.0]))
  s = 0.2 * problem.lam * (2 - 4 / 3 * 0.2 * problem.lam)
  np.testing.assert_allclose(
    kernel, [np.sum(problem.lam**2), np.sum(problem.lam**2 * (1 - s) ** 2)]
  )


def test_functional_scaling_law_is_close_at_small_steps():
  problem = theory.power_law(1000, 1.5, 2.0, 1.0)
  eta = 0.02 * theory.eta_max(problem, 4)
  T = 600
  schedule = theory.Schedule(
    eta * np.r_[np.ones(400), np.linspace(1, 0, 200)], np.full(T, 4.0)
  )
  exact = theory.risk_scan(problem, schedule).total
  approximate = theory.fsl_risk(problem, schedule)
  error = np.abs(approximate / exact - 1).max()
  assert 0 < error < 0.01


def _grad_cases():
  problem = theory.power_law(60, 1.4, 2.2, 0.3, nodes=None)
  return problem, 0.5 * theory.eta_max(problem, 3), 3.0


def test_gradients_match_those_through_the_time_loop():
  problem, eta, batch = _grad_cases()
  T = 200

  def closed(args):
    p, eta, batch = args
    return theory.risk_at(p, eta, batch, float(T)).total

  def scanned(args):
    p, eta, batch = args
    schedule = theory.Schedule(jnp.full(T, 1.0) * eta, jnp.full(T, 1.0) * batch)
    return theory.final_risk(p, schedule).total

  with theory.float64():
    args = jax.tree.map(jnp.asarray, (problem, eta, batch))
    one, two = jax.grad(closed)(args), jax.grad(scanned)(args)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_second_derivative_and_derivative_in_time():
  problem, eta, batch = _grad_cases()

  @theory.float64()
  def value(eta, t):
    return theory.risk_at(problem, eta, batch, t).total

  with theory.float64():
    hess = jax.grad(jax.grad(value))(eta, 200.0)
    slope = jax.grad(value, argnums=1)(eta, 200.0)
  h = 1e-4 * eta
  second = value(eta + h, 200) - 2 * value(eta, 200) + value(eta - h, 200)
  assert hess == pytest.approx(second / h**2, rel=1e-5)
  assert slope == pytest.approx(
    (value(eta, 200.01) - value(eta, 199.99)) / 0.02, rel=1e-6
  )


@pytest.mark.parametrize("name", ["limit", "average"])
def test_gradients_of_limits_and_averages(name):
  problem, _, batch = _grad_cases()
  fn, x = {
    "limit": (lambda b: theory.eta_max(problem, b), 3.0),
    "average": (
      lambda eta: theory.tail_average_at(problem, eta, batch, 10, 40).total,
      0.2,
    ),
  }[name]
  central = (fn(x + 1e-5) - fn(x - 1e-5)) / 2e-5
  with theory.float64():
    assert jax.grad(fn)(x) == pytest.approx(central, rel=1e-7)


@pytest.mark.slow
def test_gradients_through_stages():
  problem, _, _ = _grad_cases()
  stages = _stages()

  def staged(eta):
    return theory.risk_stages(problem, stages._replace(eta=eta), 109.0).total

  bump = np.array([0, 1e-5, 0])
  central = (staged(stages.eta + bump) - staged(stages.eta - bump)) / 2e-5
  with theory.float64():
    grad = jax.grad(staged)(stages.eta)
  assert grad[1] == pytest.approx(central, rel=1e-7)


def test_vmap_equals_a_loop():
  problem, eta, batch = _grad_cases()
  etas, t = eta * np.linspace(0.1, 1.9, 5), np.array([0.0, 10.0, 1e4])
  with theory.float64():
    mapped = jax.jit(
      jax.vmap(lambda e: theory.risk_at(problem, e, batch, t).total)
    )(etas)
  for row, e in zip(mapped, etas, strict=True):
    np.testing.assert_allclose(
      row, theory.risk_at(problem, e, batch, t).total, rtol=1e-8
    )


@pytest.mark.slow
def test_ten_thousand_eigenvalues_uncompressed():
  full = theory.power_law(10_000, 1.5, 2.5, 0.3, nodes=None)
  eta = 0.4 * theory.eta_max(full, 4)
  small = theory.power_law(10_000, 1.5, 2.5, 0.3)
  t = np.array([1.0, 1e4, 1e8])
  with pytest.warns(UserWarning, match="compress"):
    exact = theory.risk_at(full, eta, 4, t).total
  np.testing.assert_allclose(
    exact, theory.risk_at(small, eta, 4, t).total, rtol=1e-11
  )
