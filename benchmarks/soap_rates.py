r"""Learning rates of Adam and SOAP on a small problem: losses of a grid.

    python -m benchmarks.soap_rates

A network of two hidden layers of 48 units learns one of 16 units, with noise of
0.1 (so 0.01 is the least loss), from batches of 32 of 2,048 examples in 500
steps. Mean over three seeds; about a minute on two cores.
"""

import functools

import jax
import jax.numpy as jnp
import optax

import optim
from benchmarks.timing import print_table

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
METHODS = {
  "optax.adam": optax.adam,
  "soap": functools.partial(optim.soap, weight_decay=0.0),
  "soap, normalize=True": functools.partial(
    optim.soap, weight_decay=0.0, normalize=True
  ),
}


def _problem(seed):
  keys = jax.random.split(jax.random.key(seed), 7)
  normal = jax.random.normal
  x = normal(keys[0], (2048, 24)) * (1 + jnp.arange(24.0)) ** -0.5
  y = jnp.tanh(x @ normal(keys[1], (24, 16))) @ normal(keys[2], (16, 6))
  y = y + 0.1 * normal(keys[3], y.shape)
  params = dict(
    a=normal(keys[4], (24, 48)) / 24**0.5,
    b=normal(keys[5], (48, 48)) / 48**0.5,
    c=normal(keys[6], (48, 6)) / 48**0.5,
  )
  return x, y, params


def _loss(params, x, y):
  hidden = jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"])
  return jnp.mean((hidden @ params["c"] - y) ** 2)


def final_loss(make, rate, seed, steps=500, batch=32):
  """Loss on all examples after the last step."""
  x, y, params = _problem(seed)
  tx = make(rate)

  def step(carry, key):
    params, state = carry
    rows = jax.random.randint(key, (batch,), 0, len(x))
    grads = jax.grad(_loss)(params, x[rows], y[rows])
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(jax.random.key(100 + seed), steps)
  (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
  return _loss(params, x, y)


def main():
  """Prints the table."""
  rows = []
  for name, make in METHODS.items():
    run = jax.jit(functools.partial(final_loss, make))
    cells = [
      float(sum(run(rate, seed) for seed in range(3)) / 3) for rate in RATES
    ]
    rows.append([name, *(f"{loss:.3g}" for loss in cells)])
  print_table(["method", *map("{:g}".format, RATES)], rows)


if __name__ == "__main__":
  main()
