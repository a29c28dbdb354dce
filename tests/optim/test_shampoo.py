"""Shampoo and the Kronecker analysis against dense NumPy oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.adam import adam_directions
from oracles.shampoo import (
  best_kronecker,
  cosine,
  dense_second_moment,
  power,
  shampoo_directions,
)

import optim


def _grads(shape, steps=20, seed=0):
  rng = np.random.default_rng(seed)
  mix = rng.normal(size=(shape[-1],) * 2) * (1.0 + np.arange(shape[-1])) ** -0.5
  return [
    (rng.normal(size=shape) @ mix.T).astype(np.float32) for _ in range(steps)
  ]


def _run(tx, grads):
  state, update, result = tx.init(grads[0]), jax.jit(tx.update), []
  for g in grads:
    updates, state = update(g, state)
    result.append(np.asarray(updates))
  return result, state


@pytest.mark.parametrize(
  "options",
  [
    dict(exponent=0.5, frequency=1, start=1, grafting="adam"),
    dict(exponent=0.25, frequency=3, start=3, grafting="adam"),
    dict(exponent=0.5, frequency=2, start=5, grafting="none"),
    dict(exponent=0.25, frequency=2, start=2, grafting="none"),
  ],
  ids=str,
)
def test_equals_oracle(options):
  grads = _grads((5, 4))
  wanted = shampoo_directions(
    grads, b1=0.9, b2=0.95, beta=0.8, eps=1e-3, matrix_eps=1e-3, **options
  )
  tx = optim.scale_by_shampoo(
    0.9,
    0.95,
    0.8,
    1e-3,
    exponent=options["exponent"],
    matrix_eps=1e-3,
    grafting=options["grafting"],
    precondition_frequency=options["frequency"],
    start_preconditioning_step=options["start"],
    stagger=False,
  )
  for actual, expected in zip(_run(tx, grads)[0], wanted, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-3)


def test_starts_as_adam_and_stays_so_without_factors():
  grads = _grads((5, 4))
  wanted = adam_directions(grads, 0.9, 0.95, 1e-8)
  tx = optim.scale_by_shampoo(precondition_frequency=4)
  early = _run(tx, grads)[0]
  np.testing.assert_allclose(early[:3], wanted[:3], rtol=1e-3, atol=1e-4)
  assert not np.allclose(early[3], wanted[3], atol=0.05)
  tx = optim.scale_by_shampoo(max_precond_dim=2)
  np.testing.assert_allclose(_run(tx, grads)[0], wanted, rtol=1e-3, atol=1e-4)


def test_all_roots_exist_when_preconditioning_starts():
  grads = _grads((7, 5, 4), steps=5)
  tx = optim.scale_by_shampoo(
    precondition_frequency=5,
    dimension_numbers=optim.DimensionNumbers((1, 2), 0),
  )
  _, state = _run(tx, grads)
  for root in state.kronecker["5x4_01"].derived:
    gap = np.abs(np.asarray(root) - np.eye(root.shape[-1])).max(axis=(1, 2))
    assert np.all(gap > 0.01)


@pytest.mark.parametrize(
  "options", [dict(exponent=0.5), dict(exponent=0.25), dict(one_sided=True)]
)
def test_scale_of_the_gradients_does_not_matter(options):
  grads, runs = _grads((5, 4)), []
  for scale in (1.0, 1e-2):
    tx = optim.scale_by_shampoo(
      grafting="none",
      matrix_eps=1e-3 * scale**2,
      precondition_frequency=1,
      **options,
    )
    runs.append(_run(tx, [g * np.float32(scale) for g in grads])[0])
  np.testing.assert_allclose(*runs, rtol=5e-3, atol=5e-3)


# Analysis.


def test_power_iteration_finds_the_best_kronecker_product():
  grads = np.stack(_grads((4, 3), steps=40))
  dense = dense_second_moment(grads)
  best = best_kronecker(dense, 4, 3)
  left, right = optim.kronecker_factors(jnp.asarray(grads), num_steps=50)
  np.testing.assert_allclose(cosine(np.kron(left, right), best), 1, atol=1e-5)


def test_one_step_gives_shampoo_factors():
  grads = np.stack(_grads((4, 3), steps=40))
  left, right = optim.kronecker_factors(jnp.asarray(grads))
  wanted = np.einsum("bio,bjo->ij", grads, grads)
  np.testing.assert_allclose(left, wanted / np.linalg.norm(wanted), atol=1e-5)
  wanted = np.einsum("bio,bip->op", grads, grads)
  np.testing.assert_allclose(right, wanted / np.linalg.norm(wanted), atol=1e-5)


def test_report_equals_dense_cosines():
  grads = np.stack(_grads((4, 3), steps=40))
  dense = dense_second_moment(grads)
  left, right = (np.asarray(f) for f in optim.kronecker_factors(grads))
  report = optim.kronecker_report(jnp.asarray(grads))
  wanted = [
    cosine(dense, best_kronecker(dense, 4, 3)),
    cosine(dense, np.kron(left, right)),
    cosine(dense, np.kron(power(left, 0.5), power(right, 0.5))),
  ]
  np.testing.assert_allclose(report, wanted, atol=1e-5)
  assert report.optimal >= report.shampoo_squared > report.shampoo


def test_unbiased_norm_is_that_of_the_distribution():
  # Isotropic gradients: A is the identity, and the best product exactly it.
  rng = np.random.default_rng(0)
  eyes = jnp.eye(4), jnp.eye(3)
  cosines = [
    optim.kronecker_cosine(rng.normal(size=(12, 4, 3)), *eyes, unbiased=u)
    for _ in range(200)
    for u in (True, False)
  ]
  unbiased, plain = np.mean(cosines[::2]), np.mean(cosines[1::2])
  assert abs(unbiased - 1) < 0.1
  assert plain < 0.8  # 12 samples of 12 dimensions are no identity.


def test_operator_cosine_of_a_gauss_newton_block():
  # Least squares: A = X^T X x 1 over outputs, as products only.
  rng = np.random.default_rng(0)
  x = rng.normal(size=(30, 4)) * 2.0 ** -np.arange(4)
  curvature = (x.T @ x).astype(np.float32)
  block = np.kron(curvature, np.eye(3))
  left = power(curvature, 0.5).astype(np.float32)
  right = np.diag([1.0, 2.0, 3.0]).astype(np.float32)
  actual = optim.operator_cosine(
    lambda g: curvature @ g, left, right, jax.random.key(0), num_probes=4000
  )
  wanted = cosine(block, np.kron(left, right))
  np.testing.assert_allclose(actual, wanted, rtol=0.02)
  exact = optim.operator_cosine(
    lambda g: curvature @ g, curvature, np.eye(3), jax.random.key(1)
  )
  np.testing.assert_allclose(exact, 1, rtol=0.05)
