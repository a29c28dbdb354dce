"""Simplified AdEMAMix: Adam's direction from one sum of gradients.

Adds to `optax.contrib.simplified_ademamix`: the warm-up of b1, both switches
of the bias corrections, and a float32 state for bfloat16 parameters.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common import checks, moments, warmups
from ..common.options import also_takes, takes
from ..common.tree import like, zeros
from ..common.wide import in_work_dtype, scalar_dtype
from .decay import Decay, descend


class SimplifiedAdemamixState(NamedTuple):
  """State of `scale_by_simplified_ademamix`; float32, or float64."""

  count: jax.Array  # int32 []: updates made.
  mass: Any  # []: S_t, what m is of ones; None without bias_correction1.
  mu: Any  # Sum of gradients m, like params.
  nu: Any  # Second moment v, like params.


@dataclasses.dataclass(frozen=True, eq=False)
class SimplifiedAdemamixOptions:
  """Options of `scale_by_simplified_ademamix`.

  Attributes:
    b1: Decay of the sum m, in [0, 1): 0.95, 0.99 or 0.999, smaller for larger
      batches; number, or schedule of the step, from 1.
    b2: Decay of the second moment v; Adam's.
    alpha: Weight of the gradient itself: about 100 with 32k tokens a batch,
      about 0 with 1M; number, or schedule of the step, from 1.
    eps: Added to the square root.
    b1_warmup: Steps in which the half-life of m grows linearly from that of
      `min_b1`; the authors take all steps of the run. None: no warm-up.
    min_b1: b1 at step 0 of the warm-up; Adam's b1.
    bias_correction1: True divides u by S_t = b1_t S_{t-1} + 1, which makes an
      average of the sum m.
    bias_correction2: False leaves v without correction. eps is then scaled all
      the same, as in the authors' code: sqrt(v) + eps sqrt(1 - b2^t).
  """

  b1: optax.ScalarOrSchedule = 0.99
  b2: float = 0.95
  alpha: optax.ScalarOrSchedule = 0.0
  eps: float = 1e-8
  _: dataclasses.KW_ONLY
  b1_warmup: int | None = None
  min_b1: float = 0.9
  bias_correction1: bool = False
  bias_correction2: bool = True

  def __post_init__(self):
    """Raises for any argument out of range."""
    if not callable(self.b1):
      checks.decay("b1", self.b1)
    for name in ("b2", "min_b1"):
      checks.decay(name, getattr(self, name))
    checks.scalar_or_schedule("alpha", self.alpha)
    checks.positive("eps", self.eps, zero_too=True)
    checks.warmup("b1", self.b1, self.b1_warmup)


@takes(SimplifiedAdemamixOptions)
def scale_by_simplified_ademamix(
  o: SimplifiedAdemamixOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Divides a sum of gradients, plus the gradient, by Adam's denominator.

  At step t = 1, 2, ...

      m = b1_t m + g,    v = b2 v + (1 - b2) g^2
      u = (m + alpha_t g) / (sqrt(v / (1 - b2^t)) + eps)

  m is a sum, so the update grows with the half-life of b1: choose the learning
  rate as `simplified_ademamix` says, and log the rate times S_t. The name
  shadows that of `optax.contrib`; see the top of this file for what is added.

  Returns:
    A transform whose updates are a direction of ascent, like gradients.

  Raises:
    ValueError: For an argument out of range.

  References:
    Morwani et al., "Connections between Schedule-Free optimizers, AdEMAMix,
    and accelerated SGD variants", 2025, https://arxiv.org/abs/2502.02431
  """

  def init_fn(params):
    mass = jnp.zeros((), scalar_dtype(params)) if o.bias_correction1 else None
    count = jnp.zeros((), jnp.int32)
    return SimplifiedAdemamixState(count, mass, zeros(params), zeros(params))

  def update_fn(updates, state, params=None):
    del params
    count: Any = optax.safe_increment(state.count)
    b1 = warmups.half_life(o.b1, o.min_b1, o.b1_warmup, count)
    alpha = warmups.at(o.alpha, count)
    scale, mass = 1.0, None
    if not o.bias_correction2:
      scale = 1 / jnp.sqrt(1 - o.b2**count)
    if o.bias_correction1:
      mass = (b1 * state.mass + 1).astype(state.mass.dtype)
      scale = scale / mass

    def direction(g, m, v):
      root = moments.root(v, o.eps, o.b2, count)
      return scale * moments.divide(m + alpha * g, root)

    mu = jax.tree.map(lambda m, g: b1 * m + g, state.mu, updates)
    nu = jax.tree.map(
      lambda v, g: moments.average(v, jnp.square(g), o.b2), state.nu, updates
    )
    directions = jax.tree.map(direction, updates, mu, nu)
    return directions, SimplifiedAdemamixState(
      count, mass, like(mu, state.mu), like(nu, state.nu)
    )

  return in_work_dtype(optax.GradientTransformation(init_fn, update_fn))


@also_takes(scale_by_simplified_ademamix)
def simplified_ademamix(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.0,
  mask: Any | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """Simplified AdEMAMix with decoupled weight decay.

  See `scale_by_simplified_ademamix`.

  Args:
    learning_rate: Number, array or schedule. The authors' rule: Adam's rate
      times sqrt((1 - min_b1) (1 - b1)), with Adam's b1 as `min_b1`.
    weight_decay: weight_decay * params is added to the direction; number,
      schedule or `Decay`.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays.
    **direction: The arguments of `scale_by_simplified_ademamix`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_simplified_ademamix`.
  """
  return descend(
    scale_by_simplified_ademamix(**direction), learning_rate, weight_decay, mask
  )
