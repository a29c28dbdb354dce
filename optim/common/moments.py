"""Averages of gradients and of their squares, as one leaf's arithmetic."""

from typing import Any

import jax
import jax.numpy as jnp


def average(old: jax.Array, new: jax.Array, decay: Any) -> jax.Array:
  """Decay * old + (1 - decay) * new, in the type of `new`.

  Store the result in the type of `old`, which may have fewer bits.
  """
  moved = decay * old.astype(new.dtype) + (1 - decay) * new
  return moved.astype(new.dtype)  # A decay may be an array of more bits.


def root(v: jax.Array, eps: Any, decay: Any, count: jax.Array) -> jax.Array:
  """Adam's denominator sqrt(v / (1 - decay^t)) + eps of the update t >= 1."""
  return (jnp.sqrt(v / (1 - decay**count)) + eps).astype(v.dtype)


def divide(x: jax.Array, root: jax.Array) -> jax.Array:
  """The quotient x / root; 0 where the root is 0, before any gradient."""
  quotient = x / jnp.where(root > 0, root, 1)
  return jnp.where(root > 0, quotient, 0).astype(x.dtype)
