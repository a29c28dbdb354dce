"""Linear methods against dense block moments, identities and simulation."""

import jax
import numpy as np
import pytest
from oracles import linear_regression as oracle

import theory

D, T = 5, 40
RNG = np.random.default_rng(0)
BASIS, _ = np.linalg.qr(RNG.standard_normal((D, D)))
H = BASIS @ np.diag(RNG.uniform(0.1, 1.0, D)) @ BASIS.T
DELTA = RNG.standard_normal(D)
PROBLEM = theory.from_covariance(H, DELTA, np.zeros(D), 0.4)
ETAS = 0.2 / np.sqrt(1 + np.arange(T))

METHODS = {
  "sgd": theory.sgd(0.2),
  "heavy_ball": theory.heavy_ball(0.05, 0.8),
  "nesterov": theory.nesterov(0.05, 0.8),
  "decoupled": theory.decoupled(0.05, 0.8, 2.0),
  "ademamix": theory.ademamix(0.1, 0.8, 0.95, 2.0),
  "asgd": theory.asgd(0.6, 0.2, 0.3, 0.1),
  "schedule_free": theory.schedule_free(0.2, 0.9, theory.theta_uniform(T)),
  "averaged": theory.averaged(theory.sgd(ETAS), theory.theta_poly(T, 3.0)),
  "averaged nesterov": theory.averaged(
    theory.nesterov(ETAS, 0.8), theory.theta_ema(T, 0.9)
  ),
  "weight_decay": theory.weight_decay(0.2, 0.1),
}


def _at(x, rank, t):
  return x[min(t, len(x) - 1)] if x.ndim > rank else x


@pytest.mark.parametrize("name", METHODS)
def test_method_follows_dense_block_moments(name):
  method = METHODS[name]
  start = np.kron(method.start, DELTA)
  S, risks = np.outer(start, start), []
  for t in range(T + 1):
    read = np.kron(_at(method.h, 1, t), np.eye(D))
    risks.append(oracle.risk(read @ S @ read.T, H))
    P, f, e = (_at(x, n, t) for x, n in zip(method[:3], (2, 1, 1), strict=True))
    S = oracle.block_step(S, H, P, f, e, 2.0, 0.4)
  curve = theory.method_scan(PROBLEM, method, 2, T)
  np.testing.assert_allclose(curve.total, risks, rtol=1e-12)


def _literal(name, g, w0, steps):
  """The read-out of each method written as its paper does, full batch."""
  w, v, out = w0.copy(), 0 * w0, [w0.copy()]
  x, z, m1, m3, a = w0.copy(), w0.copy(), 0 * w0, 0 * w0, w0.copy()
  for t in range(steps):
    if name == "heavy_ball":
      v = 0.8 * v + g(w)
      w = w - 0.05 * v
    elif name == "nesterov":
      v = 0.8 * v + g(w)
      w = w - 0.05 * (g(w) + 0.8 * v)
    elif name == "decoupled":
      grad = g(w)
      v = 0.8 * v + grad
      w = w - 0.05 * (v + 2.0 * grad)
    elif name == "ademamix":
      m1, m3 = 0.8 * m1 + 0.2 * g(w), 0.95 * m3 + 0.05 * g(w)
      w = w - 0.1 * (m1 + 2.0 * m3)
    elif name == "asgd":
      y = 0.6 * x + 0.4 * z
      grad = g(y)
      x, z = y - 0.1 * grad, 0.2 * y + 0.8 * z - 0.3 * grad
      w = x
    elif name == "schedule_free":
      grad = g(0.1 * z + 0.9 * x)
      z = z - 0.2 * grad
      x = x + (z - x) / (t + 1)
      w = x
    elif name == "averaged nesterov":
      grad = g(z)
      v = 0.8 * v + grad
      z = z - ETAS[t] * (grad + 0.8 * v)
      a = 0.9 * a + 0.1 * z
      w = a
    out.append(w.copy())
  return np.array(out)


@pytest.mark.parametrize("name", [
  "heavy_ball", "nesterov", "decoupled", "ademamix", "asgd", "schedule_free",
  "averaged nesterov",
])  # fmt: skip
def test_method_is_the_algorithm_of_its_name(name):
  path = _literal(name, lambda w: H @ w, DELTA, T)
  risks = np.einsum("ti,ij,tj->t", path, H, path) / 2
  quiet = PROBLEM._replace(sigma2=0.0)
  curve = theory.method_scan(quiet, METHODS[name], np.inf, T)
  np.testing.assert_allclose(curve.total, risks, rtol=1e-11)


@pytest.mark.parametrize("name", METHODS)
def test_sampled_runs_agree(name):
  rng = np.random.default_rng(5)
  problem = theory.from_spectrum(
    np.linspace(1, 0.1, 8), rng.uniform(0.5, 1.5, 8), 0.5
  )
  method = METHODS[name]
  sampled = theory.simulate(
    jax.random.key(1), problem, method, 2, T, replicas=4000
  )
  exact = theory.method_scan(problem, method, 2, T).total
  gap = np.abs(sampled.mean - exact)
  np.testing.assert_array_less(gap, 4.5 * sampled.stderr + 1e-10)
  assert gap.max() > 0  # Sampled, not copied.


@pytest.mark.parametrize("options", [
  {"law": "rademacher"}, {"law": "uniform"}, {"law": "laplace"},
  {"elliptic": 1.5}, {"law": "one-hot"},
])  # fmt: skip
def test_sampled_feature_laws_agree(options):
  lam = np.linspace(1, 0.1, 8)
  problem = theory.from_spectrum(lam / lam.sum(), np.ones(8), 0.5)
  problem = theory.with_features(problem, **options)
  method = theory.sgd(0.4)
  sampled = theory.simulate(jax.random.key(2), problem, method, 2, 30, 4000)
  exact = theory.method_scan(problem, method, 2, 30).total
  gap = np.abs(sampled.mean - exact)
  np.testing.assert_array_less(gap, 4.5 * sampled.stderr + 1e-10)


