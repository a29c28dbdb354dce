"""LOTION with AdamW: a learning rate and everything else."""

from typing import Any

import optax

from ..common import checks
from ..common.tree import like, upcast
from ..rounding.params import QuantizerTree
from .transform import add_rounding_penalty


def lotion_adamw(
  learning_rate: optax.ScalarOrSchedule,
  quantizer: QuantizerTree,
  strength: optax.ScalarOrSchedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 1e-4,
  mask: Any | None = None,
  mu_dtype: Any | None = None,
  curvature_decay: float = 0.99,
  penalty_mask: Any | None = None,
  scale_gradient: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """AdamW on the loss plus the penalty: `add_rounding_penalty`, `optax.adamw`.

  The curvature is a second copy beside Adam's second moment, which cannot
  serve: it averages the penalised gradient.

  Args:
    learning_rate: Number, array or schedule; decay it to about zero, or the
      weights keep hopping around the grid.
    quantizer: As of `add_rounding_penalty`.
    strength: As of `add_rounding_penalty`.
    b1: Of Adam.
    b2: Of Adam.
    eps: Of Adam.
    weight_decay: Of AdamW.
    mask: True decays; as of `optax.adamw`.
    mu_dtype: Of Adam.
    curvature_decay: As of `add_rounding_penalty`.
    penalty_mask: The `mask` of `add_rounding_penalty`.
    scale_gradient: As of `add_rounding_penalty`.

  Returns:
    A transform whose `update` needs `params` and takes `curvature`.

  Raises:
    ValueError: As `add_rounding_penalty`.
  """
  checks.learning_rate(learning_rate)
  checks.positive("weight_decay", weight_decay, zero_too=True)
  penalty = add_rounding_penalty(
    quantizer,
    strength,
    curvature_decay=curvature_decay,
    mask=penalty_mask,
    scale_gradient=scale_gradient,
  )
  adamw = optax.adamw(
    learning_rate,
    b1,
    b2,
    eps,
    mu_dtype=mu_dtype,
    weight_decay=weight_decay,
    mask=mask,
  )
  return optax.chain(penalty, _in_float32(adamw))


def _in_float32(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Runs optax's moments in float32 for narrower parameters."""
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    return tx.init(upcast(params))

  def update_fn(updates, state, params=None, **extra_args):
    stepped: Any = tx.update(
      upcast(updates), state, upcast(params), **extra_args
    )
    wide, state = stepped
    return like(wide, updates), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
