"""Averages in closed form: no time loop, at any horizon.

By the two-point law E[d_t d_s] = (1 - eta lam)^(t - s) c_s for t >= s, the
second moment of a sum of n iterates is, per direction with q = 1 - eta lam,

    sum_{j<n} c_j (1 + 2 sum_{0<l<n-j} q^l),

and c_j is a sum over modes of powers mu^j (mu = 1 - nu) and of partial sums of
powers. Every sum is therefore a divided difference of z^n
(`divided_differences`). The label noise enters as partial sums, not as z_inf
minus a transient, so the formulas hold for unstable step sizes and for chi = 1.
"""

import jax
import jax.numpy as jnp

from .broadcast import over
from .divided_differences import differences
from .precision import on_host
from .risk_closed import (
  amplitudes,
  modes_of,
  move,
  partial_sum,
  power,
  spread,
)
from .sgd_moments import as_risk
from .stability import all_stable, chi, fourth_moment, is_stable
from .types import Problem, Risk, Stages


@on_host()
def tail_average_at(problem: Problem, eta, batch, s, N) -> Risk:
  """Risk of the mean of w_s, ..., w_{s+N-1} at constant (eta, B). Exact.

      v = N^-2 sum_modes (y mu^s + y' E_s) ([z^N](1,mu) + 2q [z^N](1,mu,q))
                       + y' ([z^N](1,1,mu) + 2q [z^N](1,1,mu,q))

  with E_s = [z^s](1, mu). O(D^2 log N); w_s is included (`theta_uniform(T, s)`
  averages w_{s+1..T} instead).

  Args:
    problem: The problem.
    eta: Step size.
    batch: B.
    s: First iterate, whole number >= 0; or an array.
    N: Number of iterates, whole, 1 <= N < 2^40, otherwise nan; or an array
      that broadcasts with s. The modes are solved once for all.

  Returns:
    Risks of the broadcast shape of s and N.
  """
  modes = modes_of(problem, eta, batch)
  m0_D = jnp.asarray(problem.m0)
  start_PD = jnp.stack([m0_D, 0 * m0_D])
  y_PD, noise_PD = amplitudes(problem, eta, batch, modes, start_PD)
  rate_D = modes.rates(eta)

  def window(s, N):
    # c_{s+j} has the mode sequences (y mu^s + y' E_s) mu^j + y' E_j.
    late_PD = y_PD * power(rate_D, s) + noise_PD * partial_sum(rate_D, s)

    def factors(i):
      first_D, second_D, *_ = _sums(N, rate_D, eta * modes.poles.lam[i])
      return late_PD * first_D + noise_PD * second_D

    v_DP = spread(problem, eta, batch, modes, factors)
    risk_P = problem.lam @ v_DP / (2 * jnp.asarray(N) ** 2)
    whole = (N >= 1) & (s >= 0) & (s == jnp.floor(s))
    return jnp.where(whole, risk_P, jnp.nan)

  return as_risk(over(window, s, N), is_stable(problem, eta, batch))


@on_host()
def average_stages(problem: Problem, stages: Stages, start=0) -> Risk:
  """Risk of the mean of w_{start+1}, ..., w_T under stages. Exact.

  Carries z, x = E[S d] and v = E[S^2] with S the running sum of errors; a
  stage of n steps adds, per direction, with E_n(q) = [z^n](1, q),

      x' = q^n x + modes [z^n](mu, q),   v' = v + 2 x q E_n(q) + modes (...)

  O(K D^2 log n). The convention is that of `theta_uniform(T, start)`.

  Args:
    problem: The problem.
    stages: K stages of whole lengths below 2^40; otherwise nan.
    start: Updates before the average begins, 0 <= start < T.

  Returns:
    Scalars.
  """
  m0_D = jnp.asarray(problem.m0)

  def stage(carry, hyper):
    z_PD, x_PD, v_PD, begin = carry
    eta, batch, steps = hyper
    modes = modes_of(problem, eta, batch)
    skip = jnp.clip(start - begin, 0, steps)
    z_PD = move(problem, eta, batch, modes, z_PD, skip)
    n = steps - skip
    z_PD, x_PD, v_PD = _summed(
      problem, eta, batch, modes, (z_PD, x_PD, v_PD), n
    )
    return (z_PD, x_PD, v_PD, begin + steps), None

  z_PD = jnp.stack([m0_D, 0 * m0_D])
  carry = (z_PD, 0 * z_PD, 0 * z_PD, 0.0)
  (_, _, v_PD, total), _ = jax.lax.scan(stage, carry, tuple(stages))
  count = total - start
  whole = jnp.all(stages.steps == jnp.floor(stages.steps)) & (count >= 1)
  whole = whole & (start == jnp.floor(start)) & (start >= 0)
  risk_P = v_PD @ problem.lam / (2 * count**2)
  stable = all_stable(problem, stages.eta, stages.batch)
  return as_risk(jnp.where(whole, risk_P, jnp.nan), stable)


