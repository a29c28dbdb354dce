"""Rates, modes and divided differences against dense and exact algebra."""

import fractions
import functools

import jax
import numpy as np
import pytest
from scipy import integrate

import theory
from theory import divided_differences, risk_closed, secular

LAM = np.array([1.0, 0.7, 0.3, 0.1])
MULT = np.array([1.0, 2.5, 1.0, 4.0])
M0 = np.array([1.0, 0.5, 2.0, 3.0])
SIGMA2 = 0.3

KINDS = {  # kappa, tau, batch, eta, mult
  "gaussian": (2.0, 1.0, 2.0, 0.3, MULT),
  "beyond the vertex": (2.0, 1.0, 16.0, 1.4, MULT),
  "heavy tails": (5.0, 1.0, 3.0, 0.2, MULT),
  "own moments": (np.array([3.0, 1.0, 2.0, 6.0]), 1.3, 2.0, 0.25, MULT),
  "signs, batch 1": (0.0, 1.0, 1.0, 0.3, MULT),
  "signal nodes": (2.0, 1.0, 2.0, 0.3, MULT * [1, 0, 1, 0]),
  "decoupled": (np.array([2.0, 3.0, 4.0, 5.0]), 0.0, 2.0, 0.3, MULT),
  "full batch": (2.0, 1.0, np.inf, 0.8, MULT),
  "divergent": (2.0, 1.0, 1.0, 0.9, MULT),
}


def _case(name):
  kappa, tau, batch, eta, mult = KINDS[name]
  return theory.Problem(LAM, M0, mult, SIGMA2, kappa, tau), eta, batch


def _affine(problem, eta, batch):
  """A and b of z' = A z + b, entry by entry."""
  n = LAM.size
  A, b = np.zeros((n, n)), np.zeros(n)
  kappa = np.broadcast_to(problem.kappa, n)
  for i in range(n):
    lam = LAM[i]
    A[i, i] = (1 - eta * lam) ** 2 + (kappa[i] - 1) / batch * (eta * lam) ** 2
    push = eta**2 / batch * problem.mult[i] * lam
    b[i] = push * SIGMA2
    for j in range(n):
      A[i, j] += push * problem.tau * LAM[j]
  return A, b


@jax.jit
def _rates(problem, eta, batch):
  return risk_closed.modes_of(problem, eta, batch).rates(eta)


@pytest.mark.parametrize("name", KINDS)
def test_rates_are_the_eigenvalues_of_the_dense_map(name):
  problem, eta, batch = _case(name)
  A, _ = _affine(problem, eta, batch)
  with theory.float64():
    rates = np.asarray(_rates(problem, eta, batch))
  wanted = np.linalg.eigvals(A)
  assert np.abs(wanted.imag).max() < 1e-12
  np.testing.assert_allclose(
    np.sort(1 - rates), np.sort(wanted.real), rtol=1e-11, atol=1e-13
  )


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("t", [0, 1, 7, 60])
def test_state_and_risk_are_powers_of_the_dense_map(name, t):
  problem, eta, batch = _case(name)
  A, b = _affine(problem, eta, batch)
  power = np.linalg.matrix_power(A, t)
  bias = power @ M0
  noise = sum((np.linalg.matrix_power(A, k) @ b for k in range(t)), 0 * b)
  found = theory.state_at(problem, eta, batch, float(t))
  np.testing.assert_allclose(found, bias + noise, rtol=1e-9, atol=1e-14)
  risk = theory.risk_at(problem, eta, batch, float(t))
  assert risk.bias == pytest.approx(LAM @ bias / 2, rel=1e-11)
  assert risk.variance == pytest.approx(LAM @ noise / 2, rel=1e-11)
  assert risk.stable == (np.abs(np.linalg.eigvals(A)).max() < 1)


@pytest.mark.parametrize("name", [k for k in KINDS if k != "divergent"])
def test_rest_is_the_fixed_point_of_the_dense_map(name):
  problem, eta, batch = _case(name)
  A, b = _affine(problem, eta, batch)
  wanted = np.linalg.solve(np.eye(4) - A, b)
  found = theory.stationary(problem, eta, batch)
  np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", KINDS)
def test_limit_of_stability_is_that_of_the_dense_map(name):
  problem, _, batch = _case(name)
  limit = theory.eta_max(problem, batch)
  inside, _ = _affine(problem, limit * (1 - 1e-6), batch)
  outside, _ = _affine(problem, limit * (1 + 1e-6), batch)
  assert np.abs(np.linalg.eigvals(inside)).max() < 1
  assert np.abs(np.linalg.eigvals(outside)).max() > 1


def test_gain_of_the_noise_loop_is_its_sum():
  problem, eta, batch = _case("heavy tails")
  c = 1 + 4 / 3
  wanted = sum(
    eta / batch * m * x / (2 - c * eta * x)
    for x, m in zip(LAM, MULT, strict=True)
  )
  assert theory.chi(problem, eta, batch) == pytest.approx(wanted, rel=1e-13)
  edge = 2 / c
  assert theory.chi(problem, 1.0001 * edge, batch) == np.inf
  # A direction without noise of its own does not close the loop.
  signal = problem._replace(mult=MULT * [0, 1, 1, 1])
  assert np.isfinite(theory.chi(signal, 1.0001 * edge, batch))


