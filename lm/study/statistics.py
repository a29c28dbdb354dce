"""Intervals and verdicts: pure functions of paired arrays.

A claim and its threshold are written down before the runs. The claim is
reproduced if a 90 % interval lies on its side of the threshold, not reproduced
if it lies on the other side, and else undecided.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import special

ALPHA = 0.05  # Of every one-sided test, so intervals are of 90 %.
REPRODUCED, NOT, UNDECIDED = "reproduced", "not reproduced", "undecided"


class Interval(NamedTuple):
  """An estimate, the ends of its interval, and how they were found."""

  estimate: float
  low: float
  high: float
  how: str

  def of(self, function) -> "Interval":
    """The interval of an increasing function."""
    estimate, low, high = (float(function(value)) for value in self[:3])
    return Interval(estimate, low, high, self.how)


class Verdict(NamedTuple):
  """What n seeds (cells, draws) say of a claim; p is one-sided, or nan."""

  kind: str
  estimate: float
  low: float
  high: float
  n: int
  rule: str
  p: float


def mean_interval(values, level=1 - 2 * ALPHA) -> Interval:
  """t-interval of the mean of values [n], one a seed.

  If any value is not finite, the sign test's interval of the median: a value is
  +inf where only the method failed, -inf where only the reference did, and nan,
  which may lie anywhere, where both did.
  """
  x, tail = _vector("values", values), (1 - level) / 2
  n, half = x.size, math.inf
  if np.isfinite(x).all():
    if n > 1:
      half = special.stdtrit(n - 1, 1 - tail) * x.std(ddof=1) / math.sqrt(n)
    how = f"{level:.0%} t-interval of the mean"
    return Interval(x.mean(), x.mean() - half, x.mean() + half, how).of(float)
  # The chance that the median is beyond the cut-th value from one end.
  beyond = np.append(0, special.bdtr(np.arange(n), n, 0.5))
  cut = int(np.sum(beyond <= tail)) - 1
  method, reference = np.sum(x < math.inf), np.sum(x > -math.inf)
  how = f"{1 - 2 * beyond[cut]:.1%} interval of order by the sign test; the "
  how += f"method succeeded in {method} of {n}, the reference in {reference}"
  return _ordered(x, cut, f"{how} of {n}")


def lower(difference, threshold=0.0) -> Verdict:
  """Whether the mean of method less reference [n], by seed, is <= threshold."""
  x = _vector("difference", difference)
  found, claim = mean_interval(x), f"difference <= {threshold:g}"
  yes, no = found.high <= threshold, found.low > threshold
  return _verdict(claim, yes, no, found, x.size, _below(x, threshold))


def faster(log_ratio, threshold) -> Verdict:
  """Whether a ratio, of method over reference by seed, is <= threshold > 0.

  log_ratio [n] is censored as in `mean_interval`. The interval is of ratios.
  """
  x = _vector("log_ratio", log_ratio, threshold=threshold)
  found = lower(x, math.log(threshold))
  estimate, low, high = np.exp(found[1:4]).tolist()
  rule = f"ratio <= {threshold:g};{found.rule.partition(';')[2]}"
  return found._replace(estimate=estimate, low=low, high=high, rule=rule)


def equal(difference, margin) -> Verdict:
  """Whether a mean [n] is within +-margin: two one-sided tests (TOST)."""
  x = _vector("difference", difference, margin=margin)
  found, claim = mean_interval(x), f"|difference| <= {margin:g}"
  yes = -margin <= found.low and found.high <= margin
  no = found.low > margin or found.high < -margin
  p = max(_below(x, margin), _below(-x, margin))
  return _verdict(claim, yes, no, found, x.size, p)


def percentiles(draws) -> Interval:
  """Median and the 5 % and 95 % draw of [m]; nan, a failed fit, may be any."""
  x = _vector("draws", draws)
  how = f"90% of {x.size} draws, {np.sum(~np.isnan(x))} of them known"
  return _ordered(x, int(ALPHA * (x.size - 1)) + 1, how)


def exponent(draws, centre, tol) -> Verdict:
  """Whether a fitted parameter is in centre +- tol: 90 % of draws [m] are.

  Not reproduced if 90 % are outside. nan, a fit that failed, is neither.
  """
  x = _vector("draws", draws, tol=tol)
  gap, most = np.abs(x - centre), (1 - 2 * ALPHA) * x.size
  inside, outside = int(np.sum(gap <= tol)), int(np.sum(gap > tol))
  claim = f"in {centre:g} +- {tol:g} are {inside} draws"
  p = (x.size - inside + 1) / (x.size + 1) / 2  # 5 % where the rule turns.
  found, yes, no = percentiles(x), inside >= most, outside >= most
  return _verdict(claim, yes, no, found, x.size, p)


def better_prediction(err_a, err_b, rng=None) -> Verdict:
  """Whether a has the smaller mean error than b over the same cells [k].

  Sign-flip permutation test; the interval holds the differences a - b that the
  test does not reject. Beyond 14 cells, 2^14 patterns are drawn by `rng`, a
  NumPy generator (None: of seed 0). Below 5 cells the verdict is undecided.
  """
  a, b = _vector("err_a", err_a), _vector("err_b", err_b)
  if a.size != b.size or not np.isfinite([a, b]).all():
    raise ValueError(f"err_a={a}, err_b={b} must be finite, in the same cells.")
  x, k = a - b, a.size
  flips = np.arange(2 ** min(k, 14))[:, None] >> np.arange(k) & 1
  if k > 14:
    flips = (rng or np.random.default_rng(0)).integers(2, size=flips.shape)
  flips = flips[flips.any(1)]
  # A pattern is as extreme as the data if the mean of what it flips is >= 0.
  means = flips @ x / flips.sum(1)
  means[np.abs(means) <= 1e-12 * np.abs(x).max()] = 0
  total = means.size + 1  # With the pattern that flips nothing.
  found = _ordered(means, int(ALPHA * total), f"{total} patterns of signs")
  found = found._replace(estimate=float(x.mean()))
  yes, no, p = found.high < 0, found.low > 0, (1 + np.sum(means >= 0)) / total
  return _verdict("mean error of a < that of b", yes, no, found, k, float(p))


def holm(p) -> np.ndarray:
  """Holm's adjusted p [m]; nan, a claim without p, stays and does not count."""
  p = np.asarray(p, float)
  order = np.argsort(p)[: np.sum(~np.isnan(p))]
  steps = np.arange(order.size, 0, -1) * p[order]
  out = np.full(p.size, math.nan)
  out[order] = np.minimum(np.maximum.accumulate(steps), 1)
  return out


