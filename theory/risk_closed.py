"""Closed forms at constant step and batch size: any time, no time loop.

The second moments are a sum over modes, z_t = sum_k M_k (y_k (1 - nu_k)^t
+ y'_k (1 - (1 - nu_k)^t) / nu_k), with rates nu_k from `secular`, y the bias
and y' the label noise. In a noisy direction's mode, with d_ki = s_i - nu_k,
weights v_i = rho mult_i lam_i^2 and G_k = sum_i v_i / d_ki^2,

    M_ki = rho mult_i lam_i / d_ki      (each M_k carries r = lam . M_k = 1)
    y_k  = (sum_i lam_i m0_i / d_ki) / G_k,      y'_k = sigma2 / (tau G_k)

A direction without noise of its own (mult = 0, or B infinite, or tau = 0) keeps
its rate s_j and carries r = lam_j / g(s_j). The formulas are exact for real
t >= 0 and for unstable step sizes too. The setup costs O(D^2), each further t
O(D).
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp

from . import secular
from .broadcast import over
from .checks import MANY_NODES
from .precision import on_host, require_float64
from .stability import all_stable, chi, fourth_moment, is_stable
from .types import Problem, Risk, Stages


class Modes(NamedTuple):
  """Eigenmodes of the second-moment map, slots sorted by pole.

  Attributes:
    poles: [D] poles s.
    roots: [D] rates nu as offsets; a slot without noise holds its pole.
    weight: [D] v.
    slope: [D] G.
    gain: [D] r carried by the mode: 1, or lam_j / g(s_j).
    order: [D] node of each slot.
  """

  poles: secular.Pole
  roots: secular.Roots
  weight: jax.Array
  slope: jax.Array
  gain: jax.Array
  order: jax.Array

  @property
  def noisy(self):
    """[D] whether the slot's direction receives gradient noise."""
    return self.weight > 0

  def rates(self, eta):
    """nu [D]."""
    return secular.rate(eta, self.roots.base) + self.roots.offset


def modes_of(problem: Problem, eta, batch) -> Modes:
  """Solves the secular equation; see `Modes`."""
  nodes = problem.lam.shape[0]
  if nodes > MANY_NODES:
    warnings.warn(
      f"closed forms of {nodes} nodes cost O(nodes^2); compress(problem) "
      "keeps every risk to about 1e-12 with a few hundred.",
      stacklevel=2,
    )
  poles, weight_D, order = secular.poles_of(problem, eta, batch)
  require_float64(weight_D, "a closed form")
  roots = secular.solve(eta, poles, weight_D)
  noisy_D = weight_D > 0

  def sums(root):
    d_D = secular.distance(eta, poles, root)
    term_D = weight_D / jnp.where(weight_D > 0, d_D, 1.0)
    slope = jnp.sum(term_D / jnp.where(weight_D > 0, d_D, 1.0))
    return slope, 1 - jnp.sum(term_D)

  slope_D, g_D = secular.by_rows(sums, roots)
  gain_D = jnp.where(noisy_D, 1.0, poles.lam / jnp.where(noisy_D, 1.0, g_D))
  slope_D = jnp.where(noisy_D, slope_D, 1.0)
  return Modes(poles, roots, weight_D, slope_D, gain_D, order)


def amplitudes(problem: Problem, eta, batch, modes: Modes, z_PD):
  """Amplitudes of bias and variance in each mode.

  Args:
    problem: The problem.
    eta: Step size.
    batch: B.
    modes: Of the same three.
    z_PD: [2, D] second moments of the two parts.

  Returns:
    y [2, D] of z_PD, and y' [2, D] of the label noise injected in every
    step, which goes to the variance.
  """
  z_PD, mult_D = z_PD[:, modes.order], problem.mult[modes.order]
  source_PD = modes.poles.lam * z_PD

  def overlap(root):
    d_D = secular.distance(eta, modes.poles, root)
    return jnp.sum(jnp.where(d_D == 0, 0.0, source_PD / secular.safe(d_D)), 1)

  overlap_PD = secular.by_rows(overlap, modes.roots).T
  tau = jnp.where(jnp.any(modes.noisy), problem.tau, 1.0)
  lonely_D = eta**2 / batch * problem.sigma2 * mult_D * modes.poles.lam
  noise_D = problem.sigma2 / (tau * modes.slope)
  noise_D = jnp.where(modes.noisy, noise_D, lonely_D)
  y_PD = jnp.where(modes.noisy, overlap_PD / modes.slope, z_PD)
  return y_PD, jnp.stack([jnp.zeros_like(noise_D), noise_D])


