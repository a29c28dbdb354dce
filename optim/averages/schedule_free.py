"""Schedule-Free AdamW and SGD by name: settings of `primal_averaging`.

What these add to `optax.contrib.schedule_free_adamw` and `_sgd`: a float32
state for bfloat16 parameters, the warm-up of the authors' code, `r`, a mask of
the weight decay, weight decay at z, any schedule, and the paper's variant.
"""

from typing import Any, Literal, get_args

import jax.numpy as jnp
import optax

from ..common import checks
from ..common.warmups import at
from .primal import DecayAt, primal_averaging

Variant = Literal["1.3", "paper"]


def schedule_free_adamw(
  learning_rate: optax.ScalarOrSchedule = 0.0025,
  *,
  b1: optax.ScalarOrSchedule = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: optax.ScalarOrSchedule = 0.0,
  mask: Any | None = None,
  warmup_steps: int = 0,
  r: float = 0.0,
  weight_lr_power: float = 2.0,
  decay_at: DecayAt = "y",
  variant: Variant = "1.3",
) -> optax.GradientTransformationExtraArgs:
  r"""Schedule-Free around Adam's direction without momentum.

  See `primal_averaging`. The direction is g / (sqrt(v / (1 - b2^t)) + eps) with
  v = b2 v + (1 - b2) g^2.

  Args:
    learning_rate: eta; 0.0025 is the authors' default.
    b1: `train_interp` of `primal_averaging`.
    b2: Decay of v, in [0, 1).
    eps: Added to the square root.
    weight_decay: As for `primal_averaging`.
    mask: As for `primal_averaging`.
    warmup_steps: As for `primal_averaging`.
    r: As for `primal_averaging`.
    weight_lr_power: As for `primal_averaging`.
    decay_at: As for `primal_averaging`.
    variant: "1.3", the authors' code since version 1.3; "paper" multiplies
      gamma by sqrt(1 - b2^t), also in the weights of the average and in the
      decay, and leaves v without correction, so that eps acts on sqrt(v).

  Returns:
    A transform; its `update` needs `params`. Evaluate `optim.eval_params`.

  Raises:
    ValueError: For an argument out of range.

  References:
    Defazio et al., "The road less scheduled", 2024,
    https://arxiv.org/abs/2405.15682
  """
  checks.decay("b2", b2)
  checks.positive("eps", eps, zero_too=True)
  checks.choice("variant", variant, get_args(Variant))
  checks.scalar_or_schedule("learning_rate", learning_rate)
  paper = variant == "paper"

  def paper_rate(count):
    return at(learning_rate, count) * jnp.sqrt(1 - b2 ** (count + 1))

  return primal_averaging(
    optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=not paper),
    paper_rate if paper else learning_rate,
    train_interp=b1,
    warmup_steps=warmup_steps,
    r=r,
    weight_lr_power=weight_lr_power,
    weight_decay=weight_decay,
    mask=mask,
    decay_at=decay_at,
  )


def schedule_free_sgd(
  learning_rate: optax.ScalarOrSchedule = 1.0,
  *,
  b1: optax.ScalarOrSchedule = 0.9,
  weight_decay: optax.ScalarOrSchedule = 0.0,
  mask: Any | None = None,
  warmup_steps: int = 0,
  r: float = 0.0,
  weight_lr_power: float = 2.0,
  decay_at: DecayAt = "y",
) -> optax.GradientTransformationExtraArgs:
  """Schedule-Free around the gradient itself; see `primal_averaging`.

  Args:
    learning_rate: eta; 1 is the authors' default.
    b1: `train_interp` of `primal_averaging`.
    weight_decay: As for `primal_averaging`.
    mask: As for `primal_averaging`.
    warmup_steps: As for `primal_averaging`.
    r: As for `primal_averaging`.
    weight_lr_power: As for `primal_averaging`.
    decay_at: As for `primal_averaging`.

  Returns:
    A transform; its `update` needs `params`. Evaluate `optim.eval_params`.

  Raises:
    ValueError: For an argument out of range.

  References:
    Defazio et al., "The road less scheduled", 2024,
    https://arxiv.org/abs/2405.15682
  """
  return primal_averaging(
    optax.identity(),
    learning_rate,
    train_interp=b1,
    warmup_steps=warmup_steps,
    r=r,
    weight_lr_power=weight_lr_power,
    weight_decay=weight_decay,
    mask=mask,
    decay_at=decay_at,
  )
