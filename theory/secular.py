"""Eigenvalues of diagonal plus rank one, to machine precision at any size.

At constant (eta, B) the second moments obey z' = A z + const with
I - A = diag(s) - rho (mult lam) lam^T, rho = eta^2 tau / B. Its eigenvalues
("rates" nu; A's are 1 - nu) are the roots of

    g(nu) = 1 - rho sum_i mult_i lam_i^2 / (s_i - nu) = 0,

one in each gap of the sorted poles s, g decreasing from +inf to -inf on it.
Two rules keep every digit (Gu and Eisenstat; LAPACK dlaed4): a root is stored
as its offset from the nearest pole, and pole differences are products,

    s_i - s_j = eta (lam_i - lam_j) (2 - c_B eta (lam_i + lam_j)),

never differences of stored s. A pole of weight zero at 0 is prepended, since
near criticality the slowest rate is far closer to 0 than to any pole.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .stability import fourth_moment
from .types import Problem

_ROWS = 256  # Roots treated at once; bounds the memory at _ROWS x D.
_MAX_ITERATIONS = 60  # Typical: 4 to 7. Bisections near a pole need more.


class Pole(NamedTuple):
  """A pole s = eta lam (2 - c eta lam), kept as what it is made of.

  Attributes:
    lam: Eigenvalue of H.
    c: Its c_B.
  """

  lam: jax.Array
  c: jax.Array


class Roots(NamedTuple):
  """Rates as offsets from poles: nu = s(base) + offset.

  Attributes:
    base: [M] the nearest poles.
    offset: [M] signed distances to them.
  """

  base: Pole
  offset: jax.Array


def gap(eta, upper: Pole, lower: Pole):
  """s(upper) - s(lower), accurate however close they are."""
  # Subtracting the larger lam first makes its rounding the same in all pairs,
  # which is worth two digits when eta lam_max is close to 2.
  large = jnp.maximum(upper.lam, lower.lam)
  small = jnp.minimum(upper.lam, lower.lam)
  slack = (2 - eta * upper.c * large) - eta * upper.c * small
  product = (upper.lam - lower.lam) * slack
  return eta * (product - eta * lower.lam**2 * (upper.c - lower.c))


def rate(eta, pole: Pole):
  """s of a pole."""
  return eta * pole.lam * (2 - eta * pole.c * pole.lam)


def distance(eta, pole: Pole, roots: Roots):
  """s(pole) - nu, broadcasting."""
  return gap(eta, pole, roots.base) - roots.offset


def poles_of(problem: Problem, eta, batch):
  """Poles, weights and the order of the nodes.

  Args:
    problem: The problem.
    eta: Step size.
    batch: B.

  Returns:
    poles [D] and weights rho mult lam^2 [D], both sorted: nodes of positive
    weight first, by increasing s, with coincident ones nudged apart by one
    rounding error; order [D], so that x[order] is sorted.
  """
  lam_D = jnp.asarray(problem.lam)
  c_D = jnp.broadcast_to(fourth_moment(problem, batch), lam_D.shape)
  weight_D = eta**2 / batch * problem.tau * problem.mult * lam_D**2
  active_D = weight_D > 0
  s_D = rate(eta, Pole(lam_D, c_D))
  order = jnp.lexsort((s_D, ~active_D))
  lam_D, c_D, weight_D = lam_D[order], c_D[order], weight_D[order]
  return _separate(eta, lam_D, c_D, weight_D > 0), weight_D, order


def _separate(eta, lam_D, c_D, active_D):
  """Moves coincident neighbours apart by a few rounding errors."""
  frozen = jax.lax.stop_gradient((eta, Pole(lam_D, c_D)))
  eta_, pole = frozen
  upper = jax.tree.map(lambda x: x[1:], pole)
  lower = jax.tree.map(lambda x: x[:-1], pole)
  tied_D = jnp.append(False, (gap(eta_, upper, lower) <= 0) & active_D[1:])
  # Runs of equal poles get 1, 2, 3, ... nudges.
  count_D = jnp.cumsum(tied_D)
  rank_D = count_D - jax.lax.cummax(jnp.where(tied_D, 0, count_D))
  uphill_D = jnp.where(eta_ * pole.c * pole.lam <= 1, 1.0, -1.0)
  return Pole(lam_D * (1 + 1e-15 * rank_D * uphill_D), c_D)


@jax.custom_jvp
def solve(eta, poles: Pole, weight_D) -> Roots:
  """All roots of g; slot k lies just below pole k.

  Derivatives of every order follow the implicit function theorem:
  d nu = -dg / g'.

  Args:
    eta: Step size.
    poles: [D] sorted as `poles_of` returns them.
    weight_D: [D] weights >= 0, zeros last; their slots hold no root and
      come back as the pole itself.

  Returns:
    Roots [D].
  """
  count = weight_D.shape[0]

  def one(k):
    return _solve_one(eta, poles, weight_D, k)

  return by_rows(one, jnp.arange(count))


@solve.defjvp
def _solve_jvp(primals, tangents):
  """The base poles move as poles do; the offset takes up the rest."""
  eta, poles, weight_D = primals
  roots = solve(eta, poles, weight_D)
  index = jax.lax.stop_gradient(_base_index(eta, poles, roots))

  def base_of(poles):
    padded = jax.tree.map(lambda x: jnp.append(x, 0.0), poles)
    return jax.tree.map(lambda x: x[index], padded)

  def g_of(eta, poles, weight_D, offset):
    moved = Roots(base_of(poles), offset)

    def one(root):
      return 1 - jnp.sum(weight_D / safe(distance(eta, poles, root)))

    return by_rows(one, moved)

  base, d_base = jax.jvp(base_of, (poles,), (tangents[1],))
  offset = roots.offset
  _, dg = jax.jvp(
    lambda eta, poles, weight_D: g_of(eta, poles, weight_D, offset),
    (eta, poles, weight_D),
    tangents,
  )
  slope = slopes(eta, poles, weight_D, Roots(base, offset))
  held = weight_D > 0
  # g' = -slope, so d offset = dg / slope.
  d_offset = jnp.where(held, dg / jnp.where(held, slope, 1.0), 0.0)
  return Roots(base, offset), Roots(d_base, d_offset)


def slopes(eta, poles: Pole, weight_D, roots: Roots):
  """-g'(nu_k) = sum_i weight_i / (s_i - nu_k)^2, [D]."""

  def one(root):
    return jnp.sum(weight_D / safe(distance(eta, poles, root)) ** 2)

  return by_rows(one, roots)


