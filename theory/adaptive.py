"""Normalised, RMS-preconditioned and sign updates: deterministic recursions.

A normaliser that is an expectation is a function of the second moments, so
the recursion stays exact. The updates are nonlinear in the moments. Risks
therefore do not split into parts, and each node must carry both signal and
noise: use `power_law`. Nodes of `compress` serve `nsgd_scan` only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc, gammaln

from .precision import on_host
from .sgd_moments import step
from .stability import fourth_moment
from .types import Array, Problem, Schedule


class Adaptive(NamedTuple):
  """Curves of an adaptive run, at times 0, ..., T.

  Attributes:
    total: Excess risk [T + 1].
    mean_share: |E g|^2 / E |g|^2 [T + 1], with |E g|^2 averaged over the
      iterates. A share near 1 means a batch beyond the critical size.
  """

  total: Array
  mean_share: Array


@on_host()
def grad_second_moment(problem: Problem, z, batch):
  """E |g|^2 of a batch gradient, and the share of its mean. Exact, O(D).

      E |g|^2 = c_B sum lam^2 z + (tr H / B) (tau r + sigma2)

  Args:
    problem: The problem.
    z: [D] second moments of the error.
    batch: B.

  Returns:
    (total, mean_share), mean_share = sum lam^2 z / total.
  """
  lam_D = jnp.asarray(problem.lam)
  mean = jnp.sum(lam_D**2 * z)
  trace = jnp.sum(problem.mult * lam_D)
  noise = problem.tau * jnp.sum(lam_D * z) + problem.sigma2
  own = jnp.sum(fourth_moment(problem, batch) * lam_D**2 * z)
  total = own + trace / batch * noise
  return total, mean / total


@on_host()
def nsgd_scan(problem: Problem, schedule: Schedule) -> Adaptive:
  """Normalised SGD, w' = w - eta g / sqrt(E |g|^2). Exact, O(D) a step.

  The expectation is over data and iterate; dividing by the realised |g|
  instead differs by about 3 % at d = 16, less as d grows.

  Args:
    problem: The problem.
    schedule: eta is the length of a step, B the batch.

  Returns:
    `Adaptive` curves.
  """

  def one(z_D, hyper):
    eta, batch = hyper
    total, share = grad_second_moment(problem, z_D, batch)
    new_D = step(problem, z_D, eta / jnp.sqrt(total), batch)
    return new_D, (jnp.sum(problem.lam * z_D) / 2, share)

  return _run(one, schedule, problem.m0)


@on_host("rule")
def rms_scan(
  problem: Problem, schedule: Schedule, basis=None, *, b2=0.0, rule="rms"
) -> Adaptive:
  """Diagonal preconditioning in a basis: Adam without momentum, or GN.

  With P = diag(p) and G2 = E g g^T of a batch gradient,

      C' = C - eta (P H C + C H P) + eta^2 P G2 P,

  exact given p. In the eigenbasis only the diagonal matters and, for
  p_i = (E g_i^2)^-1/2, it reads c_i' = (1 - 2 eta p_i lam_i) c_i + eta^2.
  There p_i tends to lam_i^-1/2 times a number once noise dominates.

  Args:
    problem: The problem; Gaussian features if `basis` is given.
    schedule: eta and B; B = inf is the full batch.
    basis: None for the eigenbasis, O(D) a step; or orthogonal [D, D] whose
      columns are the eigenvectors in the coordinates of the preconditioner,
      O(D^3) a step. It starts at C_0 = basis diag(m0) basis^T.
    b2: Decay of the running second moment v' = b2 v + (1 - b2) E g^2, which
      starts at E g_0^2; 0 uses the current one.
    rule: "rms"; or "gn", "gn-sqrt": p = diag(H)^-1, diag(H)^-1/2.

  Returns:
    `Adaptive` curves.
  """
  powers = {"rms": None, "gn": -1.0, "gn-sqrt": -0.5}
  if rule not in powers:
    raise ValueError(f"rule={rule!r} is none of {list(powers)}.")
  lam_D = jnp.asarray(problem.lam)
  if basis is None:
    return _rms_eigen(problem, schedule, b2, powers[rule])
  basis = jnp.asarray(basis)
  H = (basis * lam_D) @ basis.T
  C = (basis * problem.m0) @ basis.T

  def second_moment(C, batch):
    HCH = H @ C @ H
    noise = (jnp.trace(H @ C) + problem.sigma2) / batch
    return (1 + 1 / batch) * HCH + noise * H, jnp.trace(HCH)

  def one(carry, hyper):
    C, v_D = carry
    eta, batch = hyper
    G2, mean = second_moment(C, batch)
    v_D = b2 * v_D + (1 - b2) * jnp.diagonal(G2)
    fixed = powers[rule]
    p_D = v_D**-0.5 if fixed is None else jnp.diagonal(H) ** fixed
    PHC = p_D[:, None] * (H @ C)
    new = C - eta * (PHC + PHC.T) + eta**2 * p_D[:, None] * G2 * p_D
    return (new, v_D), (jnp.trace(H @ C) / 2, mean / jnp.trace(G2))

  v_D = jnp.diagonal(second_moment(C, jnp.asarray(schedule.batch)[0])[0])
  return _run(one, schedule, (C, v_D))


@on_host("closure")
def sign_scan(
  problem: Problem, schedule: Schedule, *, closure="beta"
) -> Adaptive:
  """SignSGD in the eigenbasis, Gaussian features. APPROXIMATE closure.

  Given the error d, with rho_i = sqrt(lam_i) d_i / sqrt(d' H d + sigma2),
  E sign(g_i) = phi_B(rho_i) = 2 I_{(1 + rho_i)/2}(B/2, B/2) - 1 is exact. The
  closure "beta" replaces d_i by sqrt(c_i); its error is up to 0.2 %. The
  closure "linear" replaces phi by its slope at 0 as well. Its error is a few
  percent while k_B rho_i << 1, and tens of percent at a batch of 32, where the
  sign saturates.

      c' = c - 2 eta sqrt(c) phi_B(min(1, sqrt(lam c / (r + sigma2)))) + eta^2

  Args:
    problem: The problem.
    schedule: eta is the length of a coordinate's step; B finite.
    closure: "beta" or "linear".

  Returns:
    `Adaptive` curves.
  """
  if closure not in ("beta", "linear"):
    raise ValueError(f"closure={closure!r} must be 'beta' or 'linear'.")
  lam_D, mult_D = jnp.asarray(problem.lam), jnp.asarray(problem.mult)

  def one(z_D, hyper):
    eta, batch = hyper
    r = jnp.sum(lam_D * z_D)
    c_D = z_D / mult_D
    rho_D = jnp.sqrt(lam_D * c_D / (r + problem.sigma2))
    if closure == "beta":
      sign_D = 2 * betainc(batch / 2, batch / 2, (1 + rho_D) / 2) - 1
    else:
      sign_D = sign_slope(batch) * rho_D
    new_D = z_D + mult_D * (eta**2 - 2 * eta * jnp.sqrt(c_D) * sign_D)
    _, share = grad_second_moment(problem, z_D, batch)
    return new_D, (r / 2, share)

  return _run(one, schedule, problem.m0)


def sign_slope(batch):
  """k_B = 2^(2 - B) Gamma(B) / Gamma(B/2)^2, the slope of E sign(g) at 0."""
  log = (2 - batch) * np.log(2) + gammaln(batch) - 2 * gammaln(batch / 2)
  return jnp.exp(log)


def _rms_eigen(problem, schedule, b2, fixed):
  """`rms_scan` where only the diagonal matters; node sums have mult c."""
  lam_D, mult_D = jnp.asarray(problem.lam), jnp.asarray(problem.mult)

  def second_moment(z_D, batch):
    r = jnp.sum(lam_D * z_D)
    own_D = fourth_moment(problem, batch) * lam_D**2 * z_D / mult_D
    return own_D + lam_D / batch * (problem.tau * r + problem.sigma2), r

  def one(carry, hyper):
    z_D, v_D = carry
    eta, batch = hyper
    g2_D, r = second_moment(z_D, batch)
    v_D = b2 * v_D + (1 - b2) * g2_D
    p_D = v_D**-0.5 if fixed is None else lam_D**fixed
    new_D = z_D - 2 * eta * p_D * lam_D * z_D + mult_D * (eta * p_D) ** 2 * g2_D
    _, share = grad_second_moment(problem, z_D, batch)
    return (new_D, v_D), (r / 2, share)

  m0_D = jnp.asarray(problem.m0)
  v_D = second_moment(m0_D, jnp.asarray(schedule.batch)[0])[0]
  return _run(one, schedule, (m0_D, v_D))


def _run(one, schedule, start):
  """Scans `one`, and once more to read the last state."""
  hypers = jax.tree.map(jnp.asarray, (schedule.eta, schedule.batch))
  start = jax.tree.map(jnp.asarray, start)
  carry, curves = jax.lax.scan(one, start, hypers)
  last = one(carry, (hypers[0][-1], hypers[1][-1]))[1]
  curves = jax.tree.map(lambda x, y: jnp.append(x, y), curves, last)
  return Adaptive(*curves)