def spread(problem: Problem, eta, batch, modes: Modes, combine):
  """Node i's sum over modes, sum_k M_ki combine(i)_k, for every node.

  Args:
    problem: The problem.
    eta: Step size.
    batch: B.
    modes: Of the same three.
    combine: Maps the slot i of a node to the [..., D] factors of the modes.

  Returns:
    [D, ...] in the order of the problem's nodes.
  """
  rho = eta**2 / batch * problem.tau
  scale_D = rho * problem.mult[modes.order] * modes.poles.lam
  slots = jnp.arange(scale_D.shape[0])

  def node(i):
    pole = jax.tree.map(lambda x: x[i], modes.poles)
    d_D = secular.distance(eta, pole, modes.roots)
    noisy_row = scale_D[i] > 0  # Rows without injection see only themselves.
    row_D = scale_D[i] / jnp.where(noisy_row, secular.safe(d_D), 1.0)
    row_D = row_D * modes.gain + jnp.where(modes.noisy, 0.0, slots == i)
    return jnp.sum(row_D * combine(i), axis=-1)

  return secular.by_rows(node, slots)[jnp.argsort(modes.order)]


def log_power(rate):
  """log |1 - rate| and the sign of 1 - rate."""
  positive = rate < 1
  inner = jnp.where(positive, rate, 2 - rate)  # |1 - rate| = 1 - (2 - rate).
  return jnp.log1p(-inner), positive


def power(rate, t):
  """(1 - rate)^t, as exp(t log1p(-rate)); real t of a negative base: cos."""
  log_mu, positive = log_power(rate)
  sign = jnp.where(positive, 1.0, jnp.cos(jnp.pi * t))
  exponent = jnp.where(t == 0, 0.0, t * log_mu)
  return sign * jnp.exp(exponent)


def partial_sum(rate, t):
  """(1 - (1 - rate)^t) / rate = sum of the first t powers."""
  log_mu, positive = log_power(rate)
  exponent = jnp.where(t == 0, 0.0, t * log_mu)
  top = jnp.where(positive, -jnp.expm1(exponent), 1 - power(rate, t))
  return jnp.where(rate == 0, t, top / jnp.where(rate == 0, 1.0, rate))


@on_host()
def stationary(problem: Problem, eta, batch):
  """Second moments after infinitely many steps at constant (eta, B). Exact.

      z_k = w sigma2 / (1 - chi) mult_k lam_k / s_k,      w = eta^2 / B

  with risk (sigma2 / 2 tau) chi / (1 - chi). Sherman-Morrison; O(D).

  Args:
    problem: The problem.
    eta: Step size.
    batch: B.

  Returns:
    z [D]; `inf` if (eta, B) is not stable. Its risk is `lam @ z / 2`.
  """
  curvature_D = fourth_moment(problem, batch) * eta * problem.lam
  slack_D = jnp.where(curvature_D < 2, 2 - curvature_D, 1.0)
  loop = 1 - chi(problem, eta, batch)
  z_D = eta / batch * problem.sigma2 * problem.mult / slack_D / loop
  z_D = jnp.where(jnp.asarray(problem.lam) > 0, z_D, 0.0)
  return jnp.where(is_stable(problem, eta, batch), z_D, jnp.inf)


