"""Curvature diagonals: against dense NumPy matrices, and in expectation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import diagonal as oracle

import optim

B, I, H, V = 6, 3, 4, 3
X = np.random.default_rng(0).normal(size=(B, I))
Y = np.array([0, 2, 1, 1, 0, 2])
PARAMS = dict(
  w1=np.random.default_rng(1).normal(size=(I, H)),
  w2=np.random.default_rng(2).normal(size=(H, V)),
)
LIKELIHOODS = ["categorical", "bernoulli", "normal"]


def _params(dtype=jnp.float32):
  return {k: jnp.asarray(v, dtype) for k, v in PARAMS.items()}


def _model_fn(params, batch):
  return jnp.tanh(batch["x"] @ params["w1"]) @ params["w2"]


def _batch():
  return dict(x=jnp.asarray(X, jnp.float32), y=jnp.asarray(Y))


def _loss_fn(outputs, batch, likelihood="categorical"):
  labels = jax.nn.one_hot(batch["y"], V)
  if likelihood == "normal":
    each = jnp.square(outputs - labels) / 2
  elif likelihood == "bernoulli":
    each = jax.nn.softplus(outputs) - labels * outputs
  else:
    each = -jax.nn.log_softmax(outputs) * labels
  return jnp.mean(jnp.sum(each, axis=-1))


_EXACT = jax.jit(optim.exact_ggn_diagonal, static_argnums=(0, 1))
_BARTLETT = jax.jit(optim.gauss_newton_bartlett_diagonal, static_argnums=0)
_FISHER = jax.jit(optim.sampled_fisher_diagonal, static_argnums=0)


def _flat(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def _check_mean(samples_NP, wanted_P):
  """Mean within 4.5 standard errors, and the whole within 2 per cent."""
  mean_P = samples_NP.mean(axis=0)
  error_P = samples_NP.std(axis=0) / np.sqrt(len(samples_NP))
  np.testing.assert_array_less(np.abs(mean_P - wanted_P), 4.5 * error_P + 1e-6)
  gap = np.linalg.norm(mean_P - wanted_P) / np.linalg.norm(wanted_P)
  assert gap < 0.02


def _many(estimate, count, seed=0):
  """[count, P] of estimates with keys of their own."""
  keys = jax.random.split(jax.random.key(seed), count)
  many = jax.jit(jax.vmap(estimate))  # In chunks: a loop costs compilation.
  size = min(count, 10_000)
  chunks = [jax.tree.leaves(many(k)) for k in keys.reshape(-1, size)]
  rows = [
    np.concatenate([np.reshape(x, (size, -1)) for x in leaves], axis=1)
    for leaves in chunks
  ]
  return np.concatenate(rows).astype(np.float64)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
  "rows", [2, 12]
)  # Fewer outputs than parameters; more.
def test_exact_diagonal_is_the_dense_one(likelihood, rows):
  x = np.resize(X, (rows, I))
  batch = dict(x=jnp.asarray(x, jnp.float32), y=np.resize(Y, rows))
  loss_fn = functools.partial(_loss_fn, likelihood=likelihood)
  found = _EXACT(_model_fn, loss_fn, _params(), batch)
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, PARAMS)
  wanted = np.diag(oracle.ggn(x, **_named(), likelihood=likelihood))
  np.testing.assert_allclose(_flat(found), wanted, rtol=2e-5, atol=1e-6)


def _named():
  return dict(w1_IH=PARAMS["w1"], w2_HV=PARAMS["w2"])


def test_exact_diagonal_of_a_loss_that_couples_examples():
  def loss_fn(outputs, batch):
    return jnp.square(jnp.sum(outputs)) / 2  # H is all ones.

  found = _EXACT(_model_fn, loss_fn, _params(), _batch())
  wanted = oracle.jacobian(X, **_named()).sum(axis=(0, 1)) ** 2
  np.testing.assert_allclose(_flat(found), wanted, rtol=1e-4)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_bartlett_is_unbiased(likelihood):
  def estimate(key):
    return optim.gauss_newton_bartlett_diagonal(
      _model_fn, _params(), _batch(), key, likelihood=likelihood
    )

  samples_NP = _many(estimate, 40_000)
  wanted_P = np.diag(oracle.ggn(X, **_named(), likelihood=likelihood))
  _check_mean(samples_NP, wanted_P)


def test_bartlett_is_unbiased_under_weights_and_many_draws_are_closer():
  weights = np.array([1.0, 0.0, 0.5, 2.0, 1.0, 3.0])
  estimate = functools.partial(
    optim.gauss_newton_bartlett_diagonal, _model_fn, _params(), _batch(),
    weights=jnp.asarray(weights, jnp.float32),
  )  # fmt: skip
  one_NP = _many(estimate, 40_000)
  wanted_P = np.diag(oracle.ggn(X, **_named(), weights=weights))
  _check_mean(one_NP, wanted_P)
  four_NP = _many(functools.partial(estimate, num_draws=4), 10_000)
  _check_mean(four_NP, wanted_P)
  ratio = one_NP.var(axis=0).sum() / four_NP.var(axis=0).sum()
  assert 3.6 < ratio < 4.4


def _sequence_logits(params, batch):
  """[B, 2, V]: two tokens a sequence, from halves of the inputs."""
  return _model_fn(params, dict(x=batch["x"].reshape(-1, 2, I)))


@pytest.mark.parametrize("masked", [False, True])
def test_sampled_fisher_is_unbiased_for_the_diagonal_a_token(masked):
  batch = dict(x=jnp.asarray(X.reshape(3, 2, I), jnp.float32))
  mask = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]) if masked else None

  def estimate(key, chunk_size=3):
    return optim.sampled_fisher_diagonal(
      _sequence_logits, _params(), batch, key, chunk_size=chunk_size,
      weights=None if mask is None else jnp.asarray(mask),
    )  # fmt: skip

  samples_NP = _many(estimate, 10_000)
  weights = None if mask is None else mask.ravel()
  wanted_P = np.diag(oracle.ggn(X, **_named(), weights=weights))
  _check_mean(samples_NP, wanted_P)
  # The same draws, one sequence at a time.
  key = jax.random.key(7)
  np.testing.assert_allclose(
    _flat(estimate(key)), _flat(estimate(key, 1)), rtol=1e-5, atol=1e-8
  )


def test_sampled_fisher_varies_less_than_bartlett():
  # Alike tokens: B squares of one distribution, or the square of their sum.
  x = jnp.asarray(np.repeat(X[:1], 32, axis=0), jnp.float32)
  batch = dict(x=x)
  per_example = _many(
    lambda key: optim.sampled_fisher_diagonal(
      _model_fn, _params(), batch, key, chunk_size=32
    ), 500
  )  # fmt: skip
  bartlett = _many(
    lambda key: optim.gauss_newton_bartlett_diagonal(
      _model_fn, _params(), batch, key
    ), 2000
  )  # fmt: skip
  ratio_P = bartlett.var(axis=0) / per_example.var(axis=0)
  assert np.median(ratio_P) > 15
  relative_P = bartlett.std(axis=0) / bartlett.mean(axis=0)
  assert 1.2 < np.median(relative_P) < 1.6  # sqrt(2), as documented.


def test_labels_of_the_data_do_not_enter():
  batch, key = _batch(), jax.random.key(0)
  other = dict(batch, y=(batch["y"] + 1) % V)
  for estimate in (_BARTLETT, _FISHER):
    a = estimate(_model_fn, _params(), batch, key)
    b = estimate(_model_fn, _params(), other, key)
    np.testing.assert_array_equal(_flat(a), _flat(b))
    c = estimate(_model_fn, _params(), batch, jax.random.key(1))
    assert np.any(_flat(a) != _flat(c))


def test_hutchinson_has_the_documented_mean_and_variance():
  rng = np.random.default_rng(3)
  root = rng.normal(size=(5, 5))
  matrix = jnp.asarray(root @ root.T, jnp.float32)
  params = dict(a=jnp.zeros(3), b=jnp.zeros(2))

  def product(v):
    flat = matrix @ jnp.concatenate([v["a"], v["b"]])
    return dict(a=flat[:3], b=flat[3:])

  for probes in (1, 4):
    samples_NP = _many(
      lambda key, n=probes: optim.hutchinson_diagonal(
        product, params, key, num_probes=n
      ), 40_000
    )  # fmt: skip
    dense = np.asarray(matrix, np.float64)
    _check_mean(samples_NP, np.diag(dense))
    off = (dense**2).sum(axis=1) - np.diag(dense) ** 2
    np.testing.assert_allclose(samples_NP.var(axis=0), off / probes, rtol=0.05)


def test_hutchinson_meets_a_diagonal_matrix_exactly():
  scale = dict(a=jnp.arange(3.0), b=jnp.asarray(-2.0))
  found = optim.hutchinson_diagonal(
    lambda v: jax.tree.map(jnp.multiply, scale, v), scale, jax.random.key(0)
  )
  jax.tree.map(np.testing.assert_array_equal, found, scale)


def test_bfloat16_params_are_estimated_in_float32():
  params, key = _params(jnp.bfloat16), jax.random.key(0)
  loss_fn, batch = _loss_fn, _batch()
  for found in (
    _EXACT(_model_fn, loss_fn, params, batch),
    _BARTLETT(_model_fn, params, batch, key),
    _FISHER(_model_fn, params, batch, key),
    optim.hutchinson_diagonal(lambda v: v, params, key),
  ):
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}


def test_outputs_wider_than_params():
  with jax.enable_x64(True):
    params = _params()
    wide = dict(x=jnp.asarray(X), y=jnp.asarray(Y))
    exact = _EXACT(_model_fn, _loss_fn, params, wide)
    drawn = _BARTLETT(_model_fn, params, wide, jax.random.key(0))
  for found in (exact, drawn):
    assert {x.dtype for x in found.values()} == {jnp.dtype("float32")}
  wanted = np.diag(oracle.ggn(X, **_named()))
  np.testing.assert_allclose(_flat(exact), wanted, rtol=1e-5)


def _bad_calls():
  p, b, key = _params(), _batch(), jax.random.key(0)
  integer = dict(p, w1=jnp.ones((I, H), int))
  bartlett = functools.partial(
    optim.gauss_newton_bartlett_diagonal, _model_fn, p, b, key
  )
  fisher = functools.partial(
    optim.sampled_fisher_diagonal, _model_fn, p, b, key
  )
  exact, hutchinson = optim.exact_ggn_diagonal, optim.hutchinson_diagonal
  return {
    "num_draws=0": lambda: bartlett(num_draws=0),
    "likelihood='poisson'": lambda: bartlett(likelihood="poisson"),
    r"weights has shape \(2,\)": lambda: bartlett(weights=jnp.ones(2)),
    "chunk_size=4 does not divide": lambda: fisher(chunk_size=4),
    "chunk_size=0": lambda: fisher(chunk_size=0),
    r"weights has shape \(6, 1\)": lambda: fisher(weights=jnp.ones((6, 1))),
    "first axes": lambda: optim.sampled_fisher_diagonal(
      _model_fn, p, dict(b, extra=jnp.ones(3)), key
    ),
    "one array": lambda: optim.gauss_newton_bartlett_diagonal(
      lambda p, b: (1.0, 2.0), p, b, key
    ),
    r"params\['w1'\] has type int": lambda: exact(
      _model_fn, _loss_fn, integer, b
    ),
    "must be a scalar": lambda: exact(
      _model_fn, lambda outputs, batch: outputs, p, b
    ),
    "entries, more than": lambda: exact(
      lambda w, b: jnp.tile(w, 2**14), lambda z, b: jnp.sum(z**2),
      jnp.ones(2**10), b,
    ),
    "num_probes=1.5": lambda: hutchinson(lambda v: v, p, key, num_probes=1.5),
    "must be a tree like params": lambda: hutchinson(
      lambda v: v["w1"], p, key
    ),
  }  # fmt: skip


@pytest.mark.parametrize("message", sorted(_bad_calls()))
def test_bad_arguments(message):
  with pytest.raises(ValueError, match=message):
    _bad_calls()[message]()