def by_rows(fn, rows):
  """`vmap` in blocks of _ROWS, so that nothing D x D is stored for large D."""
  count = jax.tree.leaves(rows)[0].shape[0]
  if count <= _ROWS:
    return jax.vmap(fn)(rows)
  blocks = -(-count // _ROWS)
  size = -(-count // blocks)
  index = jnp.minimum(jnp.arange(blocks * size), count - 1)
  padded = jax.tree.map(
    lambda x: x[index].reshape(blocks, size, *x.shape[1:]), rows
  )
  out = jax.lax.map(jax.vmap(fn), padded)
  return jax.tree.map(
    lambda x: x.reshape(blocks * size, *x.shape[2:])[:count], out
  )


def safe(x):
  """Keeps empty slots, whose distance to themselves is 0, finite."""
  return jnp.where(x == 0, jnp.inf, x)


def _base_index(eta, poles, roots):
  """Which pole each root hangs on; the last index is the pole at 0."""
  count = poles.lam.shape[0]
  slot = jnp.arange(count)
  own = (roots.base.lam == poles.lam) & (roots.base.c == poles.c)
  origin = (roots.base.lam == 0) & (roots.base.c == 0)
  return jnp.where(own, slot, jnp.where(origin, count, slot - 1))


def _solve_one(eta, poles, weight_D, k):
  """Root k: choose the base pole, bracket, iterate the two-pole model."""
  upper = jax.tree.map(lambda x: x[k], poles)
  lower = jax.tree.map(
    lambda x: jnp.where(k > 0, x[jnp.maximum(k - 1, 0)], 0.0), poles
  )
  # Below the first pole the neighbour is the pole at 0, if it is below.
  bounded = (k > 0) | (rate(eta, upper) > 0)
  width = jnp.where(bounded, gap(eta, upper, lower), 0.0)
  below_D = jnp.arange(weight_D.shape[0]) < k

  def sums(base, x):
    """Sums of weight / d and weight / d^2, d = s - nu, [below, above]."""
    d_D = safe(gap(eta, poles, base) - x)
    term_2D = weight_D / d_D * jnp.stack([below_D, ~below_D])
    return term_2D.sum(1), (term_2D / d_D).sum(1)

  below, above = sums(lower, width / 2)[0]
  on_upper = (1 - below - above > 0) | ~bounded
  base = jax.tree.map(lambda u, l: jnp.where(on_upper, u, l), upper, lower)
  left = jnp.where(on_upper, -width, 0.0)
  # Bounds from the monotone parts of g. On the upper pole weight_k / |x| <=
  # 1 + |below at the middle|; on the lower, weight_{k-1} / x <= above there;
  # the first root is at least s_0 - (sum of the weights).
  total = jnp.sum(weight_D)
  far = jnp.where(bounded, width / 2, total)
  near_upper = jnp.minimum(weight_D[k] / (1 - below), far)
  near_lower = weight_D[jnp.maximum(k - 1, 0)] / jnp.maximum(above, 1.0)
  near_lower = jnp.where(k > 0, near_lower, jnp.minimum(width - total, 0.0))
  low = jnp.where(on_upper, -far, jnp.minimum(near_lower, width / 2))
  high = jnp.where(on_upper, -near_upper, width / 2)

  held = weight_D[k] > 0
  x = _iterate(
    lambda x: sums(base, x), left, left + width, low, high, k == 0, ~held
  )
  own = Roots(upper, jnp.zeros_like(x))
  return jax.tree.map(lambda a, b: jnp.where(held, a, b), Roots(base, x), own)


def _iterate(sums, left, right, low, high, first, skip):
  """The middle way of dlaed4: g is fitted by its two nearest poles.

  With d_l = left - x < 0 < d_r = right - x, solve
  C - A_l / (d_l - y) - A_r / (d_r - y) = 0, where the A match the slopes of
  the two sums and C the value of g, for the step y; below the first pole
  only A_r is left. A step out of the bracket becomes a geometric bisection.
  """

  def body(state):
    x, low, high, count, _ = state
    value_2, slope_2 = sums(x)
    g = 1 - value_2.sum()
    low, high = jnp.where(g > 0, x, low), jnp.where(g > 0, high, x)
    dl, dr = left - x, right - x
    c = g + slope_2[0] * dl + slope_2[1] * dr
    b = (dl + dr) * g + dl * dr * slope_2.sum()
    root = jnp.sqrt(jnp.abs(b * b - 4 * c * dl * dr * g))
    y = jnp.where(b <= 0, (b - root) / (2 * c), 2 * dl * dr * g / (b + root))
    new = x + jnp.where(first, g * dr / c, y)
    inside = (new >= low) & (new <= high)
    at_root = jnp.abs(g) <= 4.5e-16 * (1 + jnp.abs(value_2).sum())
    # At the root the sign of g is noise, and so is the bracket.
    fallback = jnp.where(at_root, x, _geometric_middle(low, high))
    new = jnp.where(inside, new, fallback)
    done = at_root | (jnp.abs(new - x) <= 4e-16 * jnp.abs(x))
    return new, low, high, count + 1, done

  def running(state):
    return ~state[4] & (state[3] < _MAX_ITERATIONS)

  state = (_geometric_middle(low, high), low, high, 0, skip)
  return jax.lax.while_loop(running, body, state)[0]


def _geometric_middle(low, high):
  """Halves the exponent; across zero it tries 0, from zero three decades."""
  same = low * high > 0
  ends = jnp.where(same, jnp.abs(low), 1.0), jnp.where(same, jnp.abs(high), 1.0)
  middle = jnp.sign(low) * jnp.sqrt(ends[0]) * jnp.sqrt(ends[1])
  from_zero = jnp.where(low * high < 0, 0.0, (low + high) * 1e-3)
  return jnp.where(same, middle, from_zero)
