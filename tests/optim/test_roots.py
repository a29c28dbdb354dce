"""Inverse roots by products, against dense float64 roots and the authors'."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.shampoo import power, shampoo_directions

import optim
from optim.matrices import linalg, roots

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "matrix2026.npz"


def _factor(n, condition, seed=0):
  """A symmetric matrix with eigenvalues from 1 to 1 / condition."""
  rng = np.random.default_rng(seed)
  vectors = np.linalg.qr(rng.normal(size=(n, n)))[0]
  values = condition ** -(np.arange(n) / (n - 1))
  return (vectors * values) @ vectors.T


def _by_products(factor, exponent=0.5, epsilon=0.0, **options):
  root, ok = jax.jit(
    lambda x: linalg.inverse_root(
      x, exponent, epsilon, method="products", **options
    )
  )(jnp.asarray(factor, jnp.float32)[None])
  assert np.all(ok)
  return np.asarray(root[0], np.float64)


def _error(root, wanted):
  return np.linalg.norm(root - wanted) / np.linalg.norm(wanted)


def _authors():
  with np.load(GOLDEN) as data:
    names = {key.split("/")[1] for key in data.files if "functions/spd" in key}
    return sorted(names)


@pytest.mark.parametrize("name", _authors())
def test_square_root_is_the_authors(name):
  with np.load(GOLDEN) as data:
    factor = data[f"functions/{name}"]
    wide = data[f"functions/{name}/cans64"]
    narrow = data[f"functions/{name}/cans32"]
  with jax.enable_x64():
    root = roots.inverse_square_root(jnp.asarray(factor, jnp.float64)[None])
  np.testing.assert_allclose(root[0], wide, rtol=0, atol=1e-10)
  assert _error(_by_products(factor), narrow) < 1e-4


@pytest.mark.parametrize("n", [32, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
  ("condition", "tolerance"), [(1e2, 3e-5), (1e4, 5e-5), (1e6, 1e-2)]
)
def test_root_is_the_dense_one(n, condition, tolerance):
  factor = _factor(n, condition).astype(np.float32)
  wanted = power(factor.astype(np.float64), -0.5)
  assert _error(_by_products(factor), wanted) < tolerance
  assert _error(_by_products(3e-9 * factor), wanted / 3e-9**0.5) < tolerance


@pytest.mark.parametrize(("condition", "tolerance"), [(1e2, 3e-5), (1e4, 1e-4)])
def test_fourth_root_is_the_dense_one(condition, tolerance):
  factor = _factor(32, condition).astype(np.float32)
  wanted = power(factor.astype(np.float64), -0.25)
  assert _error(_by_products(factor, 0.25), wanted) < tolerance


_root = jax.jit(roots.inverse_square_root)


@settings(deadline=None, max_examples=40)
@given(
  seed=st.integers(0, 10_000),
  condition=st.floats(1, 1e4),
  exponent=st.integers(-12, 12),
)
def test_root_times_root_times_factor_is_one(seed, condition, exponent):
  factor = 10.0**exponent * _factor(6, condition, seed)
  root = np.asarray(_root(jnp.asarray(factor, jnp.float32)[None])[0], float)
  np.testing.assert_array_equal(root, root.T)
  # An entry's rounding in float32 moves an eigenvalue by 6e-8 of the largest.
  tolerance = 2e-4 + 1e-6 * condition
  np.testing.assert_allclose(root @ factor @ root, np.eye(6), atol=tolerance)


def test_products_lose_less_than_eigenvectors_where_both_are_right():
  factor = _factor(32, 1e4).astype(np.float32)
  wanted = power(factor.astype(np.float64), -0.5)
  eigh, _ = linalg.inverse_root(jnp.asarray(factor[None]), 0.5, 0.0)
  assert _error(_by_products(factor), wanted) < _error(eigh[0], wanted)


def test_singular_matrices_have_bounded_roots():
  x = np.random.default_rng(0).normal(size=(5, 2))
  rank_2 = x @ x.T
  values = np.linalg.eigvalsh(_by_products(rank_2))
  size = np.abs(rank_2).sum(axis=1).max()
  np.testing.assert_allclose(values[-3:] * size**0.5, 3035, rtol=0.1)
  np.testing.assert_allclose(
    values[:2], np.linalg.eigvalsh(rank_2)[:-3:-1] ** -0.5, rtol=1e-3
  )
  assert np.all(np.isfinite(_by_products(np.zeros((3, 3)))))


@pytest.mark.parametrize("method", ["eigh", "products"])
def test_relative_epsilon_has_no_unit(method):
  factor = _factor(6, 1e8)
  bound = 1.0 if method == "eigh" else np.abs(factor).sum(axis=1).max()
  wanted = power(factor + 1e-2 * bound * np.eye(6), -0.5)
  for scale in (1.0, 1e-10, 1e8):
    x = jnp.asarray(scale * np.stack([factor, 0 * factor]), jnp.float32)
    root, ok = linalg.inverse_root(x, 0.5, 1e-2, method=method, relative=True)
    assert np.all(ok)
    assert _error(np.sqrt(scale) * np.asarray(root[0]), wanted) < 1e-4


def _grads(steps=8):
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(4, 4)) * (1.0 + np.arange(4)) ** -0.5
  return [
    (rng.normal(size=(5, 4)) @ mix.T).astype(np.float32) for _ in range(steps)
  ]


@pytest.mark.parametrize("exponent", [0.5, 0.25])
def test_shampoo_by_products_equals_the_oracle(exponent):
  grads = _grads()
  wanted = shampoo_directions(
    grads, b1=0.9, b2=0.95, beta=0.8, eps=1e-3, matrix_eps=1e-3,
    exponent=exponent, frequency=2, start=3, grafting="none",
  )  # fmt: skip
  tx = optim.scale_by_shampoo(
    0.9, 0.95, 0.8, 1e-3, matrix_eps=1e-3, exponent=exponent, root="products",
    precondition_frequency=2, start_preconditioning_step=3, grafting="none",
    stagger=False,
  )  # fmt: skip
  state, update = tx.init(grads[0]), jax.jit(tx.update)
  for g, expected in zip(grads, wanted, strict=True):
    updates, state = update(g, state)
    np.testing.assert_allclose(updates, expected, rtol=2e-3, atol=2e-3)


def test_shampoo_with_a_relative_epsilon_has_no_unit():
  runs = []
  for scale in (1.0, 1e-4):
    tx = optim.scale_by_shampoo(
      grafting="none", matrix_eps=1e-2, relative_eps=True, root="products",
      precondition_frequency=1,
    )  # fmt: skip
    update, state = jax.jit(tx.update), tx.init(jnp.zeros((5, 4)))
    for g in _grads(4):
      updates, state = update(g * np.float32(scale), state)
    runs.append(updates)
  np.testing.assert_allclose(*runs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exponent", [0.4, jnp.asarray(0.5)], ids=str)
def test_other_exponents_need_eigenvectors(exponent):
  with pytest.raises(ValueError, match=r'exponent=0\.\d.*root="eigh"'):
    optim.shampoo(1e-3, exponent=exponent, root="products")
  with pytest.raises(ValueError, match="root='qr' is not known"):
    optim.shampoo(1e-3, root="qr")
