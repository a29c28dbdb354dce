"""SGD with a dampened momentum, as torch and timm compute it.

Differs from `optax.sgd` and `optax.ema`: the gradient that joins the momentum
is multiplied by 1 - d, and the first gradient is not. `optax.trace` has no
dampening. `optax.ema(b, debias=False)` dampens the first gradient as well, so
its first steps are too short by 1 - b.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.options import also_takes, takes
from ..common.tree import like, upcast, zeros
from .decay import Decay, descend


class DampenedState(NamedTuple):
  """State of `scale_by_dampened_momentum`."""

  count: jax.Array  # int32 []: calls.
  momentum: Any  # Like params, float32 or `mu_dtype`.


@dataclasses.dataclass(frozen=True, eq=False)
class DampenedOptions:
  """Options of `scale_by_dampened_momentum`.

  Attributes:
    momentum: Share b of the old momentum kept at a step, in [0, 1).
    dampening: d in [0, 1]; 0 is heavy ball. None is `momentum`: the momentum is
      then an average, and the learning rate is that of SGD without momentum.
    nesterov: True looks one step ahead; needs `dampening=0`.
    mu_dtype: Type of the momentum; None is float32.
  """

  momentum: float = 0.9
  dampening: float | None = None
  _: dataclasses.KW_ONLY
  nesterov: bool = False
  mu_dtype: Any | None = None

  @property
  def dampens(self) -> Any:
    """d, a number or a traced number."""
    return self.momentum if self.dampening is None else self.dampening

  def __post_init__(self):
    """Raises for any argument out of range."""
    checks.decay("momentum", self.momentum)
    d: Any = self.dampens
    if isinstance(d, jax.core.Tracer):
      return
    if not 0 <= float(d) <= 1:
      raise ValueError(
        f"dampening={d} must be in [0, 1]: 1 - dampening is the share of a "
        "gradient that joins the momentum."
      )
    if self.nesterov and float(d) != 0:
      raise ValueError(
        f"nesterov=True with dampening={d}: Nesterov's look ahead is defined "
        "for a momentum that is not dampened. Set dampening=0."
      )


@takes(DampenedOptions)
def scale_by_dampened_momentum(
  o: DampenedOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the gradient by a momentum whose first gradient is not dampened.

      m_1 = g_1,    m_t = b m_{t-1} + (1 - d) g_t
      u_t = m_t,    or g_t + b m_t (Nesterov)

  torch's and timm's SGD start with m_1 = g_1 whatever d is. The SGD of "What
  makes a good optimizer" did so, and so does this transform: with d = b the
  first gradient weighs 1 / (1 - b) times as much as any later one, and the
  average forgets it like any other gradient.

  Returns:
    A transform whose updates are a direction of ascent, like gradients.

  Raises:
    ValueError: For an argument out of range, or for `nesterov` with dampening.

  References:
    Zhao et al., "Deconstructing what makes a good optimizer for language
    models", 2024, https://arxiv.org/abs/2407.07972
  """

  def init_fn(params):
    return DampenedState(jnp.zeros((), jnp.int32), zeros(params, o.mu_dtype))

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    grads, first = upcast(updates), state.count == 0

    def move(g, m):
      dampened = o.momentum * m.astype(g.dtype) + (1 - o.dampens) * g
      return jnp.where(first, g, dampened).astype(g.dtype)

    momentum = jax.tree.map(move, grads, state.momentum)
    steps = momentum
    if o.nesterov:
      steps = jax.tree.map(lambda g, m: g + o.momentum * m, grads, momentum)
    count: Any = optax.safe_increment(state.count)
    kept = like(momentum, state.momentum)
    return like(steps, updates), DampenedState(count, kept)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(scale_by_dampened_momentum)
def dampened_sgd(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.0,
  mask: Any | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """SGD with dampened momentum; see `scale_by_dampened_momentum`.

  Args:
    learning_rate: Number, array or schedule.
    weight_decay: weight_decay * params is added to the direction (timm's SGDW);
      number, schedule or `Decay`. torch's SGD adds it to the gradient: chain
      `optax.add_decayed_weights` before the transform.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays.
    **direction: The arguments of `scale_by_dampened_momentum`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_dampened_momentum`.
  """
  return descend(
    scale_by_dampened_momentum(**direction), learning_rate, weight_decay, mask
  )