def test_gaps_of_poles_are_exact_where_differences_are_not():
  eta, c = 0.37, 1.5
  upper, lower = 0.5, 0.5 * (1 - 2.0**-40)
  exact = [fractions.Fraction(x) for x in (eta, c, upper, lower)]
  e, k, u, v = exact
  wanted = e * u * (2 - k * e * u) - e * v * (2 - k * e * v)
  with theory.float64():
    found = secular.gap(
      eta, *(secular.Pole(np.float64(x), np.float64(c)) for x in (upper, lower))
    )
  assert float(found) == pytest.approx(float(wanted), rel=1e-15)


def _difference(n, points):
  """[z^n](x_1, ..., x_m) = sum of all monomials of degree n - m + 1."""
  fold = [fractions.Fraction(0)] * (n + 2)
  fold[0] = fractions.Fraction(1)
  # Complete homogeneous polynomials, one point at a time.
  for x in points:
    out = [fold[0]]
    for k in range(1, n + 2):
      out.append(fold[k] + x * out[k - 1])
    fold = out
  degree = n - len(points) + 1
  return float(fold[degree]) if degree >= 0 else 0.0


RATES = (0.0, 0.125, 0.75, 1.25)  # Points 1, 7/8, 1/4 and -1/4.


@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 37, 64])
def test_divided_differences_are_sums_of_monomials(n):
  with theory.float64():
    table = divided_differences.differences(float(n), RATES)
  for (i, j), found in table.items():
    points = [1 - fractions.Fraction(r) for r in RATES[i : j + 1]]
    assert float(found) == pytest.approx(_difference(n, points), rel=1e-14)


def test_divided_differences_of_repeated_points_are_derivatives():
  with theory.float64():
    table = divided_differences.differences(9.0, (0.5, 0.5, 0.5))
  assert float(table[0, 1]) == pytest.approx(9 * 0.5**8, rel=1e-14)
  assert float(table[0, 2]) == pytest.approx(9 * 8 / 2 * 0.5**7, rel=1e-14)


@pytest.mark.parametrize("n", [-1.0, 2.5, 2.0**40])
def test_divided_differences_of_other_powers_are_nan(n):
  with theory.float64():
    table = divided_differences.differences(n, (0.5, 0.25))
  assert np.isnan(float(table[0, 1]))


@pytest.mark.parametrize("rate", [0.0, 1e-9, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("t", [0, 1, 2, 25])
def test_powers_and_their_sums_are_loops(rate, t):
  with theory.float64():
    power = float(risk_closed.power(np.float64(rate), float(t)))
    total = float(risk_closed.partial_sum(np.float64(rate), float(t)))
  assert power == pytest.approx((1 - rate) ** t, rel=1e-12, abs=1e-15)
  wanted = sum((1 - rate) ** k for k in range(t))
  assert total == pytest.approx(wanted, rel=1e-12, abs=1e-15)


def test_stages_compose_dense_maps():
  problem, _, _ = _case("gaussian")
  stages = theory.stages_of_steps([0.3, 0.1, 0.2], [2, 1, 8], [5, 7, 4])
  z, wanted = M0.copy(), [LAM @ M0 / 2]
  for eta, batch, steps in zip(*stages, strict=True):
    A, b = _affine(problem, eta, batch)
    for _ in range(int(steps)):
      z = A @ z + b
      wanted.append(LAM @ z / 2)
  found = theory.risk_stages(problem, stages, np.arange(17.0))
  np.testing.assert_allclose(found.total, wanted, rtol=1e-12)


def test_kernel_and_volterra_are_loops():
  problem, _, _ = _case("heavy tails")
  etas, batches = np.linspace(0.25, 0.05, 12), np.repeat([3.0, 6.0], 6)
  keep = np.array([
    1 - e * LAM * (2 - (1 + 4 / B) * e * LAM)
    for e, B in zip(etas, batches, strict=True)
  ])  # fmt: skip
  risks = []
  for t in range(13):
    r = np.sum(LAM * M0 * np.prod(keep[:t], axis=0))
    for q in range(t):
      K = np.sum(MULT * LAM**2 * np.prod(keep[q + 1 : t], axis=0))
      r += etas[q] ** 2 / batches[q] * (2 * risks[q] + SIGMA2) * K
    risks.append(r / 2)
  found = theory.volterra_risk(problem, theory.schedule(etas, batches))
  np.testing.assert_allclose(found, risks, rtol=1e-12)
  lags = np.array([0.0, 1.0, 5.0])
  s = 0.2 * LAM * (2 - (1 + 4 / 3) * 0.2 * LAM)
  np.testing.assert_allclose(
    theory.kernel(problem, 0.2, 3, lags),
    [np.sum(MULT * LAM**2 * (1 - s) ** t) for t in lags],
    rtol=1e-13,
  )


@functools.cache
def _continuum(length, eta, batch):
  """c' = -2 lam c + (eta / B) mult lam (r + sigma2) in u, by an ODE solver."""

  def move(_, z):
    return -2 * LAM * z + eta / batch * MULT * LAM * (LAM @ z + SIGMA2)

  out = integrate.solve_ivp(
    move, (0, length), M0, rtol=1e-11, atol=1e-13, method="DOP853"
  )
  return LAM @ out.y[:, -1] / 2


def test_functional_scaling_law_is_the_solution_of_its_equation():
  problem, _, _ = _case("gaussian")
  wanted = _continuum(4.0, 0.1, 2.0)
  errors = []
  for split in (40, 80):
    # Finer steps of the same noise eta / B: only the quadrature improves.
    eta = 4.0 / split
    schedule = theory.schedule(np.full(split, eta), 2.0 * eta / 0.1)
    errors.append(theory.fsl_risk(problem, schedule)[-1] / wanted - 1)
  assert abs(errors[1]) < 0.01
  # Exponential steps with r frozen over a step are of first order.
  assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.15)
