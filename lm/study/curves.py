"""What is read from curves of losses: crossings, speed-ups, profiles."""

import math
from typing import NamedTuple

import numpy as np

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
  """Share [methods, r] of the cells solved within factors [r] of the best.

  The factors are 1, `to` and all at which a share changes; the integral
  [methods] is the exact mean share over [1, to].
  """

  factors: np.ndarray
  share: np.ndarray
  integral: np.ndarray


def crossing(tokens, losses, target) -> Crossing:
  """First point at or below target, on the straight line from the point before.

  A nan loss, of a run that diverged, is above the target. The first point, and
  a point after nan or inf, stands for itself. `at` has the unit of tokens [n]
  (or steps), which increase; inf, censored, if losses [n] never reach target.
  `recrossings` counts how often the curve goes above the target again.
  """
  x, y = np.asarray(tokens, float), np.asarray(losses, float)
  if x.ndim != 1 or x.shape != y.shape or not x.size:
    raise ValueError(f"tokens {x.shape} and losses {y.shape} must be [n].")
  if not np.isfinite(x).all() or np.any(np.diff(x) <= 0):
    raise ValueError(f"tokens={x.tolist()} must be finite and increase.")
  if not math.isfinite(target):
    raise ValueError(f"target={target} must be finite.")
  below = y <= target
  if not below.any():
    return Crossing(math.inf, 0)
  i = int(below.argmax())
  again = int(np.sum(below[i:-1] & ~below[i + 1 :]))
  if i == 0 or not np.isfinite(y[i - 1 : i + 1]).all():
    return Crossing(float(x[i]), again)
  share = (y[i - 1] - target) / (y[i - 1] - y[i])
  return Crossing(float(x[i - 1] + share * (x[i] - x[i - 1])), again)


def speed_up(horizons, losses, loss, horizon) -> Speed:
  """Horizon at which the reference reaches `loss`, over the method's horizon.

  losses [k] are the reference's, after decay, at k >= 4 horizons [k]. Its curve
  is c + k D^p by `theory.power_law_fit`; where c trades freely with k and p,
  the monotone cubic in log D. (Straight lines in log D read 1.3 as 1.34.)
  Nothing is extrapolated: beyond the horizons the value is inf with bound ">",
  or 0 with bound "<", also for a loss of inf or nan. A reference that does not
  fall at every horizon has no inverse: nan flags the seed, which
  `statistics.faster` counts and does not leave out.
  """
  x, y = np.asarray(horizons, float), np.asarray(losses, float)
  if x.ndim != 1 or x.shape != y.shape or np.unique(x).size < max(4, x.size):
    raise ValueError(f"horizons={x.tolist()} must be 4 or more distinct ones.")
  if not 0 < horizon < math.inf or not np.all((x > 0) & (x < math.inf)):
    raise ValueError(f"{horizon=}, horizons={x.tolist()} must be in (0, inf).")
  order = np.argsort(x)
  x, y = x[order], y[order]
  if not (np.isfinite(y).all() and np.all(np.diff(y) < 0) and y[-1] > 0):
    return Speed(math.nan, "")
  try:
    fit = theory.power_law_fit(x, y, offset=True)
    y = fit.predict(x)
    c, k, p = (fit.params[name] for name in "ckp")
    inverse = lambda value: ((value - c) / k) ** (1 / p)  # noqa: E731
  except theory.UndeterminedError:
    from scipy import interpolate

    cubic = interpolate.PchipInterpolator(y[::-1], np.log(x[::-1]))
    inverse = lambda value: np.exp(cubic(value))  # noqa: E731
  if not loss <= y[0]:
    return Speed(0.0, "<")
  if loss < y[-1]:
    return Speed(math.inf, ">")
  return Speed(float(inverse(loss) / horizon), "")


def profile(times, to=4.0) -> Profile:
  """Performance profile of times [methods, cells]; inf or nan is unsolved.

  https://doi.org/10.1007/s101070100263. A cell that nobody solves counts as
  unsolved by all.
  """
  times = np.asarray(times, float)
  times = np.where(np.isnan(times), math.inf, times)
  if times.ndim != 2 or not times.size or not np.all(times > 0):
    raise ValueError(f"times {times.shape} must be [methods, cells] and > 0.")
  if not 1 < to < math.inf:
    raise ValueError(f"to={to} must be finite and > 1.")
  best = times.min(0)
  ratio = times / np.where(np.isinf(best), 1, best)
  factors = np.unique([1.0, to, *ratio[ratio <= to]])
  share = (ratio[:, None] <= factors[:, None]).mean(-1)
  integral = np.clip((to - ratio) / (to - 1), 0, None).mean(1)
  return Profile(factors, share, integral)
