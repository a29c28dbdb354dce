"""AdEMAMix and its simple form: limits that are Adam, warm-ups, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optim
from optim.common import warmups


def _same_updates(ours, theirs, atol=1e-5):
  rng = np.random.default_rng(0)
  params = jnp.asarray(rng.normal(size=7), jnp.float32)
  states = [ours.init(params), theirs.init(params)]
  for _ in range(6):
    grads = jnp.asarray(rng.normal(size=7), jnp.float32)
    updates = []
    for i, tx in enumerate((ours, theirs)):
      update, states[i] = tx.update(grads, states[i], params)
      updates.append(update)
    np.testing.assert_allclose(*updates, rtol=0, atol=atol)


def _of_average(b1):
  return optim.scale_by_simplified_ademamix(
    b1=b1, b2=0.9, eps=1e-3, bias_correction1=True
  )


@pytest.mark.parametrize(
  ("ours", "theirs"),
  [
    pytest.param(
      optim.scale_by_ademamix(alpha=0.0, b1=0.8, b2=0.9, eps=1e-3),
      optax.scale_by_adam(0.8, 0.9, 1e-3),
      id="no slow average",
    ),
    pytest.param(
      optim.scale_by_ademamix(b1=0.0, b2=0.9, b3=0.99),
      optax.contrib.scale_by_ademamix(0.0, 0.9, 0.99, alpha=5.0),
      id="no fast average",
    ),
    pytest.param(
      _of_average(0.8), optax.scale_by_adam(0.8, 0.9, 1e-3), id="average"
    ),
    pytest.param(
      optim.scale_by_simplified_ademamix(b1=0.8, b2=0.9, alpha=3.0),
      optax.contrib.scale_by_simplified_ademamix(0.8, 0.9, alpha=3.0),
      id="sum",
    ),
  ],
)
def test_limits_are_transforms_of_optax(ours, theirs):
  _same_updates(ours, theirs)


@pytest.mark.parametrize("b1", [0.5, lambda step: 1 - 1 / (1.0 + step)])
def test_the_mass_is_what_the_sum_is_of_ones(b1):
  tx = _of_average(b1)
  state = tx.init(jnp.zeros(3))
  for _ in range(4):
    updates, state = tx.update(jnp.full(3, 2.0), state)
    np.testing.assert_allclose(state.mu, 2 * state.mass, rtol=1e-6)
    np.testing.assert_allclose(updates, 2 / 2.001, rtol=1e-5)


@pytest.mark.parametrize(("start", "end"), [(0.9, 0.999), (0.5, 0.99)])
def test_the_half_life_grows_linearly(start, end):
  steps = jnp.arange(1, 60)
  decays = np.asarray(warmups.half_life(end, start, 50, steps), np.float64)
  lives = np.log(0.5) / np.log(decays)
  first, last = np.log(0.5) / np.log(start), np.log(0.5) / np.log(end)
  share = np.minimum(np.arange(1, 60) / 50, 1)
  np.testing.assert_allclose(lives, first + share * (last - first), rtol=1e-3)


def test_alpha_grows_linearly_and_schedules_count_from_one():
  steps = jnp.array([1, 2, 4, 5])
  warm = warmups.linear(8.0, 4, steps)
  np.testing.assert_allclose(warm, [2.0, 4.0, 8.0, 8.0])
  _same_updates(
    optim.scale_by_ademamix(alpha=8.0, alpha_warmup=4),
    optim.scale_by_ademamix(alpha=lambda t: 8.0 * jnp.minimum(t / 4, 1)),
  )


def test_words_of_state():
  params = dict(w=jax.ShapeDtypeStruct((64, 64), jnp.bfloat16))
  for tx, words in (
    (optim.scale_by_ademamix(), 3),
    (optim.scale_by_ademamix(b1=0.0), 2),
    (optim.scale_by_simplified_ademamix(bias_correction1=True), 2),
  ):
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    size = sum(x.size for x in leaves if x.dtype == jnp.float32)
    assert words <= size / 64**2 < words + 0.01


@pytest.mark.parametrize(
  ("make", "settings", "message"),
  [
    (optim.ademamix, dict(b3=1.0), "b3=1.0 must be in"),
    (optim.ademamix, dict(alpha=-1.0), "alpha=-1.0 must be >= 0"),
    (optim.ademamix, dict(b3_warmup=0), "b3_warmup=0 must be > 0"),
    (
      optim.ademamix,
      dict(alpha=lambda t: t, alpha_warmup=3),
      "alpha_warmup=3 warms a number up, but alpha is a schedule",
    ),
    (optim.simplified_ademamix, dict(min_b1=1.0), "min_b1=1.0 must be in"),
    (
      optim.simplified_ademamix,
      dict(b1=lambda t: 0.9, b1_warmup=3),
      "b1_warmup=3 warms a number up, but b1 is a schedule",
    ),
  ],
)
def test_errors(make, settings, message):
  with pytest.raises(ValueError, match=message):
    make(0.1, **settings)
