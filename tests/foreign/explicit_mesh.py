"""A mesh as `jax.make_mesh` makes it, its axes Explicit; SOAP and Muon."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

import optim

jax.config.update("jax_num_cpu_devices", 4)
SPECS = dict(
  first=P(None, "fsdp"), hidden=P("fsdp", None), last=P("fsdp", None)
)


def init_params(key):
  shapes = dict(first=(8, 32), hidden=(32, 32), last=(32, 4))
  return {
    name: jax.random.normal(jax.random.fold_in(key, i), s) * s[0] ** -0.5
    for i, (name, s) in enumerate(shapes.items())
  }


x = jax.random.normal(jax.random.key(1), (256, 8)) * jnp.logspace(0, -2, 8)
y = jnp.tanh(x @ jax.random.normal(jax.random.key(2), (8, 4)) * 3)


def loss_fn(params, x, y):
  """Rows of the batch lie on the devices; kernels are gathered for use."""
  whole = jax.tree.map(lambda w: jax.reshard(w, P(None, None)), params)
  hidden = jnp.tanh(jnp.tanh(x @ whole["first"]) @ whole["hidden"])
  return jnp.mean((hidden @ whole["last"] - y) ** 2)


def train(tx, num_devices, steps=60):
  devices = jax.devices()[:num_devices]
  mesh = jax.make_mesh((num_devices,), ("fsdp",), devices=devices)
  with jax.set_mesh(mesh):
    params = jax.device_put(init_params(jax.random.key(0)), SPECS)
    batch = jax.device_put((x, y), P("fsdp", None))
    wanted = jax.tree.map(jax.typeof, params)

    @jax.jit
    def step(params, state):
      loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
      updates, state = tx.update(grads, state, params)
      assert jax.tree.map(jax.typeof, updates) == wanted  # Laid out alike.
      return optax.apply_updates(params, updates), state, loss

    state = tx.init(params)
    for _ in range(steps):
      params, state, loss = step(params, state)
    return float(loss)


for name, tx in dict(
  soap=optim.soap(1e-2, weight_decay=0.0), muon=optim.muon(0.02)
).items():
  one, four = train(tx, 1), train(tx, 4)
  print(f"{name}: loss {four:.4f} on 4 devices, {one:.4f} on 1")
  assert four < 0.04
  assert abs(four - one) < 0.1 * one