def corrected(verdicts) -> list[Verdict]:
  """All verdicts of a study; by Holm's p >= 5 %, "reproduced" is undecided."""
  out = []
  for v, p in zip(verdicts, holm([v.p for v in verdicts]), strict=True):
    rule = f"{v.rule}; raw: {v.kind}, p by Holm {p:.2g}"
    kind = UNDECIDED if v.kind == REPRODUCED and p >= ALPHA else v.kind
    out.append(v._replace(kind=kind, rule=rule))
  return out


def bootstrap(function, n_seeds, draws, rng) -> np.ndarray:
  """[draws, ...] values of function(indices [n_seeds]) of resampled seeds.

  Their order must not matter. Means of few resampled seeds are too close
  together: so draws are spread about function(all seeds) by sqrt(n / (n - 1))
  and t over normal, and the interval of a mean is about `mean_interval`.
  """
  if n_seeds < 2 or draws < 1:
    raise ValueError(f"{n_seeds=} must be >= 2 and {draws=} must be >= 1.")
  picks = np.sort(rng.integers(n_seeds, size=(draws, n_seeds)))
  each, place = np.unique(picks, axis=0, return_inverse=True)
  found = np.array([function(pick) for pick in each], float)[place.ravel()]
  centre = np.asarray(function(np.arange(n_seeds)), float)
  wide = special.stdtrit(n_seeds - 1, 1 - ALPHA) / special.ndtri(1 - ALPHA)
  return centre + wide * math.sqrt(n_seeds / (n_seeds - 1)) * (found - centre)


def _verdict(claim, yes, no, found: Interval, n, p) -> Verdict:
  kind = REPRODUCED if yes else NOT if no else UNDECIDED
  return Verdict(kind, *found[:3], n, f"{claim}; {found.how}", p)


def _below(x, limit) -> float:
  """One-sided p of "the mean (of censored x the median) is below limit"."""
  if not np.isfinite(x).all():
    return float(special.bdtr(int(np.sum(~(x < limit))), x.size, 0.5))
  if x.size == 1:
    return math.nan
  gap, stderr = x.mean() - limit, x.std(ddof=1) / math.sqrt(x.size)
  return float(special.stdtr(x.size - 1, gap / stderr) if stderr else gap > 0)


def _ordered(x, cut, how) -> Interval:
  """Median, and the cut-th value from either end; nan may lie anywhere."""
  known, some = x[~np.isnan(x)], np.full(np.sum(np.isnan(x)) + 1, math.inf)
  low, high = np.sort([*-some, *known])[cut], np.sort([*known, *some])[-1 - cut]
  with np.errstate(invalid="ignore"):  # Of inf - inf.
    median = np.median(known) if known.size else math.nan
  return Interval(median, low, high, how).of(float)


def _vector(name, values, **positive) -> np.ndarray:
  x = np.asarray(values, float)
  if x.ndim != 1 or not x.size:
    raise ValueError(f"{name} has shape {x.shape} but must be [n], n >= 1.")
  for key, value in positive.items():
    if not 0 < value < math.inf:
      raise ValueError(f"{key}={value} must be finite and > 0.")
  return x
