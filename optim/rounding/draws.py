"""Random bits by counting: each element hashes its place and a seed.

`jax.random` hashes 20 rounds for each pair of words. The hash here has two
rounds of a multiplicative mixer. The hash is for rounding, not for
cryptography; seeds come from `jax.random`.
"""

import math

import jax
import jax.numpy as jnp


def seeds(key: jax.Array) -> jax.Array:
  """Two words, uint32 [..., 2], of a key of `jax.random`, or of keys [...]."""

  def words(key):
    return jax.random.bits(key, (2,), jnp.uint32)

  typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  for _ in range(key.ndim - (0 if typed else 1)):
    words = jax.vmap(words)
  return words(key)


def words(seed: jax.Array, shape: tuple[int, ...], use: int) -> jax.Array:
  """32 random bits for each element of an array.

  Args:
    seed: uint32 [2], or [B, 2] for arrays of B rows whose bits depend on the
      row's own seed and on nothing else.
    shape: Of the array; its first axis is B if seeds are of rows.
    use: Another number gives other bits.

  Returns:
    uint32, of this shape.
  """
  rows = seed.ndim - 1
  inner = shape[rows:]
  count = jax.lax.iota(jnp.uint32, math.prod(inner)).reshape(
    (1,) * rows + inner
  )
  seed = seed.reshape((*seed.shape[:rows], *(1 for _ in inner), 2))
  count = count ^ (seed[..., 0] + jnp.uint32(use * 0x9E3779B9 % 2**32))
  return _mixed(_mixed(count) + seed[..., 1])


def _mixed(x: jax.Array) -> jax.Array:
  """A permutation of 32 bits in which each bit depends on all.

  Source: https://github.com/skeeto/hash-prospector, 16 21f0aaad 15 d35a2d97 15.
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
  x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
  return x ^ (x >> 15)
