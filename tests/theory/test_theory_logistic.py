"""Logistic population quantities against samples and Newton's method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import theory

LAM = np.array([1.0, 0.5, 0.2, 0.05])
WSTAR = np.array([1.0, -1.0, 2.0, 3.0])


def test_moments_are_sampled_and_integrals():
  z = np.random.default_rng(0).standard_normal(400_000)
  p = 1 / (1 + np.exp(-1.3 * z))
  phi, psi, soft = theory.logistic_moments(1.3)
  for value, draws in (
    (phi, p * (1 - p)),
    (psi, p * (1 - p) * (1 - 6 * p * (1 - p))),
    (soft, np.log1p(np.exp(1.3 * z))),
  ):
    assert abs(draws.mean() - value) < 4.5 * draws.std() / len(z) ** 0.5


def _loss(w):
  """Excess loss by two-dimensional quadrature over (<w, x>, <w*, x>)."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(60)
  weights = weights / weights.sum()
  cov = np.array([
    [np.sum(LAM * w * w), np.sum(LAM * w * WSTAR)],
    [np.sum(LAM * w * WSTAR), np.sum(LAM * WSTAR * WSTAR)],
  ])  # fmt: skip
  root = np.linalg.cholesky(cov + 1e-14 * np.eye(2))
  a = root[0, 0] * nodes[:, None] + 0 * nodes
  b = root[1, 0] * nodes[:, None] + root[1, 1] * nodes
  y = 1 / (1 + np.exp(-b))
  cross = np.logaddexp(0, a) - y * a
  best = np.logaddexp(0, b) - y * b
  return weights @ (cross - best) @ weights


def test_losses_are_the_cross_entropy():
  w0 = np.array([0.5, 0.3, -0.2, 0.1])
  path = theory.logistic_path(LAM, w0, WSTAR, np.full(3, 0.5))
  assert path.loss[0] == pytest.approx(_loss(w0), rel=1e-6)
  assert path.loss[-1] == pytest.approx(_loss(path.w), rel=1e-6)
  end = theory.logistic_path(LAM, w0, WSTAR, np.full(4000, 4.0), rule="gd")
  assert end.loss[-1] < 1e-8


def test_gradient_step_is_the_derivative_of_the_loss():
  w0 = np.array([0.5, 0.3, -0.2, 0.1])

  def loss(w):
    return theory.logistic_path(LAM, w, WSTAR, jnp.zeros(1)).loss[0]

  with theory.float64():
    grad = np.asarray(jax.grad(loss)(jnp.asarray(w0)))
    hess = np.asarray(jax.hessian(loss)(jnp.asarray(w0)))
  moved = theory.logistic_path(LAM, w0, WSTAR, np.full(1, 0.3)).w
  np.testing.assert_allclose(moved, w0 - 0.3 * grad, rtol=1e-9)
  newton = theory.logistic_path(LAM, w0, WSTAR, np.ones(1), rule="gn").w
  np.testing.assert_allclose(
    newton, w0 - np.linalg.solve(hess, grad), rtol=1e-8
  )
  sign = theory.logistic_path(LAM, w0, WSTAR, np.full(1, 0.1), rule="adam").w
  np.testing.assert_allclose(sign, w0 - 0.1 * np.sign(grad), rtol=1e-9)


def test_adam_in_a_rotated_basis_divides_there():
  rng = np.random.default_rng(1)
  basis, _ = np.linalg.qr(rng.standard_normal((4, 4)))
  w0 = np.array([0.5, 0.3, -0.2, 0.1])
  gd = theory.logistic_path(LAM, w0, WSTAR, np.ones(1)).w
  turned = theory.logistic_path(
    LAM, w0, WSTAR, np.full(1, 0.1), rule="adam", basis=basis
  ).w
  expected = w0 - 0.1 * basis.T @ np.sign(basis @ (w0 - gd))
  np.testing.assert_allclose(turned, expected, rtol=1e-9)
  with pytest.raises(ValueError, match="rule='sgd'"):
    theory.logistic_path(LAM, w0, WSTAR, np.ones(1), rule="sgd")
