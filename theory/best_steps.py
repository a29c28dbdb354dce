"""The best constant step size, by search on exact risks."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .averages_closed import ema_at, tail_average_at
from .broadcast import over
from .precision import on_host
from .risk_closed import risk_at
from .stability import eta_max
from .types import Array, Problem

_DECADES = 12  # Below the stability limit that the grid covers.
_PER_DECADE = 4
_APART = 1e-3  # Of log eta, for derivatives.
_ROUNDS = 40  # Of golden sections: the bracket of half a decade to 1e-8.


class BestStep(NamedTuple):
  """The best constant step size.

  Attributes:
    eta: The step size; 0 if no step improves on the start.
    risk: The excess risk that it ends with.
  """

  eta: Array
  risk: Array


@on_host("average")
def best_step(problem: Problem, batch, T, average: str | None = None):
  """The stable constant step size of least risk after T updates.

  The search takes exact risks on a grid of 4 step sizes a decade, over 12
  decades below `eta_max`, and narrows the best bracket by golden sections. eta
  is right to about 1e-8. Each of the 91 risks costs O(D^2). Step sizes beyond
  `eta_max` are not tried; after a few updates some of them may end lower.

  Args:
    problem: The problem; a few hundred nodes at most.
    batch: B, a number or an array.
    T: Updates, whole and >= 1; a number or an array that broadcasts with B.
    average: Whose risk counts. None: the last iterate w_T. "tail:0.5": the
      mean of the last half of w_1, ..., w_T (`theta_tail`). "ema:0.99": the
      exponential average with that decay, started at w_0 (`ema_at`).

  Returns:
    `BestStep` of the broadcast shape. Differentiable in the problem and in
    batch (implicit function theorem).
  """
  risk = _risk_after(average)

  def one(batch, T):
    eta = _search(risk, problem, batch, T)
    return BestStep(eta, risk(problem, eta, batch, T))

  return over(one, batch, T)


def _risk_after(average):
  """The risk (problem, eta, batch, T) -> scalar that an average names."""
  if average is None:
    return _last
  kind, _, number = str(average).partition(":")
  try:
    value = float(number)
  except ValueError:
    value = np.nan
  if kind == "tail" and 0 < value <= 1:
    return partial(_tail, value)
  if kind == "ema" and 0 <= value < 1:
    return partial(_ema, value)
  raise ValueError(
    f"average={average!r} must be None (the last iterate), 'tail:SHARE' with "
    "a share in (0, 1], or 'ema:BETA' with a decay in [0, 1)."
  )


def _last(problem, eta, batch, T):
  return risk_at(problem, eta, batch, T).total


def _tail(share, problem, eta, batch, T):
  count = jnp.maximum(jnp.round(share * T), 1)
  return tail_average_at(problem, eta, batch, T - count + 1, count).total


def _ema(beta, problem, eta, batch, T):
  return ema_at(problem, eta, batch, beta, T).total


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _search(risk, problem, batch, T):
  """The minimiser of risk(problem, eta, batch, T) over stable eta."""
  frozen = jax.lax.stop_gradient((problem, batch, T))
  problem, batch, T = frozen
  top = jnp.log(eta_max(problem, batch))
  count = _DECADES * _PER_DECADE + 1
  width = np.log(10) / _PER_DECADE

  def value(x):
    return risk(problem, jnp.exp(x), batch, T)

  # The limit itself is left out: closed forms are exact there and infinite.
  grid = top - 1e-9 - width * jnp.arange(count)
  values = jax.lax.map(value, grid)
  values = jnp.where(jnp.isfinite(values), values, jnp.inf)
  k = jnp.argmin(values)
  low, high = grid[k] - width, jnp.minimum(grid[k] + width, grid[0])
  ratio = (5**0.5 - 1) / 2

  def shrink(_, bracket):
    low, left, right, high, at_left, at_right = bracket
    lower = at_left < at_right
    low, high = jnp.where(lower, low, left), jnp.where(lower, right, high)
    step = ratio * (high - low)
    new = jnp.where(lower, high - step, low + step)
    at_new = value(new)
    left, right = jnp.where(lower, new, right), jnp.where(lower, left, new)
    values = (
      jnp.where(lower, at_new, at_right),
      jnp.where(lower, at_left, at_new),
    )
    return low, left, right, high, *values

  left, right = high - ratio * (high - low), low + ratio * (high - low)
  bracket = (low, left, right, high, value(left), value(right))
  low, _, _, high, *_ = jax.lax.fori_loop(0, _ROUNDS, shrink, bracket)
  eta = jnp.exp((low + high) / 2)
  start = jnp.sum(jnp.asarray(problem.lam) * problem.m0) / 2
  return jnp.where(values[k] < start, eta, 0.0)


@_search.defjvp
def _search_jvp(risk, primals, tangents):
  """Where the slope f in log eta vanishes, d log eta = -d f / f'.

  f and f' are central differences of exact risks, right to about 1e-6: second
  derivatives of the closed forms would take a minute to compile.
  """
  eta = _search(risk, *primals)
  x = jnp.log(jnp.where(eta > 0, eta, 1.0))
  points = x + _APART * jnp.arange(-1.0, 2)

  def around(problem, batch, T):
    return jax.lax.map(lambda x: risk(problem, jnp.exp(x), batch, T), points)

  value, change = jax.jvp(around, primals, tangents)
  curvature = (value[2] - 2 * value[1] + value[0]) / _APART**2
  moved = (change[2] - change[0]) / (2 * _APART)
  moving = (eta > 0) & (curvature > 0)
  d_x = -moved / jnp.where(moving, curvature, 1.0)
  return eta, jnp.where(moving, eta * d_x, 0.0)
