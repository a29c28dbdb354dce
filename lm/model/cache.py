"""Keys and values of past tokens, for decoding. Dimension key: transformer.py.

The arrays have a fixed size, so a decoding step compiles once.
"""

import typing

import jax
import jax.numpy as jnp

if typing.TYPE_CHECKING:
  from ..config.schema import ModelConfig

# Keys and values of one layer, [B, M, G, K] each; None outside decoding.
LayerCache = tuple[jax.Array, jax.Array] | None


class Cache(typing.NamedTuple):
  """What `Transformer.decode` remembers of the tokens before.

  Rows may have different lengths. To give them different prompts, decode the
  prompts padded at the end, then set `length_B` to the true lengths: what was
  written beyond them is overwritten before it is read. (The padding must not
  be `eos_id`, which would open a document.)
  """

  keys_NBMGK: jax.Array
  values_NBMGK: jax.Array
  length_B: jax.Array  # Tokens seen.
  start_B: jax.Array  # Index of the current document's first token.


def init_cache(cfg: "ModelConfig", batch_size: int, size: int) -> Cache:
  """An empty cache for `batch_size` rows of at most `size` tokens."""
  shape = (cfg.N, batch_size, size, cfg.G, cfg.K)
  keys = jnp.zeros(shape, cfg.compute_dtype)
  zeros = jnp.zeros(batch_size, jnp.int32)
  return Cache(keys, keys, zeros, zeros)


def append(
  cache: tuple[jax.Array, jax.Array],
  new: tuple[jax.Array, jax.Array],
  length_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Writes `new` [B, T, G, K] into a layer's cache from `length_B` on."""

  def write(old_MGK, new_TGK, length):
    zero = jnp.zeros_like(length)
    return jax.lax.dynamic_update_slice(old_MGK, new_TGK, (length, zero, zero))

  return jax.tree.map(
    lambda old, x: jax.vmap(write)(old, x, length_B), cache, new
  )
