"""The renewal view of the risk, and its continuum approximation.

With P_{s,t} = prod_{u=s+1..t} (1 - s^(u)) the recursion solves to a Volterra
equation for r = 2 risk,

    r_t = sum_i lam_i m0_i P_{0,t,i}
          + sum_{q<t} (eta_q^2 / B_q) (tau r_q + sigma2) K(t, q),
    K(t, q) = sum_i mult_i lam_i^2 P_{q+1,t,i}.

The equation serves as a check and to plot kernels; `risk_scan` is cheaper.
Source: Paquette et al., arXiv 2405.15074.
"""

import jax
import jax.numpy as jnp

from .precision import on_host
from .risk_closed import power
from .stability import fourth_moment
from .types import Problem, Schedule


@on_host()
def kernel(problem: Problem, eta, batch, t):
  """K(t) = sum_i mult_i lam_i^2 (1 - s_i)^t at constant (eta, B). Exact.

  Args:
    problem: The problem.
    eta: Step size.
    batch: B.
    t: Lags, any shape, >= 0.

  Returns:
    K of the shape of t; O(D) per lag.
  """
  lam_D, t = jnp.asarray(problem.lam), jnp.asarray(t)
  s_D = eta * lam_D * (2 - fourth_moment(problem, batch) * eta * lam_D)
  return power(s_D, t[..., None]) @ (problem.mult * lam_D**2)


@on_host()
def volterra_risk(problem: Problem, schedule: Schedule):
  """Total risk at times 0, ..., T from the Volterra equation. Exact, O(T^2 D).

  Args:
    problem: The problem.
    schedule: T step and batch sizes, T a few hundred.

  Returns:
    risk [T + 1].
  """
  lam_D = jnp.asarray(problem.lam)
  eta_T, batch_T = jnp.asarray(schedule.eta), jnp.asarray(schedule.batch)
  c_TD = jax.vmap(lambda b: fourth_moment(problem, b) + 0 * lam_D)(batch_T)
  keep_TD = 1 - eta_T[:, None] * lam_D * (2 - c_TD * eta_T[:, None] * lam_D)
  gain_T = eta_T**2 / batch_T

  def at(r_T, t):
    """r_t from r_0, ..., r_{t-1}; entries of r_T from t on are unused."""
    # after_TD[q] = product of keep over q < u < t (steps q+1, ..., t-1).
    index = jnp.arange(keep_TD.shape[0])
    used_TD = jnp.where((index < t)[:, None], keep_TD, 1.0)
    after_TD = jnp.cumprod(used_TD[::-1], axis=0)[::-1]
    start = after_TD[0] @ (lam_D * problem.m0)
    tail_TD = jnp.concatenate([after_TD[1:], jnp.ones_like(after_TD[:1])])
    kernel_T = tail_TD @ (problem.mult * lam_D**2)
    source_T = gain_T * (problem.tau * r_T[:-1] + problem.sigma2) * kernel_T
    r = start + jnp.sum(jnp.where(index < t, source_T, 0.0))
    return r_T.at[t].set(r), None

  empty_T = jnp.zeros(keep_TD.shape[0] + 1)
  steps = jnp.arange(empty_T.size)
  return jax.lax.scan(at, empty_T, steps)[0] / 2


@on_host()
def fsl_risk(problem: Problem, schedule: Schedule):
  """Functional scaling law: the continuum limit. APPROXIMATE, O(D) a step.

  In intrinsic time u = sum eta,

      r(u) = sum lam m0 e^(-2 lam u)
             + int K(u - v) (eta / B) (tau r + sigma2) dv,
      K(u) = sum mult lam^2 e^(-2 lam u),

  integrated on the nodes by exponential steps. r is constant during a step.
  Against the exact recursion on a warmup-stable-decay schedule the largest
  error was 0.5 %, 2 %, 19 % at eta = 0.02, 0.1, 0.4 of eta_max. Source: Li
  et al., arXiv 2509.19189.

  Args:
    problem: The problem; its kappa does not enter.
    schedule: T step and batch sizes.

  Returns:
    risk [T + 1].
  """
  lam_D = jnp.asarray(problem.lam)

  def one(z_D, hyper):
    eta, batch = hyper
    r = z_D @ lam_D
    fade_D = jnp.expm1(-2 * lam_D * eta)
    source = eta / batch * (problem.tau * r + problem.sigma2) / 2
    return z_D + fade_D * (z_D - source * problem.mult), r / 2

  z_D, risk_T = jax.lax.scan(
    one,
    jnp.asarray(problem.m0),
    (jnp.asarray(schedule.eta), jnp.asarray(schedule.batch)),
  )
  return jnp.append(risk_T, z_D @ lam_D / 2)
