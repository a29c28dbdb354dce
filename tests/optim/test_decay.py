"""The end of a chain, on SOAP: decoupled decay and the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np

import optim


def _grads(steps):
  rng = np.random.default_rng(0)
  scale = (1.0 + np.arange(4)) ** -0.7
  return [
    (rng.normal(size=(4, 4)) * scale).astype(np.float32) for _ in range(steps)
  ]


def _run(tx, grads, params=None):
  """Updates for a list of gradients."""
  params = jnp.zeros_like(grads[0]) if params is None else params
  state, result = tx.init(params), []
  update = jax.jit(tx.update)
  for g in grads:
    updates, state = update(g, state, params)
    result.append(updates)
  return result


def test_first_call_neither_steps_nor_decays():
  params = jnp.ones((4, 4))
  for order in ("optax", "official"):
    tx = optim.soap(0.1, weight_decay=0.5, decay_order=order, first_step="skip")
    first, second = _run(tx, _grads(2), params)
    np.testing.assert_array_equal(first, 0)
    assert np.all(np.asarray(second) != 0)


def test_decay_orders():
  params, grads = jnp.full((4, 4), 2.0), _grads(2)
  rate, decay = 0.1, 0.5
  new = {}
  for order in ("optax", "official"):
    tx = optim.soap(rate, weight_decay=decay, decay_order=order)
    updates = _run(tx, grads, params)
    new[order] = params + updates[-1]
  u = _run(optim.scale_by_soap(), grads)[-1]
  np.testing.assert_allclose(
    new["optax"], params - rate * (u + decay * params), rtol=1e-5
  )
  np.testing.assert_allclose(
    new["official"], (params - rate * u) * (1 - rate * decay), rtol=1e-5
  )


def test_schedule_counts_calls():
  grads = _grads(3)

  def schedule(count):
    return 10.0**-count

  scaled = _run(optim.soap(schedule, weight_decay=0.0), grads)
  plain = _run(optim.scale_by_soap(), grads)
  for t, (a, b) in enumerate(zip(scaled, plain, strict=True)):
    np.testing.assert_allclose(a, -(10.0**-t) * b, rtol=1e-5)
