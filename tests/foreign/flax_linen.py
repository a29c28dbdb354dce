"""Flax linen: a small transformer learns to add modulo 11, by SOAP."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import optim

WORDS, WIDTH, STEPS = 11, 32, 60


class Model(nn.Module):
  """Three words in, logits of the fourth out."""

  @nn.compact
  def __call__(self, words_BL):
    init = nn.initializers.normal(0.5)
    x = nn.Embed(WORDS + 1, WIDTH, embedding_init=init)(words_BL)
    x = x + self.param("place", init, (3, WIDTH))
    x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
    x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(WIDTH)(nn.LayerNorm()(x))))
    return nn.Dense(WORDS)(x[:, -1])


def dimensions(path, leaf):
  """Attention's kernels are [embed, heads, k], its last [heads, k, embed]."""
  name = jax.tree_util.keystr(path)
  if "kernel" not in name:
    return None  # Also biases [heads, k], which are no matrices.
  if leaf.ndim == 3:
    return optim.DimensionNumbers(((0, 1), 2) if "out" in name else (0, (1, 2)))
  return optim.DimensionNumbers()


a, b = (x.ravel() for x in jnp.meshgrid(jnp.arange(WORDS), jnp.arange(WORDS)))
words, label = jnp.stack([a, b, jnp.full_like(a, WORDS)], -1), (a + b) % WORDS
model = Model()
params = model.init(jax.random.key(0), words)["params"]
numbers = jax.tree_util.tree_map_with_path(dimensions, params)
print(optim.treatment_table(params, numbers))


@jax.jit
def step(state):
  def loss_fn(params):
    logits = state.apply_fn({"params": params}, words)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return losses.mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params)
  return state.apply_gradients(grads=grads), loss


tx = optim.soap(3e-2, dimension_numbers=numbers, precondition_frequency=3)
state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
for _ in range(STEPS):
  state, loss = step(state)
print(f"cross-entropy after {STEPS} steps: {loss:.4f}, chance 2.398")
assert loss < 0.1  # optax.sgd(0.3): 0.23.
