"""The factorisations of the matrix engine, against NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim.matrices import linalg


def _factor(n, seed=0, condition=1e3):
  rng = np.random.default_rng(seed)
  vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
  values = condition ** -(np.arange(n) / (n - 1))
  return ((vectors * values) @ vectors.T).astype(np.float32), vectors


def test_eigenbasis_is_sorted():
  factor, vectors = _factor(6)
  basis = np.asarray(linalg.eigenbasis(factor[None])[0])
  np.testing.assert_allclose(np.abs(vectors.T @ basis), np.eye(6), atol=1e-3)


@pytest.mark.parametrize("method", ["qr", "cholesky"])
def test_power_steps_converge_and_keep_the_places_of_columns(method):
  factor, vectors = _factor(6)
  order = np.array([4, 0, 5, 2, 1, 3])
  rng = np.random.default_rng(1)
  start = np.linalg.qr(vectors[:, order] + 0.05 * rng.normal(size=(6, 6)))[0]
  basis = jnp.asarray(start[None], jnp.float32)
  for _ in range(12):
    basis, ok = linalg.power_step(factor[None], basis, method=method)
    assert np.all(ok)
  found = np.abs(vectors.T @ np.asarray(basis[0]))
  np.testing.assert_allclose(found, np.eye(6)[:, order], atol=1e-3)


def test_scaled_cholesky_qr_is_qr_up_to_signs_and_knows_its_limits():
  rng = np.random.default_rng(0)
  good = rng.normal(size=(1, 8, 8)) * 10.0 ** np.arange(8)  # Columns scaled.
  q, ok = linalg.scaled_cholesky_qr(jnp.asarray(good, jnp.float32))
  signs = np.abs(np.linalg.qr(good[0])[0].T @ np.asarray(q[0]))
  np.testing.assert_allclose(signs, np.eye(8), atol=1e-4)
  np.testing.assert_allclose(q[0].T @ q[0], np.eye(8), atol=1e-5)
  singular = np.ones((1, 4, 4), np.float32)
  bad = np.concatenate(
    [singular, np.full_like(singular, np.nan), np.eye(4)[None]]
  )
  _, ok = linalg.scaled_cholesky_qr(jnp.asarray(bad, jnp.float32))
  np.testing.assert_array_equal(ok, [False, False, True])
  q, ok = linalg.cholesky_or_householder(bad)
  np.testing.assert_array_equal(ok, [True, False, True])
  np.testing.assert_allclose(q[0].T @ q[0], np.eye(4), atol=1e-5)


def test_scaled_cholesky_qr_vouches_for_orthonormal_columns_only():
  rng = np.random.default_rng(0)
  spread = np.logspace(-4, 0, 30)[:, None, None]  # From parallel columns on.
  x = jnp.asarray(1 + spread * rng.normal(size=(30, 8, 8)), jnp.float32)
  q, ok = (np.asarray(y) for y in linalg.scaled_cholesky_qr(x))
  error = np.abs(np.swapaxes(q, 1, 2) @ q - np.eye(8)).max(axis=(1, 2))
  assert np.all(error[ok] < linalg.ORTHOGONALITY_TOLERANCE)
  assert np.any(np.isfinite(error[~ok]))
  assert np.any(error[~ok & np.isfinite(error)] > 1e-3)


def test_inverse_root():
  factor, vectors = _factor(5)
  root, ok = linalg.inverse_root(jnp.asarray(factor[None]), 0.5, 1e-4)
  assert ok[0]
  values = np.diag(vectors.T @ factor @ vectors)
  wanted = (vectors * (values + 1e-4) ** -0.5) @ vectors.T
  np.testing.assert_allclose(root[0], wanted, rtol=2e-3, atol=2e-3)


def test_inverse_root_of_a_singular_matrix_is_finite_and_bounded():
  # Rank 2: the null space gets the largest factor that float32 can justify.
  x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
  factor = jnp.asarray(x @ x.T)[None]
  root, ok = linalg.inverse_root(factor, 0.5, 0.0)
  assert ok[0]
  largest = np.linalg.eigvalsh(np.asarray(factor[0]))[-1]
  bound = (5 * np.finfo(np.float32).eps * largest) ** -0.5
  values = np.linalg.eigvalsh(np.asarray(root[0]))
  np.testing.assert_allclose(values[-3:], bound, rtol=1e-3)


def test_eigenvectors_on_a_tpu_are_those_that_compile_soon():
  """One call of the runtime there, not thousands of instructions a size."""
  x = jnp.zeros((1, 300, 300))
  traced = jax.jit(linalg.eigenbasis).trace(x)
  text = traced.lower(lowering_platforms=("tpu",)).as_text()
  assert "@Eigh" in text
  assert text.count("\n") < 100
