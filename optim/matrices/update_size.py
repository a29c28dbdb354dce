"""The size of updates: the root mean square of each matrix, matched or capped.

Leaves without a factor, which the element-wise rule steps, stay as they are,
except for `unit`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .padding import entries
from .plan import Bucket, Plan
from .stacks import Split


def sized(
  split: Split, plan: Plan, update_rms: Any, max_update_rms: Any
) -> Split:
  """Gives each matrix a root mean square, or caps it; None does not.

  Args:
    split: Updates, turned back.
    plan: Their plan.
    update_rms: r: U <- U r / rms(U), 0 where U is 0.
    max_update_rms: r: U <- U min(1, r / (rms(U) + 1e-7)).
  """
  buckets = {bucket.name: bucket for bucket in plan.buckets}

  def size(name, x):
    rms = _rms(x, buckets[name])
    if update_rms is not None:
      some = rms > 0
      x = x * jnp.where(some, update_rms / jnp.where(some, rms, 1), 0)
      rms = jnp.where(some, update_rms, rms)
    if max_update_rms is not None:
      x = x * jnp.minimum(1, max_update_rms / (rms + 1e-7))
    return x

  if update_rms is None and max_update_rms is None:
    return split
  return split.map(size)


def unit(split: Split, scale: Any) -> Split:
  """Root mean square `scale` for each matrix, and for each other leaf."""

  def one(x, axes):
    mean = jnp.mean(jnp.square(x), axis=axes, keepdims=True)
    some = mean > 0  # The root of 0 has no derivative.
    rms = jnp.where(some, jnp.sqrt(jnp.where(some, mean, 1)), 0)
    return scale * x / (1e-30 + rms)

  split = split.map(lambda name, x: one(x, tuple(range(1, x.ndim))))
  return split._replace(rest=jax.tree.map(lambda x: one(x, None), split.rest))


def _rms(x: jax.Array, bucket: Bucket) -> jax.Array:
  """[S, 1, 1]; padding does not count."""
  size = entries(bucket, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
  axes = tuple(range(1, x.ndim))
  mean = jnp.sum(jnp.square(x), axis=axes, keepdims=True) / size
  some = mean > 0  # The root of 0 has no derivative.
  return jnp.where(some, jnp.sqrt(jnp.where(some, mean, 1)), 0)
