"""Equinox: kernels are [out, in], which Muon has to be told."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import optim

key = jax.random.key(0)
x = jax.random.uniform(key, (256, 3), minval=-1)
y = jnp.sin(4 * x[:, 0] * x[:, 1]) + x[:, 2] ** 2
model = eqx.nn.MLP(3, "scalar", 64, 2, jnp.tanh, key=key)
params = eqx.filter(model, eqx.is_inexact_array)
numbers = optim.by_rank({2: optim.OUT_IN})
print(optim.treatment_table(params, numbers))


@eqx.filter_value_and_grad
def loss_fn(model):
  return jnp.mean((jax.vmap(model)(x) - y) ** 2)


@eqx.filter_jit
def step(model, state, tx):
  loss, grads = loss_fn(model)
  params = eqx.filter(model, eqx.is_inexact_array)
  updates, state = tx.update(grads, state, params)
  return eqx.apply_updates(model, updates), state, loss


def train(tx, steps=150):
  trained, state = model, tx.init(params)
  for _ in range(steps):
    trained, state, loss = step(trained, state, tx)
  return float(loss)


rate = optax.cosine_decay_schedule(0.05, 150)
muon = train(optim.muon(rate, dimension_numbers=numbers))
print(
  f"mean squared error: Adam {train(optax.adam(1e-2)):.1e}, Muon {muon:.1e}"
)
assert muon < 9e-3

# The first kernel has 3 inputs and 64 outputs: Muon's update is scaled by
# sqrt(64 / 3), but by 1 if its axes are taken for [in, out].
_, grads = loss_fn(model)
norms = []
for dims in (numbers, None):
  tx = optim.scale_by_muon(dimension_numbers=dims)
  updates, _ = tx.update(grads, tx.init(params), params)
  norms.append(float(jnp.linalg.norm(updates.layers[0].weight)))
print("norms of Muon's update, told and not:", norms)
assert 0.99 < norms[0] / norms[1] / (64 / 3) ** 0.5 < 1.01, norms