@on_host()
def risk_at(problem: Problem, eta, batch, t) -> Risk:
  """Risk after t updates at constant (eta, B). Exact, no time loop.

      bias_t     = 1/2 sum_k y_k  (1 - nu_k)^t
      variance_t = 1/2 sum_k y'_k (1 - (1 - nu_k)^t) / nu_k

  The setup costs O(D^2), each time O(D). The relative error is about 1e-15 for
  t up to 1e12 and for unstable eta. It is 1e-6 at t = 1 if eta is within 1e-6
  of the stability limit and m0 spans twelve decades: use `risk_scan` there.

  Args:
    problem: The problem.
    eta: Step size; beyond `eta_max` the risk grows and `stable` is False.
    batch: B.
    t: Times in updates, any shape, real >= 0.

  Returns:
    Risks of the shape of t. Differentiable in every argument, t included.
  """
  modes = modes_of(problem, eta, batch)
  start_PD = jnp.stack([problem.m0, jnp.zeros_like(problem.m0)])
  y_PD, noise_PD = amplitudes(problem, eta, batch, modes, start_PD)
  bias, variance = _risk_of(modes, eta, y_PD, noise_PD, jnp.asarray(t))
  return Risk(bias + variance, bias, variance, is_stable(problem, eta, batch))


@on_host()
def state_at(problem: Problem, eta, batch, t):
  """Second moments z after t updates at constant (eta, B). Exact, O(D^2).

  Every node has about 12 digits. A signal node of `compress` close to a noise
  node has about 8; risks are not affected.

  Args:
    problem: The problem.
    eta: Step size.
    batch: B.
    t: A time, real >= 0; or an array of times.

  Returns:
    z [D] (or [..., D] with the shape of t in front);
    `problem._replace(m0=z)` continues from there.
  """
  modes = modes_of(problem, eta, batch)
  start_PD = jnp.stack([problem.m0, jnp.zeros_like(problem.m0)])

  def at(t):
    return move(problem, eta, batch, modes, start_PD, t).sum(0)

  return over(at, t)


@on_host()
def risk_stages(problem: Problem, stages: Stages, ts) -> Risk:
  """Risk under a piecewise-constant schedule, at any times. Exact.

  Composes the closed form over K stages: O(K D (D + times)); prefer
  `risk_scan` when a stage has fewer than about 30 D steps.

  Args:
    problem: The problem.
    stages: K stages.
    ts: Global times in updates, any shape; beyond the last stage: nan.

  Returns:
    Risks of the shape of ts.
  """
  ts = jnp.asarray(ts)
  shape, ts = ts.shape, ts.reshape(-1)
  m0_D = jnp.asarray(problem.m0)

  def stage(carry, hyper):
    z_PD, begin, risk_PT = carry
    eta, batch, steps = hyper
    modes = modes_of(problem, eta, batch)
    here_T = (ts >= begin) & (ts <= begin + steps)
    local_T = jnp.where(here_T, ts - begin, 0.0)
    y_PD, noise_PD = amplitudes(problem, eta, batch, modes, z_PD)
    now_PT = _risk_of(modes, eta, y_PD, noise_PD, local_T)
    risk_PT = jnp.where(here_T, now_PT, risk_PT)
    z_PD = move(problem, eta, batch, modes, z_PD, steps)
    return (z_PD, begin + steps, risk_PT), None

  start_PD = jnp.stack([m0_D, 0 * m0_D])
  empty_PT = jnp.full((2, ts.size), jnp.nan)
  carry = (start_PD, 0.0, empty_PT)
  (_, _, risk_PT), _ = jax.lax.scan(stage, carry, tuple(stages))
  bias, variance = risk_PT.reshape(2, *shape)
  stable = all_stable(problem, stages.eta, stages.batch)
  return Risk(bias + variance, bias, variance, stable)


def _risk_of(modes, eta, y_PD, noise_PD, t):
  """Risks [P, ...] at times of any shape."""
  rate_D = modes.rates(eta)
  t_T1 = t.reshape(-1, 1)
  decay_TD, sum_TD = power(rate_D, t_T1), partial_sum(rate_D, t_T1)
  r_TP = decay_TD @ (modes.gain * y_PD).T + sum_TD @ (modes.gain * noise_PD).T
  return r_TP.T.reshape(len(y_PD), *t.shape) / 2


def move(problem: Problem, eta, batch, modes: Modes, z_PD, t):
  """Bias and variance moments, [2, D], t updates later."""
  rate_D = modes.rates(eta)
  y_PD, noise_PD = amplitudes(problem, eta, batch, modes, z_PD)
  factors_PD = y_PD * power(rate_D, t) + noise_PD * partial_sum(rate_D, t)
  return spread(problem, eta, batch, modes, lambda i: factors_PD).T
