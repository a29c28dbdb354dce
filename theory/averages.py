"""Iterate averages under any schedule, exact, O(D) a step.

The average is a' = (1 - theta) a + theta w'. Let x = E[(w - w*)(a - w*)],
v = E[(a - w*)^2] and z = E[(w - w*)^2] per direction. The new batch is
independent of a, so

    x~ = (1 - eta lam) x
    v' = (1 - theta)^2 v + 2 theta (1 - theta) x~ + theta^2 z'
    x' = (1 - theta) x~ + theta z'

The `theta_*` functions give theta at updates 1, ..., T, as NumPy arrays.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .precision import on_host
from .sgd_moments import as_risk, increment_of, start_rows
from .stability import all_stable
from .types import Problem, Schedule


def theta_uniform(T: int, start: int = 0) -> np.ndarray:
  """Mean of w_{start+1}, ..., w_t: 1 / (t - start), and 1 up to `start`."""
  t = np.arange(1, T + 1)
  return 1 / np.maximum(t - start, 1)


def theta_tail(T: int, fraction: float = 0.5) -> np.ndarray:
  """Mean of the last `fraction` of T steps (horizon known in advance)."""
  _in_unit("fraction", fraction)
  return theta_uniform(T, T - max(1, round(fraction * T)))


def theta_ema(T: int, beta: float | None = None, *, half_life=None):
  """Exponential average: theta = 1 - beta, or 1 - 2^(-1 / half_life).

  Args:
    T: Number of updates.
    beta: Decay in [0, 1); the average starts at w_0.
    half_life: In updates; give this or beta.

  Returns:
    theta [T].
  """
  if half_life is not None and beta is None:
    decay = 2 ** (-1 / half_life)
  elif beta is not None and half_life is None:
    decay = beta
  else:
    raise ValueError("theta_ema wants exactly one of beta and half_life.")
  if not 0 <= decay < 1:
    raise ValueError(f"beta={decay} must lie in [0, 1).")
  return np.full(T, 1.0 - decay)


def theta_poly(T: int, p: float = 3.0) -> np.ndarray:
  """Weights growing as t^p: theta = (1 + p) / (t + p); p = 0 is uniform."""
  if p < 0:
    raise ValueError(f"p={p} must be >= 0.")
  t = np.arange(1, T + 1)
  return (1 + p) / (t + p)


def theta_halflife_fraction(T: int, fraction: float) -> np.ndarray:
  """Anytime EMA whose half-life is `fraction` of t: p = ln 2 / fraction - 1."""
  _in_unit("fraction", fraction)
  return theta_poly(T, max(np.log(2) / fraction - 1, 0.0))


def theta_weighted(weights) -> np.ndarray:
  """Average with any weights > 0: weight over running sum.

  Schedule-Free's is eta_t^2 t^r.
  """
  weights = np.asarray(weights, np.float64)
  return weights / np.cumsum(weights)


@on_host("every")
def avg_scan(problem: Problem, schedule: Schedule, theta, *, every: int = 1):
  """Risk curves of the last iterate and of its average. Exact, O(D) a step.

  Args:
    problem: The problem.
    schedule: T step and batch sizes.
    theta: [T] averaging weights, see `theta_*`; a_0 = w_0.
    every: Record each `every`-th step.

  Returns:
    (last, averaged): two `Risk`s at times 0, every, 2 every, ....
  """
  if theta.shape != schedule.eta.shape:
    raise ValueError(
      f"theta has shape {theta.shape} but the schedule has "
      f"{schedule.eta.shape} steps; build theta with the same T."
    )
  lam_D = jnp.asarray(problem.lam)
  advance = increment_of(problem, parts=False)

  def one(carry, hyper):
    z_PD, x_PD, v_PD = carry
    eta, batch, th = hyper
    z_PD = z_PD + advance(z_PD, eta, batch)
    x_PD = (1 - eta * lam_D) * x_PD
    v_PD = (1 - th) ** 2 * v_PD + 2 * th * (1 - th) * x_PD + th**2 * z_PD
    return (z_PD, (1 - th) * x_PD + th * z_PD, v_PD), None

  def record(carry, hypers):
    return jax.lax.scan(one, carry, hypers)[0], read(carry)

  def read(carry):
    return carry[0] @ lam_D, carry[2] @ lam_D

  count = schedule.eta.shape[0] // every
  hypers = jax.tree.map(
    lambda x: jnp.asarray(x)[: count * every].reshape(count, every),
    (schedule.eta, schedule.batch, theta),
  )
  start = (start_rows(problem, parts=False),) * 3
  carry, curves = jax.lax.scan(record, start, hypers)
  stable = all_stable(problem, schedule.eta, schedule.batch)
  last, averaged = jax.tree.map(
    lambda r_TP, r_P: as_risk(jnp.concatenate([r_TP, r_P[None]]) / 2, stable),
    curves,
    read(carry),
  )
  return last, averaged


def _in_unit(name, value):
  if not 0 < value <= 1:
    raise ValueError(f"{name}={value} must lie in (0, 1].")
