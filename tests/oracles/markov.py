"""A language to learn within seconds: an order-2 Markov chain, and a model.

The toy of the study's specification: 32 words, rows of the transition table
drawn from Dirichlet(0.05), a pre-norm transformer with normalised queries and
keys.
"""

import jax
import jax.numpy as jnp
import numpy as np

VOCABULARY, LENGTH = 32, 32


class Chain:
  """Draws rows of `LENGTH` + 1 words, never the same twice."""

  def __init__(self, seed: int = 0):
    """The table and the stream both follow from the seed."""
    self._rng = np.random.default_rng(seed)
    size = VOCABULARY
    table = self._rng.dirichlet(np.full(size, 0.05), (size, size))
    self._sums = np.cumsum(table, axis=-1)

  def rows(self, *shape: int) -> jax.Array:
    """[*shape, LENGTH + 1] int32."""
    count = int(np.prod(shape))
    words = np.zeros((count, LENGTH + 1), np.int32)
    words[:, :2] = self._rng.integers(0, VOCABULARY, (count, 2))
    for i in range(2, LENGTH + 1):
      below = self._sums[words[:, i - 2], words[:, i - 1]]
      draw = self._rng.random((count, 1))
      words[:, i] = np.minimum((below < draw).sum(-1), VOCABULARY - 1)
    return jnp.asarray(words.reshape(*shape, LENGTH + 1))


def init(width: int, layers: int, seed: int = 0) -> dict:
  """Parameters: embedding, blocks by name, final gain, head."""
  rng = np.random.default_rng(seed)

  def normal(inputs, outputs, scale=None):
    scale = inputs**-0.5 if scale is None else scale
    x = rng.normal(size=(inputs, outputs), scale=scale)
    return jnp.asarray(x, jnp.float32)

  blocks = {}
  for layer in range(layers):
    block = {name: normal(width, width) for name in "qkvo"}
    block["up"] = normal(width, 4 * width)
    block["down"] = normal(4 * width, width)
    block |= dict(gain1=jnp.ones(width), gain2=jnp.ones(width))
    blocks[str(layer)] = block
  return dict(
    embed=normal(VOCABULARY, width, 1.0),
    blocks=blocks,
    gain=jnp.ones(width),
    head=normal(width, VOCABULARY),
  )


def logits(params: dict, tokens: jax.Array, heads: int = 4) -> jax.Array:
  """[B, L, V] from rows of L + 1 words, the last of which is a target only."""
  h = params["embed"][tokens[:, :-1]]
  for name in sorted(params["blocks"]):
    block = params["blocks"][name]
    h = h + _attend(block, _norm(h) * block["gain1"], heads)
    hidden = jax.nn.gelu(_norm(h) * block["gain2"] @ block["up"])
    h = h + hidden @ block["down"]
  return (_norm(h) * params["gain"]) @ params["head"]


def targets(tokens: jax.Array) -> tuple[jax.Array, None]:
  """What the loss wants of a batch."""
  return tokens[:, 1:], None


def _norm(x):
  return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def _attend(block, x, heads):
  b, l, d = x.shape

  def split(name):
    return (x @ block[name]).reshape(b, l, heads, d // heads)

  q, k, v = _norm(split("q")), _norm(split("k")), split("v")
  q, k = (_rotate(z) for z in (q, k))
  scores = jnp.einsum("bqhk,bmhk->bhqm", q, k) * (d // heads) ** -0.5
  mask = jnp.tril(jnp.ones((l, l), bool))
  weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
  mixed = jnp.einsum("bhqm,bmhk->bqhk", weights, v).reshape(b, l, d)
  return mixed @ block["o"]


def _rotate(x):
  """Rotary positions, half layout."""
  half = x.shape[-1] // 2
  angle = jnp.arange(x.shape[1])[:, None] * 1e4 ** (-jnp.arange(half) / half)
  cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
