"""Mean-square stability of SGD at constant step size: one scalar function.

With s_i = eta lam_i (2 - c_i eta lam_i), c_i = 1 + (kappa_i - 1) / B and
injection (eta^2 / B) mult lam (tau r + sigma2), the second moments have a
non-negative transition matrix: diagonal plus rank one. It contracts if and
only if every c_i eta lam_i < 2 and chi(eta) < 1.
"""

import jax
import jax.numpy as jnp

from .broadcast import over
from .precision import on_host
from .types import Problem


def fourth_moment(problem: Problem, batch):
  """c_B = 1 + (kappa - 1) / B, scalar or [D]."""
  return 1 + (jnp.asarray(problem.kappa) - 1) / batch


@on_host()
def chi(problem: Problem, eta, batch):
  """Gain of the noise loop: risk -> gradient noise -> risk. Exact, O(D).

      chi = (eta tau / B) sum_i mult_i lam_i / (2 - c_B eta lam_i)

  For small eta it is eta tau tr(H) / (2 B). The stationary excess risk is
  (sigma2 / 2 tau) chi / (1 - chi).

  Args:
    problem: The problem.
    eta: Step size, a number or an array.
    batch: B, a number or an array that broadcasts with eta.

  Returns:
    chi of the broadcast shape; `inf` if some noisy direction has
    c_B eta lam >= 2.
  """
  return over(lambda eta, batch: _chi(problem, eta, batch), eta, batch)


def _chi(problem, eta, batch):
  slack_D = 2 - fourth_moment(problem, batch) * eta * problem.lam
  noisy_D = problem.mult * problem.lam > 0
  safe_D = jnp.where(slack_D > 0, slack_D, 1.0)
  total = jnp.sum(problem.mult * problem.lam / safe_D)
  diverged = jnp.any(noisy_D & (slack_D <= 0))
  return jnp.where(diverged, jnp.inf, eta * problem.tau / batch * total)


def is_stable(problem: Problem, eta, batch):
  """Whether a constant (eta, B) contracts every second moment."""
  curvature_D = fourth_moment(problem, batch) * eta * problem.lam
  used_D = (problem.mult + problem.m0) * problem.lam > 0
  below = jnp.all(jnp.where(used_D, curvature_D, 0.0) < 2)
  return below & (_chi(problem, eta, batch) < 1)


def all_stable(problem: Problem, eta_T, batch_T):
  """Whether every step of a schedule is stable.

  chi grows with eta and falls with B, so (max eta, min B) settles nearly
  every schedule at the cost of one step.
  """
  problem, eta_T, batch_T = jax.lax.stop_gradient((problem, eta_T, batch_T))
  worst = is_stable(problem, jnp.max(eta_T), jnp.min(batch_T))

  def one_by_one():
    each = jax.lax.map(lambda x: is_stable(problem, *x), (eta_T, batch_T))
    return jnp.all(each)

  return jax.lax.cond(worst, lambda: jnp.array(True), one_by_one)


@on_host()
def eta_max(problem: Problem, batch):
  """Largest stable constant step size: the root of chi(eta) = 1. Exact.

  Isotropic Gaussian features give 2 B / (d + B + 1). Means of sampled runs
  are heavy tailed well before it, since higher moments diverge earlier.

  Args:
    problem: The problem.
    batch: B, a number or an array.

  Returns:
    eta_max of the shape of batch; the cap min 2 / (c_B lam) when the noise loop
    never reaches 1.
  """
  return over(lambda batch: _eta_max(problem, batch), batch)


def _eta_max(problem, batch):
  c_D = fourth_moment(problem, batch) * problem.lam
  used_D = (problem.mult + problem.m0) * problem.lam > 0
  cap = jnp.min(jnp.where(used_D & (c_D > 0), 2 / c_D, jnp.inf))
  # With c_B = 0 (Rademacher, B = 1) there is no cap, and chi = 1 at
  # 2 B / (tau tr H): the search starts from twice that.
  trace = jnp.sum(problem.mult * problem.lam)
  reach = 4 * batch / jnp.maximum(problem.tau * trace, 1e-300)
  # chi >= eta tau tr H / (2 B), so chi passes 1 before `reach`.
  top = jnp.minimum(cap, reach)

  frozen_problem, frozen_batch, high = jax.lax.stop_gradient(
    (problem, batch, top)
  )

  def chi_of(eta):
    return _chi(frozen_problem, eta, frozen_batch)

  def halve(_, bracket):
    low, high = bracket
    middle = (low + high) / 2
    inside = chi_of(middle) < 1
    return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

  low, _ = jax.lax.fori_loop(0, 100, halve, (0 * high, high))
  # One Newton step on log chi carries the implicit derivative.
  value = _chi(problem, low, batch)
  slope = jax.lax.stop_gradient(jax.grad(chi_of)(low) / value)
  root = low - jnp.log(value) / slope
  capped = _chi(problem, jax.lax.stop_gradient(top) * (1 - 1e-15), batch) < 1
  return jnp.where(capped, top, root)