def test_asgd_at_its_gradient_point_is_decoupled_momentum():
  al, be, ga, de = 0.6, 0.2, 0.3, 0.1
  asgd = theory.asgd(al, be, ga, de)
  seen = theory.method_scan(PROBLEM, asgd._replace(h=asgd.e), 2, 200)
  eta = (1 - al) * (ga - de)
  twin = theory.decoupled(eta, al * (1 - be), de / eta)
  other = theory.method_scan(PROBLEM, twin, 2, 200)
  np.testing.assert_allclose(seen.total, other.total, rtol=1e-12)


def test_schedule_free_is_momentum_with_a_growing_coefficient():
  # With u = z - x and y = x + (1 - b) u the update reads u' = (1 - c)
  # (u - eta g), y' = y + b c u - eta (c + (1 - b)(1 - c)) g: momentum in y.
  eta, b, c = 0.2, 0.9, theory.theta_uniform(T)
  free = theory.schedule_free(eta, b, c)
  seen = theory.method_scan(PROBLEM, free._replace(h=free.e), 2, T)
  P, f = np.zeros((T, 2, 2)), np.zeros((T, 2))
  P[:, 0, 0], P[:, 0, 1], P[:, 1, 1] = 1, b * c, 1 - c
  f[:, 0], f[:, 1] = eta * (c + (1 - b) * (1 - c)), eta * (1 - c)
  one = np.array([1.0, 0.0])
  twin = theory.Method(P, f, one, one, one)
  other = theory.method_scan(PROBLEM, twin, 2, T)
  np.testing.assert_allclose(seen.total, other.total, rtol=1e-12)


FAMILIES = {
  "heavy_ball": lambda eta: theory.heavy_ball(eta, 0.9),
  "nesterov": lambda eta: theory.nesterov(eta, 0.9),
  "decoupled": lambda eta: theory.decoupled(eta, 0.9, 2.0),
  "asgd": lambda eta: theory.asgd(0.6, 0.2, 3 * eta, eta),
}


@pytest.mark.parametrize("batch", [2, 64])
@pytest.mark.parametrize("name", FAMILIES)
def test_method_limit_is_where_the_dense_operator_stops_contracting(
  name, batch
):
  lam = np.array([1.0, 0.5, 0.2])
  problem = theory.from_spectrum(lam, np.ones(3), 1.0)
  limit = theory.method_eta_max(problem, FAMILIES[name], batch)
  for side in (-1, 1):
    method = FAMILIES[name](limit * (1 + side * 1e-4))
    radius = oracle.radius(
      oracle.block_operator(np.diag(lam), *method[:3], batch)
    )
    assert (radius > 1) == (side > 0)


def test_sgd_as_a_method_is_sgd():
  limit = theory.method_eta_max(PROBLEM, theory.sgd, 2)
  assert limit == pytest.approx(theory.eta_max(PROBLEM, 2), rel=1e-10)
  assert theory.method_chi(PROBLEM, theory.sgd(0.2), 2) == pytest.approx(
    theory.chi(PROBLEM, 0.2, 2), rel=1e-12
  )
  schedule = theory.schedule(ETAS, 3)
  np.testing.assert_allclose(
    theory.method_scan(PROBLEM, theory.sgd(ETAS), 3, T).variance,
    theory.risk_scan(PROBLEM, schedule).variance,
    rtol=1e-12,
  )


def test_stationary_risk_is_where_the_scan_ends():
  for method in (
    theory.nesterov(0.05, 0.8),
    theory.averaged(theory.sgd(0.1), 0.05),
  ):
    rest = theory.method_stationary(PROBLEM, method, 2)
    late = theory.method_scan(PROBLEM, method, 2, 4000).total[-1]
    assert rest == pytest.approx(late, rel=1e-9)
  assert theory.method_stationary(PROBLEM, theory.sgd(9.0), 2) == np.inf


def test_weight_decay_is_stable_and_ends_at_the_regularised_solution():
  method = theory.weight_decay(0.1, 0.3)
  assert theory.method_chi(PROBLEM, method, 50) < 1
  quiet = PROBLEM._replace(sigma2=0.0)
  end = theory.method_scan(quiet, method, np.inf, 2000).total[-1]
  shrink = 0.3 / (PROBLEM.lam + 0.3)
  ridge = np.sum(PROBLEM.lam * PROBLEM.m0 * shrink**2) / 2
  assert end == pytest.approx(ridge, rel=1e-10)


def test_gradient_through_a_method():
  @theory.float64()
  def value(beta):
    method = theory.nesterov(0.05, beta)
    return theory.method_scan(PROBLEM, method, 2.0, 30).total[-1]

  with theory.float64():
    grad = jax.grad(value)(0.8)
  central = (value(0.8 + 1e-6) - value(0.8 - 1e-6)) / 2e-6
  assert grad == pytest.approx(central, rel=1e-7)


def test_bad_methods_are_named():
  with pytest.raises(ValueError, match="3 steps but T=5"):
    theory.method_scan(PROBLEM, theory.sgd(np.ones(3)), 2, 5)
  with pytest.raises(ValueError, match="one direction per node"):
    theory.simulate(
      jax.random.key(0), theory.isotropic(4), theory.sgd(0.1), 2, 5
    )
  with pytest.raises(ValueError, match="not stable even"):
    theory.method_eta_max(PROBLEM, lambda eta: theory.heavy_ball(eta, 1.1), 2)
