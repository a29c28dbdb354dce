"""Intervals and verdicts: pure functions of paired arrays.

A claim and its threshold are written down before the runs. A verdict compares a
90 % interval with the threshold: the claim is reproduced if the interval lies
on its side, not reproduced if the interval lies on the other side, and else
undecided. "Not different" is never "the same": see `equal`.
"""

import math
from typing import NamedTuple

import numpy as np

ALPHA = 0.05  # Of every one-sided test, so intervals are of 90 %.
REPRODUCED, NOT, UNDECIDED = "reproduced", "not reproduced", "undecided"
_EXACT = 14  # Cells up to which every pattern of signs is tried.


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
  """What n seeds (cells, draws) say of a claim; p one-sided for `holm`, or nan.

  `rule` tells the rule, the threshold, and "k of n" where runs were censored.
  """

  kind: str
  estimate: float
  low: float
  high: float
  n: int
  rule: str
  p: float


def mean_interval(values, level=1 - 2 * ALPHA) -> Interval:
  """t-interval of the mean of values [n].

  If a value is not finite, the sign test's interval of the median: +-inf is
  beyond every number, nan may lie anywhere. (-inf, inf) of too few values.
  """
  x, tail = _vector("values", values), (1 - level) / 2
  n, half = x.size, math.inf
  if np.isfinite(x).all():
    mean = float(x.mean())
    if n > 1:
      half = float(_t().ppf(1 - tail, n - 1) * x.std(ddof=1) / math.sqrt(n))
    how = f"{level:.0%} t-interval of the mean"
    return Interval(mean, mean - half, mean + half, how)
  known = np.sort(x[~np.isnan(x)]).tolist()
  middle = {*known[(len(known) - 1) // 2 : len(known) // 2 + 1]}
  median = sum(middle) / len(middle) if known else math.nan
  # The chance that the median is beyond the (cut + 1)-th value from one end.
  beyond = np.cumsum([math.comb(n, i) for i in range(n)]) / 2**n
  cut = int(np.sum(beyond <= tail)) - 1
  if cut < 0:
    how = f"no {level:.0%} interval of {n} by the sign test"
    return Interval(median, -math.inf, math.inf, how)
  low = np.sort(np.where(np.isnan(x), -math.inf, x))[cut]
  high = np.sort(np.where(np.isnan(x), math.inf, x))[n - 1 - cut]
  how = f"{1 - 2 * beyond[cut]:.1%} interval of order by the sign test"
  return Interval(median, float(low), float(high), how)


def lower(difference, threshold=0.0) -> Verdict:
  """Whether a mean is at most `threshold`.

  difference [n] is method less reference, one a seed: +inf if only the method
  failed, -inf if only the reference failed, nan if both failed.
  """
  x = _vector("difference", difference)
  found = mean_interval(x)
  rule = f"difference <= {threshold:g}; {found.how}"
  if not np.isfinite(x).all():
    # Of nan the method failed as well: nan < inf is false.
    rule += f"; the method reached the target in {np.sum(x < math.inf)} of "
    rule += f"{x.size}, the reference in {np.sum(x > -math.inf)} of {x.size}"
  kind = _kind(found.high <= threshold, found.low > threshold)
  return Verdict(kind, *found[:3], x.size, rule, _below(x, threshold))


def faster(log_ratio, threshold) -> Verdict:
  """Whether a ratio, e.g. of steps to a target, is at most `threshold` > 0.

  log_ratio [n] is the log of method over reference as in `lower`, where to fail
  is never to reach the target. Estimate and interval are ratios.
  """
  limit = math.log(_above_zero("threshold", threshold))
  found = lower(_vector("log_ratio", log_ratio), limit)
  estimate, low, high = (float(np.exp(end)) for end in found[1:4])
  rule = f"ratio <= {threshold:g}; {found.rule.split('; ', 1)[1]}"
  return Verdict(found.kind, estimate, low, high, found.n, rule, found.p)


def equal(difference, margin) -> Verdict:
  """Whether a mean is within +-margin: two one-sided tests (TOST).

  difference [n] is paired by seed, inf or nan for a run that diverged.
  """
  x, margin = _vector("difference", difference), _above_zero("margin", margin)
  found = mean_interval(x)
  rule = f"|difference| <= {margin:g}; {found.how}"
  if not np.isfinite(x).all():
    rule += f"; {np.sum(np.isfinite(x))} of {x.size} are finite"
  yes = -margin <= found.low and found.high <= margin
  no = found.low > margin or found.high < -margin
  p = max(_below(x, margin), _below(-x, margin))
  return Verdict(_kind(yes, no), *found[:3], x.size, rule, p)


def percentiles(draws) -> Interval:
  """Median and the 5 % and 95 % draw of [m]; nan, a failed fit, may be any."""
  x = _vector("draws", draws)
  low = np.quantile(np.where(np.isnan(x), -math.inf, x), ALPHA, method="lower")
  top = np.where(np.isnan(x), math.inf, x)
  high = np.quantile(top, 1 - ALPHA, method="higher")
  known = x[~np.isnan(x)]
  middle = float(np.median(known)) if known.size else math.nan
  how = f"90% of {x.size} draws, {known.size} of them known"
  return Interval(middle, float(low), float(high), how)


def exponent(draws, centre, tol) -> Verdict:
  """Whether a fitted parameter is in centre +- tol: 90 % of draws [m] are.

  Not reproduced if 90 % are outside. nan, a fit that failed, is neither. p is
  half the share of draws that are not inside: 5 % where the rule turns.
  """
  x, tol = _vector("draws", draws), _above_zero("tol", tol)
  gap = np.abs(x - centre)
  inside, outside = int(np.sum(gap <= tol)), int(np.sum(gap > tol))
  most, found = (1 - 2 * ALPHA) * x.size, percentiles(x)
  rule = f"in {centre:g} +- {tol:g} are {inside} draws; {found.how}"
  p = (x.size - inside + 1) / (x.size + 1) / 2
  kind = _kind(inside >= most, outside >= most)
  return Verdict(kind, *found[:3], x.size, rule, p)


def better_prediction(err_a, err_b, rng=None) -> Verdict:
  """Whether a has the smaller mean error than b over the same cells [k].

  Sign-flip permutation test; the interval holds the differences a - b that the
  test does not reject. Beyond 14 cells `rng`, a NumPy generator, draws 2^14
  patterns. Below 5 cells the verdict is undecided.
  """
  a, b = _vector("err_a", err_a), _vector("err_b", err_b)
  if a.size != b.size or not np.isfinite([a, b]).all():
    raise ValueError(f"err_a={a}, err_b={b} must be finite, in the same cells.")
  x, k = a - b, a.size
  if k <= _EXACT:
    flips = np.arange(1, 2**k)[:, None] >> np.arange(k) & 1
  elif rng is None:
    raise ValueError(f"rng=None, but {k} cells (> {_EXACT}) need a generator.")
  else:
    flips = rng.integers(2, size=(2**_EXACT, k))
    flips = flips[flips.any(1)]
  # A pattern is as extreme as the data if the mean of what it flips is >= 0.
  means = np.sort(flips @ x / flips.sum(1))
  means[np.abs(means) <= 1e-12 * np.abs(x).max()] = 0
  total = means.size + 1  # With the pattern that flips nothing.
  low, high = -math.inf, math.inf
  if (cut := int(ALPHA * total) - 1) >= 0:
    low, high = float(means[cut]), float(means[-1 - cut])
  rule = f"mean error of a below that of b; {total} patterns of signs"
  p = (1 + int(np.sum(means >= 0))) / total
  kind = _kind(high < 0, low > 0)
  return Verdict(kind, float(x.mean()), low, high, k, rule, p)


def holm(p) -> np.ndarray:
  """Holm's adjusted p [m]; nan, a claim without p, stays and does not count."""
  p = _vector("p", p)
  if np.any((p < 0) | (p > 1)):
    raise ValueError(f"p={p.tolist()} must be in [0, 1], or nan.")
  order = np.argsort(p)[: np.sum(~np.isnan(p))]
  steps = np.arange(order.size, 0, -1) * p[order]
  out = np.full(p.size, math.nan)
  out[order] = np.minimum(np.maximum.accumulate(steps), 1)
  return out


def corrected(verdicts) -> list[Verdict]:
  """All verdicts of a study after Holm's correction, the raw kind in the rule.

  "reproduced" with an adjusted p >= 5 % becomes "undecided".
  """
  out = []
  adjusted = holm([v.p for v in verdicts]) if verdicts else []
  for verdict, p in zip(verdicts, adjusted, strict=True):
    lost = verdict.kind == REPRODUCED and p >= ALPHA
    rule = f"{verdict.rule}; raw: {verdict.kind}, p by Holm {p:.2g}"
    kind = UNDECIDED if lost else verdict.kind
    out.append(verdict._replace(kind=kind, rule=rule))
  return out


def bootstrap(function, n_seeds, draws, rng) -> np.ndarray:
  """[draws, ...] values of function(indices [n_seeds]) of resampled seeds.

  The order of the seeds must not matter: each set of seeds is computed once.
  Resampled means of few seeds are too close together. So draws are spread about
  function(all seeds) by sqrt(n / (n - 1)), and by Student's t over the normal:
  for a mean the interval is then about `mean_interval`. Give logs of ratios.
  """
  if n_seeds < 2 or draws < 1:
    raise ValueError(f"{n_seeds=} must be >= 2 and {draws=} must be >= 1.")
  picks = np.sort(rng.integers(n_seeds, size=(draws, n_seeds)))
  each, place = np.unique(picks, axis=0, return_inverse=True)
  found = np.array([function(pick) for pick in each], float)[place.ravel()]
  centre = np.asarray(function(np.arange(n_seeds)), float)
  wide = _t().ppf(1 - ALPHA, n_seeds - 1) / _t().ppf(1 - ALPHA, math.inf)
  return centre + wide * math.sqrt(n_seeds / (n_seeds - 1)) * (found - centre)


def _kind(yes, no) -> str:
  return REPRODUCED if yes else NOT if no else UNDECIDED


def _below(x, limit) -> float:
  """One-sided p of "the mean (of censored x the median) is below limit"."""
  n = x.size
  if not np.isfinite(x).all():
    hits = int(np.sum(x < limit))
    return sum(math.comb(n, i) for i in range(hits, n + 1)) / 2**n
  if n == 1:
    return math.nan
  gap, stderr = x.mean() - limit, x.std(ddof=1) / math.sqrt(n)
  return float(_t().cdf(gap / stderr, n - 1) if stderr else gap > 0)


def _t():
  from scipy import stats  # Slow to import, and comes with jax.

  return stats.t


def _vector(name, values) -> np.ndarray:
  x = np.asarray(values, float)
  if x.ndim != 1 or not x.size:
    raise ValueError(f"{name} has shape {x.shape} but must be [n], n >= 1.")
  return x


def _above_zero(name, value) -> float:
  if not 0 < value < math.inf:
    raise ValueError(f"{name}={value} must be finite and > 0.")
  return float(value)
