"""Norm of the update, and statistics of every leaf."""

from typing import Any

import jax.numpy as jnp
import optax

from ..model.params import by_path
from ..step.update import Context, Metrics


def measure(context: Context) -> Metrics:
  """`train/update_norm`, and `leaf/NAME/PATH/{rms,mean,std}`.

  NAME is grads (clipped), params (after the update) or updates.
  """
  updates = context.updates
  return {"train/update_norm": optax.tree.norm(updates)} | leaves(
    grads=context.grads, params=context.state.params, updates=updates
  )


def leaves(**trees: Any) -> Metrics:
  """Root mean square, mean and deviation of each leaf of each tree.

  Args:
    **trees: Trees of arrays, by the name they get in the keys
      `leaf/NAME/PATH/{rms,mean,std}`.
  """
  found = {}
  for name, tree in trees.items():
    for path, leaf in by_path(tree).items():
      key, leaf = f"leaf/{name}/{path}", leaf.astype(jnp.float32)
      mean, square = jnp.mean(leaf), jnp.mean(jnp.square(leaf))
      found[f"{key}/rms"] = jnp.sqrt(square)
      found[f"{key}/mean"] = mean
      found[f"{key}/std"] = jnp.std(leaf)
  return found
