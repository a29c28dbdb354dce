"""Sophia-G: where its estimates come from, and how much they weigh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

_TOKENS, _VOCABULARY = 24, 5
_RATE = 0.05


def _model(params, x):
  return x @ params["w"] + params["b"]


def _params():
  w = jax.random.normal(jax.random.key(0), (3, _VOCABULARY))
  return dict(w=w, b=jnp.zeros(_VOCABULARY))


def _batch(step):
  return jax.random.normal(jax.random.key(100 + step), (_TOKENS, 3))


def _mean_gradient(params, x, key):
  """Of the mean cross-entropy of labels drawn as the estimator draws them."""
  (draw,) = jax.random.split(key, 1)
  labels = jax.random.categorical(draw, _model(params, x))

  def loss(params):
    log_p = jax.nn.log_softmax(_model(params, x))
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))

  return jax.grad(loss)(params)


def _run(tx, estimate, steps=7):
  """[parameters], [shares of unclipped entries]."""

  def step(carry, count):
    params, state = carry
    x, key = _batch(count), jax.random.key(count)
    grads = _mean_gradient(params, x, jax.random.key(50 + count))
    updates, state = tx.update(
      grads, state, params, estimate=lambda: estimate(params, x, key)
    )
    params = optax.apply_updates(params, updates)
    return (params, state), (params, state[0].unclipped)

  carry = _params(), tx.init(_params())
  return jax.lax.scan(step, carry, jnp.arange(steps))[1]


def _bartlett(params, x, key):
  return optim.gauss_newton_bartlett_diagonal(_model, params, x, key)


def _square(params, x, key):
  return jax.tree.map(jnp.square, _mean_gradient(params, x, key))


def test_the_bartlett_diagonal_has_the_factor_of_the_tokens_in_it():
  """B = 1 for it; B = tokens for the square of a mean loss's gradient."""
  sophia = functools.partial(
    optim.sophia_g, _RATE, b2=0.5, rho=0.5, estimate_every=2
  )

  @jax.jit
  def both():
    ours = _run(sophia(), _bartlett)
    authors = _run(sophia(batch_tokens=float(_TOKENS)), _square)
    wrong = _run(sophia(batch_tokens=float(_TOKENS)), _bartlett)
    return ours, authors, wrong

  (ours, shares), (authors, _), (wrong, _) = both()
  np.testing.assert_allclose(ours["w"], authors["w"], atol=1e-5)
  assert np.abs(ours["w"] - wrong["w"]).max() > 0.02
  assert np.all(shares[:2] == 0)  # Signs, until the first estimate.
  assert 0.1 < shares[-1] < 1


@pytest.mark.parametrize(("first", "calls"), [(False, 2), (True, 3)])
def test_estimates_are_made_when_they_are_due_only(first, calls):
  made = []

  def estimate(params, x, key):
    jax.debug.callback(lambda: made.append(0))
    return _square(params, x, key)

  tx = optim.sophia_g(_RATE, estimate_every=3, estimate_first=first)
  jax.block_until_ready(jax.jit(lambda: _run(tx, estimate))())
  jax.effects_barrier()
  assert len(made) == calls  # At calls 3 and 6, counted from 0.


def _second_call(estimate, **options):
  """The update and the state after an estimate, from m = 1 - b1 = 0.1."""
  tx = optim.scale_by_sophia_g(
    b1=0.9, b2=0.5, rho=0.1, estimate_first=True, **options
  )
  ones = jnp.ones(4)
  return tx.update(ones, tx.init(ones), estimate=jnp.asarray(estimate))


def test_a_step_is_newtons_below_the_bound_and_one_above():
  u, state = _second_call([16.0, 4.0, 1.0, 0.0])
  # |m| / (rho B h) = 0.1 / (0.1 * h), and h is half the estimate.
  np.testing.assert_allclose(u, [1 / 8, 1 / 2, 1.0, 1.0], rtol=1e-6)
  assert state.unclipped == 0.5


def test_what_is_no_curvature_is_left_out():
  u, state = _second_call([jnp.nan, jnp.inf, -3.0, 8.0])
  np.testing.assert_array_equal(state.nu, [0.0, 0.0, -1.5, 4.0])
  np.testing.assert_allclose(u, [1.0, 1.0, 1.0, 0.25], rtol=1e-6)


def test_an_estimate_may_be_a_partial_that_jit_sees_as_arrays():
  tx = optim.scale_by_sophia_g(estimate_first=True)
  update = jax.jit(tx.update)
  ones = jnp.ones(4)
  for scale in (1.0, 2.0):
    estimate = jax.tree_util.Partial(jnp.multiply, ones, scale)
    _, state = update(ones, tx.init(ones), estimate=estimate)
    np.testing.assert_allclose(state.nu, 0.01 * scale, rtol=1e-5)
  assert update._cache_size() <= 1  # 0: JAX kept no entry.


@pytest.mark.parametrize(
  ("estimate", "message"),
  [
    (None, "estimate=None"),
    (dict(w=jnp.ones(3)), r"estimate\['b'\] has shape None"),
    (dict(w=jnp.ones(2), b=jnp.ones(2)), r"estimate\['w'\] has shape \(2,\)"),
  ],
)
def test_a_missing_estimate_is_named(estimate, message):
  params = dict(w=jnp.ones(3), b=jnp.ones(2))
  tx = optim.scale_by_sophia_g()
  with pytest.raises(ValueError, match=message):
    tx.update(params, tx.init(params), params, estimate=estimate)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(rho=0.0), "rho=0.0 must be > 0"),
    (dict(estimate_every=0), "estimate_every=0 must be >= 1"),
    (dict(b2=1.0), "b2=1.0 must be in"),
  ],
)
def test_a_bad_argument_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    optim.sophia_g(0.1, **options)


def test_state_words_are_those_of_the_table():
  tx = optim.scale_by_sophia_g()
  state = jax.eval_shape(tx.init, jnp.ones((7, 9)))
  words = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
  assert words == 2 * 63
