"""Muon against a NumPy loop, and optax's where the two agree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def _newton_schulz(x, steps=5):
  a, b, c = 3.4445, -4.7750, 2.0315
  x = x / (np.linalg.norm(x) + 1e-7)
  for _ in range(steps):
    gram = x @ x.T
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x


def _muon_directions(grads, decay, nesterov):
  m, result = np.zeros(grads[0].shape), []
  rows, columns = m.shape
  for g in grads:
    m = decay * m + (1 - decay) * g
    ahead = decay * m + (1 - decay) * g if nesterov else m
    result.append(_newton_schulz(ahead) * max(1, columns / rows) ** 0.5)
  return result


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_oracle(shape, nesterov):
  rng = np.random.default_rng(0)
  grads = [rng.normal(size=shape) for _ in range(6)]
  tx = optim.scale_by_muon(0.9, nesterov=nesterov)
  state, update = tx.init(jnp.zeros(shape)), jax.jit(tx.update)
  for g, wanted in zip(
    grads, _muon_directions(grads, 0.9, nesterov), strict=True
  ):
    updates, state = update(jnp.asarray(g, jnp.float32), state)
    np.testing.assert_allclose(updates, wanted, atol=1e-4)


def test_first_step_is_that_of_optax():
  # Later ones differ: optax corrects the bias of the momentum.
  grads = np.random.default_rng(0).normal(size=(6, 9))
  grads = jnp.asarray(grads, jnp.float32)
  a, b = (
    tx.update(grads, tx.init(grads), grads)[0]
    for tx in (optim.muon(0.1), optax.contrib.muon(0.1))
  )
  np.testing.assert_allclose(a, b, atol=1e-5)


def test_other_leaves_get_adam_at_their_own_rate():
  grads = dict(w=jnp.ones((3, 3)), b=jnp.asarray([3.0, -2.0]))
  tx = optim.muon(0.1, adam_learning_rate=0.01)
  updates, _ = tx.update(grads, tx.init(grads), grads)
  np.testing.assert_allclose(updates["b"], [-0.01, 0.01], rtol=1e-5)
  assert np.abs(updates["w"]).max() > 0.02


def test_consistent_rms():
  grads = jnp.asarray(np.random.default_rng(0).normal(size=(64, 256)))
  tx = optim.scale_by_muon(consistent_rms=0.2)
  updates, _ = jax.jit(tx.update)(grads, tx.init(grads))
  rms = np.sqrt(np.mean(np.square(updates)))
  np.testing.assert_allclose(rms, 0.2, rtol=0.15)
