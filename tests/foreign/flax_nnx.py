"""Flax NNX: a classifier of two spirals, hidden kernels by Muon."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import optim


class Classifier(nnx.Module):
  """Two coordinates to one logit."""

  def __init__(self, rngs):
    self.first = nnx.Linear(2, 64, rngs=rngs)
    self.hidden = nnx.List([nnx.Linear(64, 64, rngs=rngs) for _ in range(2)])
    self.norm = nnx.LayerNorm(64, rngs=rngs)
    self.last = nnx.Linear(64, 1, rngs=rngs)

  def __call__(self, x):
    x = jnp.tanh(self.first(x))
    for layer in self.hidden:
      x = x + jnp.tanh(layer(x))
    return self.last(self.norm(x))[:, 0]


def dimensions(path, leaf):
  """Muon is for hidden matrices; first, last, biases and gains get Adam."""
  name = jax.tree_util.keystr(path)
  hidden = "hidden" in name and leaf.ndim == 2
  return optim.DimensionNumbers() if hidden else None


angle = jnp.linspace(0.5, 3.5 * jnp.pi, 100)
arm = jnp.stack([angle * jnp.cos(angle), angle * jnp.sin(angle)], -1) / 8
x, label = jnp.concatenate([arm, -arm]), jnp.repeat(jnp.arange(2.0), 100)


def loss_fn(model):
  return optax.sigmoid_binary_cross_entropy(model(x), label).mean()


@nnx.jit
def step(model, optimizer):
  loss, grads = nnx.value_and_grad(loss_fn)(model)
  optimizer.update(model, grads)
  return loss


def train(tx, steps=200):
  model = Classifier(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  for _ in range(steps):
    step(model, optimizer)
  return float(loss_fn(model))


muon = optim.muon(
  0.02,
  adam_learning_rate=3e-3,
  dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(
    dimensions, params
  ),
)
losses = dict(Adam=train(optax.adam(3e-3)), Muon=train(muon))
print("cross-entropy:", losses)
assert losses["Muon"] < 0.04  # optax.sgd(0.1): 0.58.
