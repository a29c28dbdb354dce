"""What is read from curves of losses: crossings, speed-ups, profiles."""

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import interpolate

import theory


class Crossing(NamedTuple):
  """Where a curve reaches a target, and how often it leaves it afterwards."""

  at: float
  recrossings: int


class Speed(NamedTuple):
  """A speed-up; value is inf with bound ">", 0 with bound "<"."""

  value: float
  bound: str


class Profile(NamedTuple):
  """Share [methods, r] of the cells solved within factors [r] of the best."""

  factors: np.ndarray
  share: np.ndarray
  integral: np.ndarray


def crossing(tokens, losses, target) -> Crossing:
  """First point at or below target, on the straight line from the point before.

  A nan loss, of a run that diverged, is above the target. The first point, and
  a point after nan or inf, stands for itself. `at` has the unit of tokens [n]
  (or steps), which increase; inf, censored, if losses [n] never reach target.
  """
  x, y = np.asarray(tokens, float), np.asarray(losses, float)
  if x.ndim != 1 or x.shape != y.shape or not x.size:
    raise ValueError(f"tokens {x.shape} and losses {y.shape} must be [n].")
  if np.any(np.diff(x) <= 0) or not np.isfinite([*x, target]).all():
    raise ValueError(f"{tokens=} must increase and be finite, as {target=}.")
  below = y <= target
  i, again = int(below.argmax()), int(np.sum(below[:-1] & ~below[1:]))
  at, pair = x[i] if below[i] else math.inf, slice(i - 1, i + 1)
  if below[i] and i and np.isfinite(y[pair]).all():
    at = np.interp(-target, -y[pair], x[pair])
  return Crossing(float(at), again)


def speed_up(horizons, losses, loss, horizon) -> Speed:
  """Horizon at which the reference reaches `loss`, over the method's horizon.

  losses [k] are the reference's, after decay, at k >= 4 horizons [k]. Its curve
  is c + k D^p by `theory.power_law_fit`; where c is free to trade, the monotone
  cubic in log D. Nothing is extrapolated: beyond the horizons the value is inf
  or 0, and 0 for a loss of inf or nan. It is nan if the reference does not fall
  at every horizon: `statistics.faster` counts this seed.
  """
  x, y = np.asarray(horizons, float), np.asarray(losses, float)
  fine = x.shape == y.shape == np.unique(x).shape and x.size >= 4
  if not fine or not all(0 < at < math.inf for at in (horizon, *x)):
    raise ValueError(f"{horizons=} (4 or more) and {horizon=} must be > 0.")
  x, y = np.sort(x), y[np.argsort(x)]
  if not (np.isfinite(y).all() and np.all(np.diff(y) < 0) and y[-1] > 0):
    return Speed(math.nan, "")
  log_x, curve = _curve(tuple(x), tuple(y))
  minus = np.nan_to_num(-loss, nan=-math.inf)
  log_at = np.interp(minus, -curve, log_x, -math.inf, math.inf)
  value = float(np.exp(log_at) / horizon)
  return Speed(value, {0: "<", math.inf: ">"}.get(value, ""))


@functools.lru_cache  # All methods of a leaderboard ask for the same curves.
def _curve(x, y):
  """log D and the losses there, densely, of the curve of points (x, y)."""
  fine = np.geomspace(x[0], x[-1], 10001)
  try:
    return np.log(fine), theory.power_law_fit(x, y, offset=True).predict(fine)
  except theory.UndeterminedError:
    cubic = interpolate.PchipInterpolator(np.log(x), y)
    return np.log(fine), cubic(np.log(fine))


def profile(times, to=4.0) -> Profile:
  """Performance profile of times [methods, cells]; inf or nan is unsolved.

  The factors are 1, `to` and all at which a share changes; the integral
  [methods] is the mean share over [1, to]. A cell that nobody solves counts as
  unsolved by all. https://doi.org/10.1007/s101070100263
  """
  times = np.where(np.isnan(times), math.inf, times)
  if times.ndim != 2 or not (times > 0).all() or not 1 < to < math.inf:
    raise ValueError(f"times {times.shape} must be 2-d and > 0, {to=} > 1.")
  best = times.min(0)
  ratio = times / np.where(np.isinf(best), 1, best)
  factors = np.unique([1.0, to, *ratio[ratio <= to]])
  share = (ratio[:, None] <= factors[:, None]).mean(-1)
  integral = np.clip((to - ratio) / (to - 1), 0, None).mean(1)
  return Profile(factors, share, integral)
