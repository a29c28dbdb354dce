"""Critical batch size: where more samples per step stop paying.

There are three definitions: the data needed to reach a target risk
(`critical_batch`), a fit of steps against batch (`steps_fit`), and the gradient
noise scale (`noise_scale`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .averages_closed import tail_average_at
from .identifiability import (
  logs_of,
  require_determined,
  require_rows,
  require_values,
)
from .precision import on_host
from .stability import eta_max, is_stable
from .types import Array, Problem


class StepsFit(NamedTuple):
  """steps = steps_min + samples_min / B, and the batch read from it.

  Attributes:
    steps_min: a0, serial steps at infinite batch.
    samples_min: b0, samples at batch 1.
    critical: Batch at which steps exceed linear scaling by `over`.
  """

  steps_min: float
  samples_min: float
  critical: float


def eta_grid(problem: Problem, batches, count=18, lowest=1e-3) -> np.ndarray:
  """Log-spaced step sizes up to 0.9 eta_max of each batch, [count, batches]."""
  limits = eta_max(problem, np.asarray(batches, np.float64))
  return 0.9 * np.logspace(np.log10(lowest), 0, count)[:, None] * limits


@on_host()
def risk_table(problem: Problem, etas, batches, samples, share=0.5):
  """Risk of an average of the last iterates, by (eta, B, samples). Exact.

  Closed form: each of the E x B pairs costs O(D^2 log T) per data size.

  Args:
    problem: The problem; a few hundred nodes at most.
    etas: [E], or [E, B] to give each batch its own, see `eta_grid`.
    batches: [B].
    samples: [S] total samples; T = floor(samples / B) steps.
    share: Share of the run that is averaged, in (0, 1]: the mean is over the
      last ceil(share T) of w_0, ..., w_{T-1}. The rest is burn-in.

  Returns:
    risk [E, B, S]; `inf` for unstable steps or fewer than 2 steps.
  """
  batches, samples = jnp.asarray(batches), jnp.asarray(samples)
  etas = jnp.asarray(etas)
  etas = jnp.broadcast_to(
    etas[:, None] if etas.ndim == 1 else etas, (etas.shape[0], batches.size)
  )

  def pair(hyper):
    eta, batch = hyper

    def one(data):
      T = jnp.floor(data / batch)
      # The slack undoes the rounding of a product such as 0.1 * 30.
      count = jnp.maximum(jnp.ceil(share * T - 1e-9 * T), 1)
      first = jnp.maximum(T - count, 0)
      risk = tail_average_at(problem, eta, batch, first, count).total
      return jnp.where(T >= 2, risk, jnp.inf)

    risk_S = jax.lax.map(one, samples)
    return jnp.where(is_stable(problem, eta, batch), risk_S, jnp.inf)

  pairs = (etas.reshape(-1), jnp.broadcast_to(batches, etas.shape).reshape(-1))
  return jax.lax.map(pair, pairs).reshape(*etas.shape, samples.size)


def data_to_target(risks, samples, target) -> Array:
  """Samples at which a falling curve first meets `target`.

  Args:
    risks: [S] risks.
    samples: [S] samples, increasing.
    target: A risk, or an array of risks.

  Returns:
    Log-log interpolation, of the shape of target; nan if a target lies
    outside the curve.
  """
  if np.ndim(target):
    each = [data_to_target(risks, samples, x) for x in np.ravel(target)]
    return np.reshape(each, np.shape(target))
  risks, samples = np.asarray(risks, float), np.asarray(samples, float)
  below = np.flatnonzero(risks <= target)
  if below.size == 0 or (below[0] == 0 and risks[0] < target):
    return float("nan")
  k = below[0]
  if risks[k] == target:
    return float(samples[k])
  if not np.isfinite(risks[k - 1]):
    return float("nan")
  x, y = np.log(samples[k - 1 : k + 1]), np.log(risks[k - 1 : k + 1])
  share = (np.log(target) - y[0]) / (y[1] - y[0])
  return float(np.exp(x[0] + share * (x[1] - x[0])))


def critical_batch(table, batches, samples, over=0.2) -> np.ndarray:
  """B* = sup{B : D(B; eps) <= (1 + over) D(B_ref; eps)} per data size.

  eps is the best risk at (D, B_ref), and B_ref is the smallest batch. The step
  size is tuned at every (B, D).

  Args:
    table: [E, B, S] from `risk_table`.
    batches: [B], increasing.
    samples: [S], increasing. B* of the largest few is nan, since larger batches
      need more data than the table has.
    over: Share of excess data that is allowed.

  Returns:
    B* [S], interpolated linearly in B (the data needed is close to b0 + a0 B);
    nan where the grid does not contain it.
  """
  best_BS = np.min(np.asarray(table), axis=0)
  batches = np.asarray(batches, float)
  out = np.full(len(samples), np.nan)
  for j, data in enumerate(samples):
    target = best_BS[0, j]
    need = np.array([data_to_target(row, samples, target) for row in best_BS])
    # A row below the target from its first point on needs no more than that.
    need = np.where(best_BS[:, 0] <= target, samples[0], need)
    excess = need / data
    excess[np.isnan(excess)] = np.inf
    past = np.flatnonzero(excess > 1 + over)
    if past.size == 0 or past[0] == 0:
      continue
    k = past[0]
    if not np.isfinite(excess[k]):
      continue
    x, y = batches[k - 1 : k + 1], excess[k - 1 : k + 1]
    out[j] = x[0] + (1 + over - y[0]) / (y[1] - y[0]) * (x[1] - x[0])
  return out


@on_host()
def noise_scale(problem: Problem, z):
  """Gradient noise scale B_noise of a state. Exact.

      [tr H (tau r + sigma2) + (kappa - 1) sum lam^2 z] / sum lam^2 z

  Args:
    problem: The problem.
    z: [D] second moments, e.g. `state_at(...)`.

  Returns:
    The batch at which noise and mean contribute alike to E |g|^2.
  """
  lam_D: Array = jnp.asarray(problem.lam)
  mean_D = lam_D**2 * z
  noise = problem.tau * jnp.sum(lam_D * z) + problem.sigma2
  own = jnp.sum((jnp.asarray(problem.kappa) - 1) * mean_D)
  total = jnp.sum(problem.mult * lam_D) * noise + own
  return total / jnp.sum(mean_D)


def steps_fit(batches, steps, reference=256.0, over=0.2) -> StepsFit:
  """Fits steps = a0 + b0 / B to log residuals.

  B* is where steps exceed linear scaling from `reference` by `over`:
  B* = (1 + over) reference + over b0 / a0.

  Args:
    batches: [B] batch sizes, at least two distinct ones.
    steps: [B] steps to a common target.
    reference: Batch from which linear scaling is measured.
    over: Share of excess steps that is allowed.

  Returns:
    The fit.

  Raises:
    UndeterminedError: If the steps still fall as 1 / B at the largest batch
      (a0 is free), or do not fall at all (b0 is free), within their noise.
  """
  from scipy import optimize

  log_batch, log_steps = logs_of(batches=batches, steps=steps)
  text = "steps = steps_min + samples_min / B"
  require_rows(text, log_batch.size, ("steps_min", "samples_min"))
  free = "steps_min and samples_min are free to trade"
  require_values(text, 2, free, batches=log_batch)
  batches, steps = np.exp(log_batch), np.exp(log_steps)
  design = np.stack([1 / steps, 1 / (batches * steps)], axis=1)
  start, _ = optimize.nnls(design, np.ones(steps.size))
  start = np.log(np.maximum(start, 1e-9 * start.max()))

  def residual(theta):
    return np.logaddexp(theta[0], theta[1] - log_batch) - log_steps

  found = optimize.least_squares(residual, start, xtol=1e-14, ftol=1e-14).x
  a0, b0 = np.exp(found)
  share = a0 / (a0 + b0 / batches)  # Of steps_min in the prediction.
  require_determined(
    text,
    {"steps_min": share, "samples_min": 1 - share},
    residual(found),
    "Add larger batches if steps_min is free, smaller ones if samples_min is.",
  )
  critical = (1 + over) * reference + over * b0 / a0
  return StepsFit(float(a0), float(b0), float(critical))
