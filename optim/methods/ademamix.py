"""AdEMAMix: Adam with a second, slow average of the gradients.

`optax.contrib.scale_by_ademamix` makes the step. What is added: the authors'
warm-ups of alpha and b3, schedules evaluated at the 1-based step as in the
authors' code (optax evaluates its schedules one step earlier), a float32 state
for bfloat16 parameters, and no fast average if b1 is 0.
"""

import dataclasses
from typing import Any

import jax
import optax
import optax.contrib

from ..common import checks, warmups
from ..common.options import also_takes, takes
from ..common.wide import in_work_dtype
from .decay import Decay, descend


@dataclasses.dataclass(frozen=True, eq=False)
class AdemamixOptions:
  """Options of `scale_by_ademamix`.

  Attributes:
    b1: Decay of the fast average m1, in [0, 1). 0 keeps no m1: the gradient
      takes its place.
    b2: Decay of the second moment v.
    b3: Decay of the slow average m2; number, or schedule of the step, from 1.
    alpha: Weight of m2, 5 to 10 in the paper; number, or schedule of the step,
      from 1.
    eps: Added to the square root.
    eps_root: Added inside the square root. Set it > 0 if the update itself is
      differentiated.
    alpha_warmup: Steps in which alpha grows linearly from 0; the paper takes
      all steps of the run. None: no warm-up.
    b3_warmup: Steps in which the half-life of m2 grows linearly from that of
      b1; the paper takes all steps of the run. None: no warm-up.
  """

  b1: float = 0.9
  b2: float = 0.999
  b3: optax.ScalarOrSchedule = 0.9999
  alpha: optax.ScalarOrSchedule = 5.0
  eps: float = 1e-8
  eps_root: float = 0.0
  _: dataclasses.KW_ONLY
  alpha_warmup: int | None = None
  b3_warmup: int | None = None

  def __post_init__(self):
    """Raises for any argument out of range."""
    for name in ("b1", "b2"):
      checks.decay(name, getattr(self, name))
    if not callable(self.b3):
      checks.decay("b3", self.b3)
    checks.scalar_or_schedule("alpha", self.alpha)
    for name in ("eps", "eps_root"):
      checks.positive(name, getattr(self, name), zero_too=True)
    for name in ("alpha", "b3"):
      checks.warmup(name, getattr(self, name), getattr(self, f"{name}_warmup"))


@takes(AdemamixOptions)
def scale_by_ademamix(
  o: AdemamixOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Adam's direction from a fast and a slow average of the gradients.

  At step t = 1, 2, ...

      m1 = b1 m1 + (1 - b1) g,    m2 = b3_t m2 + (1 - b3_t) g
      v  = b2 v + (1 - b2) g^2
      u  = (m1 / (1 - b1^t) + alpha_t m2) / (sqrt(v / (1 - b2^t)) + eps)

  m2 is not corrected: it fills slowly. The name shadows that of
  `optax.contrib`, which makes the step; see the top of this file for what is
  added.

  Returns:
    A transform whose updates are a direction of ascent, like gradients.

  Raises:
    ValueError: For an argument out of range.

  References:
    Pagliardini et al., "The AdEMAMix optimizer: better, faster, older", 2024,
    https://arxiv.org/abs/2409.03137
  """
  tx = optax.contrib.scale_by_ademamix(
    o.b1,
    o.b2,
    b3=lambda count: warmups.half_life(o.b3, o.b1, o.b3_warmup, count + 1),
    alpha=lambda count: warmups.linear(o.alpha, o.alpha_warmup, count + 1),
    eps=o.eps,
    eps_root=o.eps_root,
  )
  no_fast = not isinstance(o.b1, jax.Array) and o.b1 == 0
  return in_work_dtype(_without_fast_average(tx) if no_fast else tx)


def _without_fast_average(
  tx: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Leaves m1 out of the state: with b1 = 0 it is the gradient."""

  def init_fn(params):
    state: Any = tx.init(params)
    return state._replace(m1=None)

  def update_fn(updates, state, params=None):
    zeros = optax.tree.zeros_like(state.m2)
    stepped: Any = tx.update(updates, state._replace(m1=zeros), params)
    updates, state = stepped
    return updates, state._replace(m1=None)

  return optax.GradientTransformation(init_fn, update_fn)


@also_takes(scale_by_ademamix)
def ademamix(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.0,
  mask: Any | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """AdEMAMix with decoupled weight decay; see `scale_by_ademamix`.

  Args:
    learning_rate: Number, array or schedule; Adam's.
    weight_decay: weight_decay * params is added to the direction; number,
      schedule or `Decay`.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays.
    **direction: The arguments of `scale_by_ademamix`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_ademamix`.
  """
  return descend(
    scale_by_ademamix(**direction), learning_rate, weight_decay, mask
  )
