"""What decoding remembers of past tokens. Dimension key: `transformer.py`.

The arrays have a fixed size, so a decoding step compiles once.
"""

import typing

import jax
import jax.numpy as jnp

from ..config.schema import ModelConfig
from .mixers import table as mixers
from .param_spec import Tree


class Cache(typing.NamedTuple):
  """What `Transformer.decode` remembers of the tokens before.

  Rows may have different lengths. For different prompts, decode the prompts
  padded at the end, then set `length_B` to the true lengths. Entries beyond the
  true length are overwritten before they are read. The padding must not be
  `eos_id`, which would open a document.
  """

  layers: Tree  # The mixer's, of all layers: [N, B, ...].
  length_B: jax.Array  # Tokens seen.
  start_B: jax.Array  # Index of the current document's first token.


def init_cache(cfg: ModelConfig, batch_size: int, size: int) -> Cache:
  """An empty cache for `batch_size` rows of at most `size` tokens."""
  layer = mixers.of(cfg).init_cache(cfg, batch_size, size)
  layers = jax.tree.map(lambda x: jnp.broadcast_to(x, (cfg.N, *x.shape)), layer)
  zeros = jnp.zeros(batch_size, jnp.int32)
  return Cache(layers, zeros, zeros)
