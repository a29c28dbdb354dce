"""A convolutional network in plain JAX learns an edge filter, by SOAP."""

import jax
import jax.numpy as jnp
import optax

import optim

# [height, width, in, out] is a matrix (height width in) x out.
SHAPES = dict(first=(3, 3, 1, 8), hidden=(3, 3, 8, 8), last=(3, 3, 8, 1))
NUMBERS = {name: dict(kernel=optim.CONV) for name in SHAPES}


def init_params(key):
  keys = jax.random.split(key, len(SHAPES))
  return {
    name: dict(
      kernel=jax.random.normal(k, shape) / (9 * shape[2]) ** 0.5,
      bias=jnp.zeros(shape[3]),
    )
    for k, (name, shape) in zip(keys, SHAPES.items(), strict=True)
  }


def conv(x_BHWC, kernel):
  return jax.lax.conv_general_dilated(
    x_BHWC, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def model(params, x):
  for name, layer in params.items():
    x = x if name == "first" else jax.nn.gelu(x)
    x = conv(x, layer["kernel"]) + layer["bias"]
  return x


def draw(key, rows=32):
  """Smooth images 16 x 16, and their Laplacians."""
  box = jnp.full((3, 3, 1, 1), 1 / 9)
  x = jax.random.normal(key, (rows, 20, 20, 1))
  x = conv(conv(x, box), box)[:, 2:-2, 2:-2] * 5
  cross = jnp.array([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[..., None, None]
  return x, conv(x, cross)[:, 1:-1, 1:-1]


def loss_fn(params, x, y):
  wrong = model(params, x)[:, 1:-1, 1:-1] - y
  return jnp.mean(wrong**2) / jnp.mean(y**2)


def train(tx, steps=200):
  params = init_params(jax.random.key(0))

  @jax.jit
  def step(carry, key):
    params, state = carry
    grads = jax.grad(loss_fn)(params, *draw(key))
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(jax.random.key(1), steps)
  (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
  return float(loss_fn(params, *draw(jax.random.key(2), 500)))


print(optim.treatment_table(init_params(jax.random.key(0)), NUMBERS))
adam = train(optax.adam(1e-2))
soap = train(optim.soap(3e-2, weight_decay=0.0, dimension_numbers=NUMBERS))
print(f"share of the variance left: Adam {adam:.1e}, SOAP {soap:.1e}")
assert soap < 8e-4  # Adam: 3e-3, at a rate of 3e-2 4e-3.
