"""Haiku: a recurrent network adds numbers marked in a sequence, by SOAP."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import optim


def forward(x_BLI):
  """The sum, [B], read from the last state of a GRU."""
  core = hk.GRU(32)
  start = core.initial_state(x_BLI.shape[0])
  _, state = hk.dynamic_unroll(core, x_BLI, start, time_major=False)
  return hk.Linear(1)(state)[:, 0]


model = hk.without_apply_rng(hk.transform(forward))


def draw(key, rows=128, length=10):
  """Sequences of (number, mark), two marks each; the sum of the marked."""
  value_key, mark_key = jax.random.split(key)
  value = jax.random.uniform(value_key, (rows, length))
  order = jax.random.uniform(mark_key, (rows, length)).argsort(-1)
  mark = (order < 2).astype(jnp.float32)
  return jnp.stack([value, mark], -1), jnp.sum(value * mark, -1)


def loss_fn(params, x, y):
  return jnp.mean((model.apply(params, x) - y) ** 2)


def train(tx, steps=200):
  params = model.init(jax.random.key(0), draw(jax.random.key(1))[0])

  @jax.jit
  def step(carry, key):
    params, state = carry
    grads = jax.grad(loss_fn)(params, *draw(key))
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(jax.random.key(2), steps)
  carry = (params, tx.init(params))
  (params, _), _ = jax.lax.scan(step, carry, keys)
  return float(loss_fn(params, *draw(jax.random.key(3), 2000)))


adam = train(optax.adam(1e-2))
soap = train(optim.soap(2e-2, weight_decay=0.0))
print(f"mean squared error: Adam {adam:.1e}, SOAP {soap:.1e}, mean 1.7e-1")
assert soap < 6e-4
