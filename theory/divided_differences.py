"""Divided differences of z^n, by doubling: sums of positive terms only.

An average over n steps of products of geometric sequences is a divided
difference [z^n](x_1, ..., x_m). The divided difference is the corner of X^n, X
the upper bidiagonal matrix with the x on the diagonal and ones above it
(Opitz). Doubling, X^{2m} = X^m X^m, takes log2 n rounds. Nothing cancels for
x > 0. The powers on the diagonal are exp(m log x).
"""

import itertools

import jax
import jax.numpy as jnp

from .risk_closed import log_power

MAX_BITS = 40  # Averages over fewer than 2^40 steps.


def differences(n, rates) -> dict:
  """All [z^n](x_i, ..., x_j), i < j, of the points x = 1 - rate.

  Args:
    n: Whole number, 0 <= n < 2^40; otherwise nan.
    rates: Sequence of arrays or numbers that broadcast.

  Returns:
    {(i, j): array} for all i < j.
  """
  rates = [jnp.asarray(rate, float) for rate in rates]
  points = [1 - rate for rate in rates]
  logs = [log_power(rate) for rate in rates]
  pairs = list(itertools.combinations(range(len(points)), 2))

  def double(carry, bit):
    m, a = carry
    power = [_whole_power(*log, m) for log in logs]
    # X^{2m} = X^m X^m.
    b = {(i, i): p**2 for i, p in enumerate(power)}
    for i, j in pairs:
      b[i, j] = a[i, j] * (power[i] + power[j])
      b[i, j] += sum(a[i, k] * a[k, j] for k in range(i + 1, j))
    # X^{2m+1} = X X^{2m}, if the next bit of n is set.
    odd = jnp.floor(n / bit) % 2 == 1
    a = {
      (i, j): jnp.where(odd, points[i] * b[i, j] + b[i + 1, j], b[i, j])
      for i, j in pairs
    }
    return 2 * m + odd, a

  def round_(carry, bit):  # Leading zero bits of n cost nothing.
    skip = bit > n
    return jax.lax.cond(skip, lambda c, _: c, double, carry, bit), None

  def zeros(i, j):
    shapes = [jnp.shape(rate) for rate in rates[i : j + 1]]
    return jnp.zeros(jnp.broadcast_shapes(*shapes))

  bits = 2.0 ** jnp.arange(MAX_BITS - 1, -1, -1)
  start = (0.0, {pair: zeros(*pair) for pair in pairs})
  (_, table), _ = jax.lax.scan(round_, start, bits)
  valid = (n >= 0) & (n < 2.0**MAX_BITS) & (n == jnp.floor(n))
  return {k: jnp.where(valid, x, jnp.nan) for k, x in table.items()}


def _whole_power(log_x, positive, m):
  """x^m for whole m from log |x| and the sign of x; 0^0 = 1."""
  odd = jnp.floor(m / 2) * 2 != m
  sign = jnp.where(odd & ~positive, -1.0, 1.0)
  return sign * jnp.exp(jnp.where(m == 0, 0.0, m * log_x))
