"""LOTION with AdamW: a learning rate and everything else."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.options import also_takes
from ..common.tree import like, upcast
from ..rounding.params import QuantizerTree
from .transform import add_rounding_penalty


@also_takes(add_rounding_penalty)
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
  penalty_mask: Any | None = None,
  **penalty: Any,
) -> optax.GradientTransformationExtraArgs:
  """AdamW on the loss plus the penalty: `add_rounding_penalty`, `optax.adamw`.

  The state has an average of the curvature beside Adam's second moment. Adam's
  second moment cannot serve as the curvature, because it averages the penalised
  gradient.

  Args:
    learning_rate: Number, array or schedule. Let it decay to about zero, or the
      weights keep hopping around the grid.
    quantizer: As for `add_rounding_penalty`.
    strength: As for `add_rounding_penalty`.
    b1: Decay of Adam's first moment, in [0, 1).
    b2: Decay of Adam's second moment, in [0, 1).
    eps: Added to the square root in Adam.
    eps_root: Added inside the square root in Adam. Set it > 0 if the update
      itself is differentiated.
    weight_decay: weight_decay * params is added to Adam's direction; number or
      schedule.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays, biases and gains of
      norms as well.
    mu_dtype: Type of Adam's first moment; None is float32.
    penalty_mask: The `mask` of `add_rounding_penalty`.
    **penalty: The other arguments of `add_rounding_penalty`.

  Returns:
    A transform whose `update` needs `params`, and takes `curvature` as
    `add_rounding_penalty` does.

  Raises:
    ValueError: As for `add_rounding_penalty`, or for an argument of AdamW out
      of range.
  """
  checks.scalar_or_schedule("learning_rate", learning_rate)
  checks.scalar_or_schedule("weight_decay", weight_decay)
  for name, value in (("b1", b1), ("b2", b2)):
    checks.decay(name, value)
  for name, value in (("eps", eps), ("eps_root", eps_root)):
    checks.positive(name, value, zero_too=True)
  first = add_rounding_penalty(
    quantizer, strength, mask=penalty_mask, **penalty
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
  return optax.chain(first, _in_float32(adamw))


def _in_float32(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Keeps optax's moments in float32 for parameters of fewer bits.

  An entry of the gradient is replaced by 0 if its square is not finite: an
  infinity would stay in the second moment for ever. Entry by entry, so that
  nothing is summed over devices.
  """
  tx = optax.with_extra_args_support(tx)

  def init_fn(params):
    return tx.init(upcast(params))

  def update_fn(updates, state, params=None, **extra_args):
    seen = jax.tree.map(
      lambda g: jnp.where(jnp.isfinite(jnp.square(g)), g, 0), upcast(updates)
    )
    stepped: Any = tx.update(seen, state, upcast(params), **extra_args)
    wide, state = stepped
    return like(wide, updates), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