@on_host()
def ema_stationary(problem: Problem, eta, batch, beta):
  """Risk of the EMA of a run at rest, after infinitely many steps. Exact.

      v = z_inf (1 - beta) (1 + beta q) / ((1 + beta) (1 - beta q))

  Args:
    problem: The problem.
    eta: Step size.
    batch: B.
    beta: Decay of a' = beta a + (1 - beta) w', in [0, 1).

  Returns:
    A scalar; `inf` if (eta, B) is not stable.
  """
  q_D = 1 - eta * jnp.asarray(problem.lam)
  # lam z_inf, written so that directions of zero curvature drop out.
  slack_D = 2 - fourth_moment(problem, batch) * eta * problem.lam
  loop = 1 - chi(problem, eta, batch)
  r_D = eta / batch * problem.sigma2 * problem.mult * problem.lam
  r_D = r_D / jnp.where(slack_D > 0, slack_D, 1.0) / loop
  shrink_D = (1 - beta) * (1 + beta * q_D) / ((1 + beta) * (1 - beta * q_D))
  risk = jnp.sum(r_D * shrink_D) / 2
  return jnp.where(is_stable(problem, eta, batch), risk, jnp.inf)


@on_host()
def ema_at(problem: Problem, eta, batch, beta, t) -> Risk:
  """Risk of the EMA a' = beta a + (1 - beta) w', a_0 = w_0, at time t. Exact.

  With p = beta q, theta = 1 - beta and c_j the moments of w_j,

      x_t = p^t m0 + theta sum_{j=1..t} p^(t-j) c_j
      v_t = beta^2t m0 + sum_{j=1..t} beta^2(t-j) (2 theta p x_{j-1}
                                                   + theta^2 c_j)

  which are divided differences at (p, mu), (beta^2, mu), (beta^2, p, mu).
  O(D^2 log t).

  Args:
    problem: The problem.
    eta: Step size.
    batch: B.
    beta: Decay in [0, 1).
    t: Whole number of updates, 0 <= t < 2^40; otherwise nan.

  Returns:
    Scalars.
  """
  modes = modes_of(problem, eta, batch)
  m0_D = jnp.asarray(problem.m0)
  start_PD = jnp.stack([m0_D, 0 * m0_D])

  def at(t):
    carry = (start_PD,) * 3
    v_PD = _decayed(problem, eta, batch, modes, carry, beta, t)[2]
    return v_PD @ problem.lam / 2

  return as_risk(over(at, t), is_stable(problem, eta, batch))


@on_host()
def ema_stages(problem: Problem, stages: Stages, beta) -> Risk:
  """Risk after stages of the EMA a' = beta a + (1 - beta) w', a_0 = w_0. Exact.

  Carries z, x = E[(w - w*)(a - w*)] and v = E[(a - w*)^2]; a stage of n steps
  at p = beta q, theta = 1 - beta and moments c_j of its iterates gives

      x_n = p^n x + theta sum_{j=1..n} p^(n-j) c_j
      v_n = beta^2n v + sum_{j=1..n} beta^2(n-j) (2 theta p x_{j-1}
                                                  + theta^2 c_j)

  O(K D^2 log n), for any number of steps; `avg_scan` with `theta_ema` is the
  same step by step.

  Args:
    problem: The problem.
    stages: K stages of whole lengths below 2^40; otherwise nan.
    beta: Decay in [0, 1), one for all stages.

  Returns:
    Scalars.
  """
  m0_D = jnp.asarray(problem.m0)

  def stage(carry, hyper):
    eta, batch, steps = hyper
    modes = modes_of(problem, eta, batch)
    return _decayed(problem, eta, batch, modes, carry, beta, steps), None

  start_PD = jnp.stack([m0_D, 0 * m0_D])
  (_, _, v_PD), _ = jax.lax.scan(stage, (start_PD,) * 3, tuple(stages))
  stable = all_stable(problem, stages.eta, stages.batch)
  return as_risk(v_PD @ problem.lam / 2, stable)


