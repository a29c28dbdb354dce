"""Damping of the local model: a number, a schedule, or adapted to its fit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..common import checks


class LevenbergMarquardt(NamedTuple):
  """Damping that follows how well the local model predicts the loss.

  Let rho = (L(theta + d) - L(theta)) / (q(d) - q(0)) on the data of the line
  search, where q is the damped local model. If rho < lo, the damping is
  multiplied by `up`; if rho > hi, by `down`. If rho is NaN or q does not
  decrease, the damping is multiplied by `up`. The rule costs one more pass with
  tangents over the data of the line search. The rule is of little use if the
  noise of the data that d comes from is much larger than the decrease.

  Attributes:
    init: First damping, > 0.
    up: Factor of growth, > 1.
    down: Factor of shrinkage, in (0, 1).
    lo: If rho < lo, the damping grows.
    hi: If rho > hi, the damping shrinks; > lo.
    minimum: The damping never falls below this number, > 0.
    maximum: Damping never grows above it: at a minimum of the loss rho is NaN
      at every step, and a damping of infinity would never fall again.

  References:
    Martens, "Deep learning via Hessian-free optimization", 2010, section 4.1.
  """

  init: float = 1.0
  up: float = 1.5
  down: float = 2 / 3
  lo: float = 0.25
  hi: float = 0.75
  minimum: float = 1e-8
  maximum: float = 1e8


Damping = float | jax.Array | Callable[[jax.Array], Any] | LevenbergMarquardt


def check(damping: Any) -> None:
  """Raises for a value out of range."""
  if callable(damping):
    return
  if not isinstance(damping, LevenbergMarquardt):
    checks.positive("damping", damping, zero_too=True)
    return
  d = damping
  checks.positive("damping.init", d.init)
  checks.positive("damping.minimum", d.minimum)
  if not d.minimum < d.maximum:
    raise ValueError(
      f"damping.maximum={d.maximum} must be above damping.minimum="
      f"{d.minimum}, e.g. 1e8."
    )
  if not (d.up > 1 > d.down > 0 and d.lo < d.hi):
    raise ValueError(
      f"damping={d} must have up > 1 > down > 0 and lo < hi, e.g. "
      "optim.LevenbergMarquardt(1.0)."
    )


def initial(damping: Damping) -> jax.Array:
  """The damping of the first outer step."""
  if isinstance(damping, LevenbergMarquardt):
    return jnp.asarray(damping.init, jnp.float32)
  return at(damping, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))


def at(damping: Damping, count: jax.Array, adapted: jax.Array) -> jax.Array:
  """The damping of outer step `count`, float32 []."""
  if isinstance(damping, LevenbergMarquardt):
    return adapted
  value = damping(count) if callable(damping) else damping
  return jnp.asarray(value, jnp.float32)


def is_zero(damping: Damping) -> bool:
  """Whether the damping is the number 0, known before anything runs."""
  return isinstance(damping, (int, float)) and damping == 0


def adapt(
  rule: LevenbergMarquardt, damping: jax.Array, actual: Any, predicted: Any
) -> tuple[jax.Array, jax.Array]:
  """(rho, next damping) from the change of the loss and of the model."""
  falls = predicted < 0
  rho = actual / jnp.where(falls, predicted, 1.0)
  rho = jnp.where(falls & jnp.isfinite(rho), rho, jnp.nan)
  low = ~(rho >= rule.lo)  # NaN as well.
  factor = jnp.where(low, rule.up, jnp.where(rho > rule.hi, rule.down, 1.0))
  new = jnp.clip(damping * factor, rule.minimum, rule.maximum)
  return rho.astype(jnp.float32), new.astype(jnp.float32)
