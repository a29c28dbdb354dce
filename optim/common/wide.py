"""Elementwise transforms whose arithmetic and state are float32."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .tree import like, upcast, work_dtype


def in_work_dtype(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Shows gradients and parameters to a transform in their `work_dtype`.

  The state of most transforms of optax has the types of the parameters, and
  some states change their type at the first update. Shown float32, a transform
  keeps a float32 state for bfloat16 parameters, and the updates are cast to the
  types of the gradients.

  Args:
    tx: Any transform.

  Returns:
    The transform. Extra arguments reach `tx` as they are.
  """
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    return tx.init(upcast(params))

  def update_fn(updates, state, params=None, **extra_args):
    params = None if params is None else upcast(params)
    wide, state = tx.update(upcast(updates), state, params, **extra_args)
    return like(wide, updates), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scalar_dtype(tree: Any) -> Any:
  """The type of a number that all leaves share: the widest `work_dtype`."""
  widest = jnp.dtype(jnp.float32)
  for leaf in jax.tree.leaves(tree):
    widest = jnp.promote_types(widest, work_dtype(leaf))
  return widest