def _decayed(problem, eta, batch, modes, carry, beta, n):
  """Moves z, x, v of an EMA over n steps; see `ema_stages`."""
  z_PD, x_PD, v_PD = carry
  rate_D = modes.rates(eta)
  y_PD, noise_PD = amplitudes(problem, eta, batch, modes, z_PD)
  theta = 1 - beta
  square_rate = theta * (1 + beta)  # Of beta^2.
  # Sequences c_{j+1}: y mu^(j+1) and y' (E_j + mu^j).
  first_PD = y_PD * (1 - rate_D) + noise_PD
  moved_PD = y_PD * power(rate_D, n) + noise_PD * partial_sum(rate_D, n)

  def factors(i):
    p_rate = 1 - beta * (1 - eta * modes.poles.lam[i])
    z = differences(n, (p_rate, square_rate, rate_D, 0.0))
    square_PD = theta**2 * (first_PD * z[1, 2] + noise_PD * z[1, 3])
    pull = 2 * theta**2 * (1 - p_rate)
    square_PD += pull * (first_PD * z[0, 2] + noise_PD * z[0, 3])
    late = differences(n, (p_rate, rate_D, 0.0))
    cross_PD = theta * (first_PD * late[0, 1] + noise_PD * late[0, 2])
    return jnp.stack([moved_PD, cross_PD, square_PD])

  new_CPD = jnp.moveaxis(spread(problem, eta, batch, modes, factors), 0, -1)
  p_rate_D = 1 - beta * (1 - eta * jnp.asarray(problem.lam))
  between_D = differences(n, (p_rate_D, square_rate))[0, 1]
  new_v_PD = power(square_rate, n) * v_PD + new_CPD[2]
  new_v_PD += 2 * theta * (1 - p_rate_D) * x_PD * between_D
  return new_CPD[0], power(p_rate_D, n) * x_PD + new_CPD[1], new_v_PD


def _summed(problem, eta, batch, modes, carry, n):
  """Moves z, x, v over n steps whose ends enter the running sum."""
  z_PD, x_PD, v_PD = carry
  rate_D = modes.rates(eta)
  y_PD, noise_PD = amplitudes(problem, eta, batch, modes, z_PD)
  # Sequences start one step later: y mu^(j+1) and y' (E_j + mu^j).
  first_PD = y_PD * (1 - rate_D) + noise_PD
  decay_D, sum_D = power(rate_D, n), partial_sum(rate_D, n)

  moved_PD = y_PD * decay_D + noise_PD * sum_D

  def factors(i):
    first_D, second_D, cross_D, cross_sum_D = _sums(
      n, rate_D, eta * modes.poles.lam[i]
    )
    cross_PD = first_PD * cross_D + noise_PD * cross_sum_D
    square_PD = first_PD * first_D + noise_PD * second_D
    return jnp.stack([moved_PD, cross_PD, square_PD])

  new_CPD = jnp.moveaxis(spread(problem, eta, batch, modes, factors), 0, -1)
  q_rate_D = eta * jnp.asarray(problem.lam)
  between_PD = 2 * x_PD * (1 - q_rate_D) * partial_sum(q_rate_D, n)
  x_PD = power(q_rate_D, n) * x_PD + new_CPD[1]
  return new_CPD[0], x_PD, v_PD + between_PD + new_CPD[2]


def _sums(n, rate_D, q_rate):
  """Sums over an n-step window of one mode's sequences, for one direction.

  Returns:
    [D] each: double sums for c_j = mu^j and c_j = E_j(mu), then the
    covariances with the last iterate for the same two.
  """
  z = differences(n, (0.0, 0.0, rate_D, q_rate))
  twice_q = 2 * (1 - q_rate)
  powers_D = z[1, 2] + twice_q * z[1, 3]
  partial_sums_D = z[0, 2] + twice_q * z[0, 3]
  return powers_D, partial_sums_D, z[2, 3], z[1, 3]
