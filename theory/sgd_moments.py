"""SGD's second moments under any schedule: O(D) a step, exact.

One update w <- w - eta (mean gradient over B fresh samples) maps the moments
z_k = sum over node k of E[(w - w*)^2] linearly:

    z' = z - s z + (eta^2 / B) mult lam (tau r + sigma2),   r = sum_k lam_k z_k
    s  = eta lam (2 - c_B eta lam),                c_B = 1 + (kappa - 1) / B

The excess risk is r / 2. The map is affine in (z_0, sigma2), so the curve is
the sum of bias and variance. The rows of one [P, D] state carry the parts;
this is twice as fast as one vector for each part. Sources: Bordelon and
Pehlevan, arXiv 2106.02713; Meterez et al., arXiv 2506.15535. The tests compare
with the dense d^2 x d^2 operator.
"""

import math

import jax
import jax.numpy as jnp

from .precision import on_host
from .stability import all_stable, fourth_moment
from .types import Problem, Risk, RiskParts, Schedule


@on_host()
def step(problem: Problem, z, eta, batch):
  """One update of the second moments (module docstring). Exact, O(D).

  Args:
    problem: The problem; its `m0` is not used.
    z: [D] second moments, summed over each node.
    eta: Step size.
    batch: B.

  Returns:
    z' [D].
  """
  r = jnp.sum(problem.lam * z)
  noise = eta**2 / batch * (problem.tau * r + problem.sigma2)
  return z + _increment(problem, z, eta, batch, noise)


@on_host("every", "parts", "compensated")
def risk_scan(
  problem: Problem,
  schedule: Schedule,
  *,
  every: int = 1,
  parts: bool = False,
  compensated: bool = False,
) -> Risk | RiskParts:
  """Risk curve of the last iterate under any schedule. Exact, O(D) a step.

  Args:
    problem: The problem.
    schedule: T step and batch sizes.
    every: Record each `every`-th step.
    parts: Split the bias into deterministic descent and multiplicative noise
      (returns `RiskParts`).
    compensated: Carry the rounding error of every addition (Kahan). float32 is
      then right to about 1e-7 instead of 1e-5.

  Returns:
    Risks at times 0, every, 2 every, ..., shape [T // every + 1].
  """
  if every < 1:
    raise ValueError(f"every={every} must be a number of steps >= 1.")
  advance = increment_of(problem, parts)

  def one(carry, hyper):
    z_PD, lost_PD = carry
    delta_PD = advance(z_PD, *hyper)
    if not compensated:
      return (z_PD + delta_PD, lost_PD), None
    delta_PD = delta_PD - lost_PD
    next_PD = z_PD + delta_PD
    return (next_PD, (next_PD - z_PD) - delta_PD), None

  def record(carry, hypers):
    r_P = carry[0] @ lam_D
    if every == 1:
      return one(carry, hypers)[0], r_P
    return jax.lax.scan(one, carry, hypers)[0], r_P

  lam_D = jnp.asarray(problem.lam)
  z_PD = start_rows(problem, parts)
  lost = jnp.zeros_like(z_PD) if compensated else ()
  count = schedule.eta.shape[0] // every

  def fold(x_T):
    x_T = jnp.asarray(x_T)[: count * every]
    return x_T if every == 1 else x_T.reshape(count, every)

  carry, r_TP = jax.lax.scan(
    record, (z_PD, lost), (fold(schedule.eta), fold(schedule.batch))
  )
  r_TP = jnp.concatenate([r_TP, (carry[0] @ lam_D)[None]])
  stable = all_stable(problem, schedule.eta, schedule.batch)
  return (_as_parts if parts else as_risk)(r_TP / 2, stable)


@on_host("checkpoint")
def final_risk(
  problem: Problem, schedule: Schedule, checkpoint: bool = True
) -> Risk:
  """Risk after the last update; made for gradients in the schedule. Exact.

  Args:
    problem: The problem.
    schedule: T step and batch sizes.
    checkpoint: Under `jax.grad`, recompute blocks of sqrt(T) steps, so
      memory is O(sqrt(T) D) instead of O(T D).

  Returns:
    Scalars.
  """
  total = schedule.eta.shape[0]
  inner = max(1, math.isqrt(max(total - 1, 0)) + 1) if checkpoint else total
  outer = -(-total // inner) if total else 0
  advance = increment_of(problem, parts=False)

  def one(z_PD, hyper):
    return z_PD + advance(z_PD, *hyper), None

  def block(z_PD, hypers):
    return jax.lax.scan(one, z_PD, hypers)[0], None

  def fold(x_T, fill):  # A step of size 0 is the identity.
    x_T = jnp.asarray(x_T)
    x_T = jnp.pad(x_T, (0, outer * inner - total), constant_values=fill)
    return x_T.reshape(outer, inner)

  hypers = fold(schedule.eta, 0), fold(schedule.batch, 1)
  block = jax.checkpoint(block) if checkpoint else block
  z_PD, _ = jax.lax.scan(block, start_rows(problem, parts=False), hypers)
  stable = all_stable(problem, schedule.eta, schedule.batch)
  return as_risk(z_PD @ problem.lam / 2, stable)


def _increment(problem, z, eta, batch, noise):
  """z' - z; increments keep directions whose s is below rounding moving."""
  c = fourth_moment(problem, batch)
  decay = 2 * eta - c * eta**2 * problem.lam
  return problem.lam * (noise * problem.mult - decay * z)


def start_rows(problem, parts):
  """Rows: bias, variance; or mean, multiplicative, additive."""
  m0_D = jnp.asarray(problem.m0)
  m0_D = m0_D.astype(jnp.result_type(m0_D, problem.lam, float))
  zero_D = jnp.zeros_like(m0_D)
  return jnp.stack([m0_D, zero_D, zero_D] if parts else [m0_D, zero_D])


def increment_of(problem, parts):
  """The map (z_PD, eta, batch) -> increment of the stacked parts."""
  lam_D = jnp.asarray(problem.lam)
  tau, sigma2 = problem.tau, problem.sigma2

  def two(z_PD, eta, batch):
    source_P = tau * (z_PD @ lam_D) + jnp.array([0, 1.0]) * sigma2
    noise_P1 = (eta**2 / batch * source_P)[:, None]
    return _increment(problem, z_PD, eta, batch, noise_P1)

  def three(z_PD, eta, batch):
    r_P = tau * (z_PD @ lam_D)
    source_P = jnp.stack([0 * r_P[0], r_P[0] + r_P[1], r_P[2] + sigma2])
    noise_P1 = (eta**2 / batch * source_P)[:, None]
    delta_PD = _increment(problem, z_PD, eta, batch, noise_P1)
    # The mean is squared, so it decays by (1 - eta lam)^2; the rest of the
    # own-direction fourth moment is noise.
    own_D = (jnp.asarray(problem.kappa) - 1) / batch
    own_D = own_D * (eta * lam_D) ** 2 * z_PD[0]
    return delta_PD.at[0].add(-own_D).at[1].add(own_D)

  return three if parts else two


def as_risk(risk_P, stable) -> Risk:
  """[..., 2] rows to a `Risk`."""
  bias, variance = jnp.moveaxis(risk_P, -1, 0)
  return Risk(bias + variance, bias, variance, stable)


def _as_parts(risk_P, stable) -> RiskParts:
  """[..., 3] rows to a `RiskParts`."""
  mean, multiplicative, additive = jnp.moveaxis(risk_P, -1, 0)
  total = mean + multiplicative + additive
  return RiskParts(total, mean, multiplicative, additive, stable)
