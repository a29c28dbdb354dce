"""Upper bounds on the risk of a tail average, to draw beside exact values.

The average is over N iterates from w_s at constant step size; d0^2 = m0.
"""

from typing import NamedTuple

import jax.numpy as jnp

from .broadcast import over
from .precision import on_host
from .stability import chi, fourth_moment
from .types import Array, Problem


class Bound(NamedTuple):
  """An upper bound on a risk and its parts.

  Attributes:
    total: Sum of the parts.
    bias: From the deterministic descent.
    additive: From label noise.
    multiplicative: From the sampling of the features.
  """

  total: Array
  bias: Array
  additive: Array
  multiplicative: Array


@on_host()
def effective_dim(problem: Problem, eta, N):
  """k* + N^2 eta^2 sum_tail lam^2, with k* = #{lam >= 1 / (eta N)}.

  Args:
    problem: The problem.
    eta: Step size.
    N: Number of averaged iterates, a number or an array.

  Returns:
    (effective dimension, k*) of the shape of N; the dimension over N
    multiplies the noise.
  """
  return over(lambda N: _effective_dim(problem, eta, N), N)


def _effective_dim(problem, eta, N):
  lam_D, mult_D = jnp.asarray(problem.lam), problem.mult
  head_D = lam_D * eta * N >= 1
  k_star = jnp.sum(jnp.where(head_D, mult_D, 0.0))
  tail = jnp.sum(jnp.where(head_D, 0.0, mult_D * lam_D**2))
  return k_star + (N * eta) ** 2 * tail, k_star


@on_host()
def zou_bound(problem: Problem, eta, s, N, alpha4=3.0) -> Bound:
  """Published form of the benign-overfitting bound, batch 1.

  R <= 2 EffBias + 2 EffVar. The statement is recalled from Zou et al., arXiv
  2103.12692; Meterez et al., arXiv 2506.15535, derive it too. The inequality
  as coded was checked on random problems. The attribution was not checked.

  Args:
    problem: The problem.
    eta: Step size < 1 / (alpha4 tr H); otherwise `inf`.
    s: First averaged iterate, a number or an array.
    N: Number of averaged iterates, a number or an array.
    alpha4: Fourth-moment constant; 3 for Gaussian features.

  Returns:
    The bound, of the broadcast shape of s and N.
  """
  return over(lambda s, N: _zou_bound(problem, eta, s, N, alpha4), s, N)


def _zou_bound(problem, eta, s, N, alpha4):
  lam_D, m0_D = jnp.asarray(problem.lam), jnp.asarray(problem.m0)
  mult_D = problem.mult
  left = 1 - eta * alpha4 * jnp.sum(mult_D * lam_D)
  head_D = lam_D * eta * N >= 1
  wide_D = lam_D * eta * (s + N) >= 1  # k+.
  faded_D = m0_D * (1 - eta * lam_D) ** (2 * s)
  safe_D = jnp.where(lam_D > 0, lam_D, 1.0)
  bias = jnp.sum(
    jnp.where(head_D, faded_D / safe_D / (eta * N) ** 2, lam_D * faded_D)
  )
  dim = _effective_dim(problem, eta, N)[0] / N
  middle = eta * jnp.sum(jnp.where(~head_D & wide_D, mult_D * lam_D, 0.0))
  rest = jnp.sum(jnp.where(wide_D, 0.0, mult_D * lam_D**2))
  tail_dim = (
    jnp.sum(jnp.where(head_D, mult_D, 0.0)) / N
    + middle
    + eta**2 * (s + N) * rest
  )
  energy = jnp.sum(jnp.where(wide_D, m0_D, (s + N) * eta * lam_D * m0_D))
  factor = jnp.where(s > 0, 4, 2) * alpha4 / (N * eta)
  additive = problem.sigma2 * jnp.where(s > 0, tail_dim, dim) / left
  multiplicative = factor * energy * dim / left
  parts = [2 * bias, 2 * additive, 2 * multiplicative]
  parts = [jnp.where(left > 0, x, jnp.inf) for x in parts]
  return Bound(sum(parts), *parts)


@on_host()
def chi_bound(problem: Problem, eta, batch, s, N) -> Bound:
  """Upper bound with the exact noise gain chi in place of alpha tr H. Proved.

  With x = eta lam, T = s + N, w = eta^2 / B, G = min(2 / x, 2 N),

    mean            1/2 sum lam d0^2 (1-x)^2s ((1 - (1-x)^N) / (N x))^2
    additive        w sigma2 / (2 N (1-chi)) sum lam^2 min(1/s_i, T) G
    multiplicative  w / (2 N^2) sum lam^2 (tau S0 + own_i) min(1/s_i, N) G
    S0  = sum lam d0^2 (1 - (1-s_i)^T) / s_i / (1 - chi)
    own = max(kappa - 1, 0) lam d0^2 (1 - (1-x)^2T) / (x (2 - x))

  On random problems the bound is 1.00 to 3.3 times the exact value, with a
  median of 1.2. Derived for this package.

  Args:
    problem: The problem.
    eta: Step size with c_B eta lam_max <= 1 and chi < 1; otherwise `inf`.
    batch: B.
    s: First averaged iterate, a number or an array.
    N: Number of averaged iterates, a number or an array.

  Returns:
    The bound, of the broadcast shape of s and N.
  """
  return over(lambda s, N: _chi_bound(problem, eta, batch, s, N), s, N)


def _chi_bound(problem, eta, batch, s, N):
  lam_D, m0_D = jnp.asarray(problem.lam), jnp.asarray(problem.m0)
  mult_D, c = problem.mult, fourth_moment(problem, batch)
  x_D = eta * lam_D
  safe_D = jnp.where(x_D > 0, x_D, 1.0)
  s_D = x_D * (2 - c * x_D)
  T, w, gain = s + N, eta**2 / batch, chi(problem, eta, batch)
  inverse_D = jnp.where(s_D > 0, 1 / jnp.where(s_D > 0, s_D, 1.0), jnp.inf)
  G_D = jnp.minimum(2 / safe_D, 2 * N)
  shrink_D = -jnp.expm1(N * jnp.log1p(-x_D)) / (N * safe_D)
  bias = jnp.sum(lam_D * m0_D * (1 - x_D) ** (2 * s) * shrink_D**2) / 2
  per_direction_D = lam_D**2 * G_D
  additive = jnp.sum(mult_D * per_direction_D * jnp.minimum(inverse_D, T))
  additive = additive * w * problem.sigma2 / (2 * N * (1 - gain))
  spent_D = -jnp.expm1(T * jnp.log1p(-s_D)) / jnp.where(s_D > 0, s_D, 1.0)
  S0 = jnp.sum(lam_D * m0_D * spent_D) / (1 - gain)
  own_D = -jnp.expm1(2 * T * jnp.log1p(-x_D)) / (safe_D * (2 - x_D))
  own_D = jnp.maximum(jnp.asarray(problem.kappa) - 1, 0) * lam_D * m0_D * own_D
  source_D = mult_D * problem.tau * S0 + own_D
  multiplicative = jnp.sum(
    per_direction_D * source_D * jnp.minimum(inverse_D, N)
  )
  multiplicative = multiplicative * w / (2 * N**2)
  valid = (jnp.max(c * x_D) <= 1) & (gain < 1)
  parts = [bias, additive, multiplicative]
  parts = [jnp.where(valid, part, jnp.inf) for part in parts]
  return Bound(sum(parts), *parts)
