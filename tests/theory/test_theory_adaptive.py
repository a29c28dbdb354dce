"""Normalised, RMS and sign updates against simulation and identities."""

import numpy as np
import pytest
from scipy.special import betainc

import theory

D = 16
LAM = np.arange(1.0, D + 1) ** -1.0
PROBLEM = theory.from_spectrum(LAM, np.ones(D), 0.5)


def _gradients(rng, delta, basis, batch):
  """Sampled batch gradients at errors [R, D] in the coordinates of `basis`."""
  x = rng.standard_normal((len(delta), batch, D)) * np.sqrt(LAM) @ basis.T
  residual = np.einsum("rbd,rd->rb", x, delta)
  residual -= np.sqrt(0.5) * rng.standard_normal(residual.shape)
  return np.einsum("rbd,rb->rd", x, residual) / batch


def _simulate(update, batch, T, basis=None, replicas=20_000):
  """Runs w' = w - update(g, t); returns mean risks and standard errors."""
  rng = np.random.default_rng(0)
  basis = np.eye(D) if basis is None else basis
  H = (basis * LAM) @ basis.T
  # Random signs: only diag(C_0) in the eigenbasis is fixed by the problem.
  delta = rng.choice([-1.0, 1.0], (replicas, D)) @ basis.T
  for t in range(T):
    delta = delta - update(_gradients(rng, delta, basis, batch), t)
  risk = np.einsum("ri,ij,rj->r", delta, H, delta) / 2
  return risk.mean(), risk.std() / np.sqrt(replicas)


def _agrees(exact, sampled, slack=0.0):
  mean, stderr = sampled
  assert abs(mean - exact) < 4.5 * stderr + slack * exact


def test_gradient_second_moment_is_sampled():
  rng = np.random.default_rng(1)
  delta = rng.standard_normal((40_000, D))
  square = np.sum(_gradients(rng, delta, np.eye(D), 3) ** 2, axis=1)
  total, share = theory.grad_second_moment(PROBLEM, np.ones(D), 3)
  _agrees(total, (square.mean(), square.std() / 200))
  assert share == pytest.approx(np.sum(LAM**2) / total)


def test_normalised_sgd_is_sampled():
  T, batch = 20, 4
  schedule = theory.schedule(np.full(T, 0.1), batch)
  curve = theory.nsgd_scan(PROBLEM, schedule)
  # The normaliser of each step is deterministic; rebuild it step by step.
  z, norms = PROBLEM.m0, []
  for _ in range(T):
    total, _ = theory.grad_second_moment(PROBLEM, z, batch)
    norms.append(np.sqrt(total))
    z = theory.step(PROBLEM, z, 0.1 / norms[-1], batch)
  assert curve.total[-1] == pytest.approx(z @ LAM / 2, rel=1e-12)
  _agrees(curve.total[-1], _simulate(lambda g, t: 0.1 / norms[t] * g, batch, T))


def test_rms_in_a_foreign_basis_is_sampled():
  T, batch = 12, 3
  basis, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((D, D)))
  schedule = theory.schedule(np.full(T, 0.05), batch)
  curve = theory.rms_scan(PROBLEM, schedule, basis, b2=0.5)
  H = (basis * LAM) @ basis.T
  C, v, scales = basis @ basis.T, None, []
  for _ in range(T):
    G2 = (1 + 1 / batch) * H @ C @ H + (np.trace(H @ C) + 0.5) / batch * H
    v = np.diag(G2) if v is None else 0.5 * v + 0.5 * np.diag(G2)
    p = np.diag(v**-0.5)
    scales.append(0.05 * v**-0.5)
    C = C - 0.05 * (p @ H @ C + C @ H @ p) + 0.05**2 * p @ G2 @ p
  assert curve.total[-1] == pytest.approx(np.trace(H @ C) / 2, rel=1e-12)
  _agrees(
    curve.total[-1], _simulate(lambda g, t: scales[t] * g, batch, T, basis)
  )


@pytest.mark.parametrize("rule", ["rms", "gn", "gn-sqrt"])
def test_rms_in_the_eigenbasis_is_the_matrix_recursion(rule):
  schedule = theory.schedule(np.full(30, 0.02), 4)
  one = theory.rms_scan(PROBLEM, schedule, b2=0.9, rule=rule)
  two = theory.rms_scan(PROBLEM, schedule, np.eye(D), b2=0.9, rule=rule)
  np.testing.assert_allclose(one.total, two.total, rtol=1e-12)
  np.testing.assert_allclose(one.mean_share, two.mean_share, rtol=1e-12)


@pytest.mark.parametrize("power", [-1.0, -0.5])
def test_gauss_newton_is_sgd_on_the_preconditioned_problem(power):
  schedule = theory.schedule(np.full(30, 0.02), 4)
  rule = {-1.0: "gn", -0.5: "gn-sqrt"}[power]
  one = theory.rms_scan(PROBLEM, schedule, rule=rule)
  twin = theory.precondition(PROBLEM, PROBLEM.lam**power)
  np.testing.assert_allclose(
    one.total, theory.risk_scan(twin, schedule).total, rtol=1e-12
  )


def test_adam_becomes_inverse_square_root_gauss_newton_at_small_batch():
  problem = theory.power_law(1000, 1.5, 2.0, 1.0, nodes=None)
  T = 2000
  z = problem.m0
  for _ in range(T):  # The update of rms_scan, to see its preconditioner.
    r = z @ problem.lam
    g2 = 2 * problem.lam**2 * z + problem.lam * (r + 1)
    p = g2**-0.5
    z = (1 - 1e-2 * p * problem.lam) * z + 2.5e-5
  curve = theory.rms_scan(problem, theory.schedule(np.full(T, 5e-3), 1))
  assert curve.total[-1] == pytest.approx(z @ problem.lam / 2, rel=1e-10)
  ratio = p * problem.lam**0.5
  assert ratio.max() / ratio.min() < 1.02


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_sign_update_is_sampled_and_its_first_step_is_exact(batch):
  T = 15
  schedule = theory.schedule(np.full(T, 0.02), batch)
  curve = theory.sign_scan(PROBLEM, schedule)
  _agrees(
    curve.total[-1],
    _simulate(lambda g, t: 0.02 * np.sign(g), batch, T),
    slack=0.003,  # The closure's own error.
  )
  rho = np.sqrt(LAM / (LAM.sum() + 0.5))
  if batch == 1:
    sign = 2 / np.pi * np.arcsin(rho)
  else:
    sign = 2 * betainc(batch / 2, batch / 2, (1 + rho) / 2) - 1
  first = np.sum(LAM * (1 - 0.04 * sign + 0.02**2)) / 2
  assert curve.total[1] == pytest.approx(first, rel=1e-12)
  if batch == 1:  # Larger batches saturate the sign, which is not linear.
    linear = theory.sign_scan(PROBLEM, schedule, closure="linear")
    assert linear.total[-1] == pytest.approx(curve.total[-1], rel=0.03)


def test_bad_rules_are_named():
  schedule = theory.schedule(np.full(3, 0.1), 1)
  with pytest.raises(ValueError, match="rule='adam'"):
    theory.rms_scan(PROBLEM, schedule, rule="adam")
  with pytest.raises(ValueError, match="closure='none'"):
    theory.sign_scan(PROBLEM, schedule, closure="none")
