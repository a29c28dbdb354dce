"""LOTION with AdamW: a learning rate and everything else."""

from typing import Any

import jax
import optax

from ..common import checks
from ..common.tree import like, upcast
from ..matrices.factors import screen_leaf
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
  eps_root: float = 0.0,
  weight_decay: optax.ScalarOrSchedule = 1e-4,
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
    eps_root: Of Adam, inside the square root; > 0 where the update itself is
      differentiated.
    weight_decay: Of AdamW; number or schedule.
    mask: True decays; as of `optax.adamw`. None: every leaf decays, biases and
      gains of norms as well.
    mu_dtype: Of Adam.
    curvature_decay: As of `add_rounding_penalty`.
    penalty_mask: The `mask` of `add_rounding_penalty`.
    scale_gradient: As of `add_rounding_penalty`.

  Returns:
    A transform whose `update` needs `params` and takes `curvature`.

  Raises:
    ValueError: As `add_rounding_penalty`, or for an argument of AdamW out of
      range.
  """
  checks.scalar_or_schedule("learning_rate", learning_rate)
  checks.scalar_or_schedule("weight_decay", weight_decay)
  for name, value in (("b1", b1), ("b2", b2)):
    checks.decay(name, value)
  for name, value in (("eps", eps), ("eps_root", eps_root)):
    checks.positive(name, value, zero_too=True)
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
    eps_root,
    mu_dtype=mu_dtype,
    weight_decay=weight_decay,
    mask=mask,
  )
  return optax.chain(penalty, _in_float32(adamw))


def _in_float32(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Runs optax's moments in float32 for narrower parameters.

  A leaf that is not finite, or whose squares overflow, counts as zero: an
  infinity would stay in the second moment for ever.
  """
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    return tx.init(upcast(params))

  def update_fn(updates, state, params=None, **extra_args):
    seen = jax.tree.map(screen_leaf, upcast(updates))
    stepped: Any = tx.update(seen, state, upcast(params), **extra_args)
    wide, state = stepped
    return like(wide, updates), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
