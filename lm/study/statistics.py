"""Intervals and verdicts: pure functions of paired arrays.

A claim and its threshold are written down before the runs. A verdict compares a
90 % interval with the threshold: the claim is reproduced if the interval lies
on the side of the claim, not reproduced if the interval lies on the other side,
and otherwise undecided. "Not different" is never "the same": see `equal`.
"""

import math
from typing import NamedTuple

import numpy as np

LEVEL = 0.9  # Of every interval: one-sided tests at 5 %.
ALPHA = (1 - LEVEL) / 2
_EXACT = 14  # Cells up to which every pattern of signs is tried.
REPRODUCED, NOT, UNDECIDED = "reproduced", "not reproduced", "undecided"


class Interval(NamedTuple):
  """An estimate, the two ends of its interval, and how they were found."""

  estimate: float
  low: float
  high: float
  how: str


class Verdict(NamedTuple):
  """What the runs say of a claim.

  Attributes:
    kind: "reproduced", "not reproduced" or "undecided".
    estimate: A ratio, a difference or an exponent, as its function says.
    low: Lower end of the 90 % interval.
    high: Upper end.
    n: Number of seeds, cells or draws.
    rule: The rule, the threshold and what was censored, in words.
    p: One-sided p-value of the claim, for `holm`; nan where there is none.
  """

  kind: str
  estimate: float
  low: float
  high: float
  n: int
  rule: str
  p: float


def mean_interval(values, level=LEVEL) -> Interval:
  """t-interval of a mean, or the sign test's interval of the median.

  The second is used if a value is not finite: +-inf is beyond every number, and
  nan may lie anywhere. Too few values have the interval (-inf, inf).
  """
  x, n = _vector("values", values, finite=False), len(values)
  if np.isfinite(x).all():
    mean, how = float(x.mean()), f"{level:.0%} t-interval of the mean"
    half = math.inf
    if n > 1:
      half = _t().ppf((1 + level) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n)
    return Interval(mean, float(mean - half), float(mean + half), how)
  known = np.sort(x[~np.isnan(x)])
  middle = known[(known.size - 1) // 2 : known.size // 2 + 1]
  median = middle[0] if len(set(middle)) == 1 else np.mean([*middle])
  # Ends left out on either side, and the chance that the median is beyond.
  tails = [sum(math.comb(n, i) for i in range(j + 1)) / 2**n for j in range(n)]
  cut = sum(tail <= (1 - level) / 2 for tail in tails) - 1
  if cut < 0:
    how = f"no {level:.0%} interval of {n} values by the sign test"
    return Interval(float(median), -math.inf, math.inf, how)
  low = np.sort(np.where(np.isnan(x), -math.inf, x))[cut]
  high = np.sort(np.where(np.isnan(x), math.inf, x))[n - 1 - cut]
  how = f"{1 - 2 * tails[cut]:.1%} interval of order of the sign test"
  return Interval(float(median), float(low), float(high), how)


def faster(log_ratio, threshold) -> Verdict:
  """Whether a ratio, e.g. of steps to a target, is at most `threshold`.

  Args:
    log_ratio: [n] log of method over reference, one a seed. +inf if the method
      never reached the target, -inf if only the reference never did, nan if
      neither did.
    threshold: Ratio > 0, half the published effect in logs.

  Returns:
    The verdict; estimate and interval are ratios.
  """
  x = _vector("log_ratio", log_ratio, finite=False)
  limit = math.log(_above_zero("threshold", threshold))
  found = mean_interval(x)
  within = found.high <= limit
  kind = REPRODUCED if within else NOT if found.low > limit else UNDECIDED
  rule = f"ratio <= {threshold:g}; {found.how}"
  if not np.isfinite(x).all():
    both = int(np.isfinite(x).sum())
    rule += f"; {both} of {x.size} reached the target on both sides"
    rule += f", the method in {int((x < math.inf).sum())}"
  ends = (float(np.exp(end)) for end in found[:3])
  return Verdict(kind, *ends, x.size, rule, _below(x, limit))


def equal(difference, margin) -> Verdict:
  """Whether a mean difference lies within +-margin: two one-sided tests.

  Args:
    difference: [n] paired differences; inf or nan for a run that diverged.
    margin: Largest difference that is called equal, > 0.
  """
  x = _vector("difference", difference, finite=False)
  margin = _above_zero("margin", margin)
  found = mean_interval(x)
  kind = UNDECIDED
  if -margin <= found.low and found.high <= margin:
    kind = REPRODUCED
  elif found.low > margin or found.high < -margin:
    kind = NOT
  rule = f"|difference| <= {margin:g}; {found.how}"
  if not np.isfinite(x).all():
    rule += f"; {int(np.isfinite(x).sum())} of {x.size} finite"
  p = max(_below(x, margin), _below(-x, margin))
  return Verdict(kind, *found[:3], x.size, rule, p)


def exponent(draws, centre, tol) -> Verdict:
  """Whether a fitted parameter lies within centre +- tol.

  90 % of the draws inside reproduce the claim, 90 % outside refute the claim. A
  draw of nan, a fit that failed, is on neither side. p is half the share of
  draws that are not inside, so that p is near 5 % where the rule turns.

  Args:
    draws: [m] bootstrap draws of the parameter.
    centre: Middle of the band.
    tol: Half width of the band, > 0.
  """
  x = _vector("draws", draws, finite=False)
  known = x[~np.isnan(x)]
  inside = np.abs(known - centre) <= _above_zero("tol", tol)
  share, out = inside.sum() / x.size, (~inside).sum() / x.size
  kind = REPRODUCED if share >= LEVEL else NOT if out >= LEVEL else UNDECIDED
  rule = f"{LEVEL:.0%} of draws in {centre:g} +- {tol:g}; {share:.1%} are"
  if known.size < x.size:
    rule += f"; {known.size} of {x.size} draws determined it"
  ends = [math.nan] * 3
  if known.size:
    ends = [float(np.quantile(known, q)) for q in (0.5, ALPHA, 1 - ALPHA)]
  p = float((x.size - inside.sum() + 1) / (x.size + 1) / 2)
  return Verdict(kind, *ends, x.size, rule, p)


def better_prediction(err_a, err_b, rng=None) -> Verdict:
  """Whether predictor a has the smaller mean error, paired over cells.

  Sign-flip permutation test. The interval holds the shifts of the difference
  a - b that the test does not reject; it is infinite below 5 cells.

  Args:
    err_a: [k] absolute errors of a.
    err_b: [k] absolute errors of b.
    rng: A NumPy generator, needed beyond 14 cells: 2^14 patterns are drawn.
  """
  a, b = _vector("err_a", err_a), _vector("err_b", err_b)
  if a.size != b.size:
    raise ValueError(f"err_b has {b.size} cells and err_a {a.size}: pair them.")
  x, k = a - b, a.size
  if k > _EXACT and rng is None:
    raise ValueError(f"rng=None: {k} cells need a generator beyond {_EXACT}.")
  if k > _EXACT:
    flips = rng.random((2**_EXACT - 1, k)) < 0.5
    flips = flips[flips.any(1)]
  else:
    flips = np.arange(1, 2**k)[:, None] >> np.arange(k) & 1
  # A pattern is as extreme as the data if the mean of what it flips is >= 0.
  means = np.sort(flips @ x / flips.sum(1))
  means[np.abs(means) < 1e-12 * np.abs(x).max()] = 0
  total = means.size + 1  # With the pattern that flips nothing.
  cut, low, high = int(ALPHA * total) - 1, -math.inf, math.inf
  if cut >= 0:
    low, high = float(means[cut]), float(means[-1 - cut])
  kind = REPRODUCED if high < 0 else NOT if low > 0 else UNDECIDED
  rule = f"mean error of a - b < 0; sign flips, {total} patterns"
  p = (1 + int((means >= 0).sum())) / total
  return Verdict(kind, float(x.mean()), low, high, k, rule, p)


def holm(p) -> np.ndarray:
  """Holm's adjusted p-values [m]; nan, a claim without one, does not count."""
  p = _vector("p", p, finite=False)
  if not np.all(np.isnan(p) | ((p >= 0) & (p <= 1))):
    raise ValueError(f"p={p.tolist()} must be in [0, 1], or nan.")
  order = np.argsort(p)[: np.sum(~np.isnan(p))]
  steps = np.arange(order.size, 0, -1) * p[order]
  out = np.full(p.size, math.nan)
  out[order] = np.minimum(np.maximum.accumulate(steps), 1)
  return out


def corrected(verdicts) -> list[Verdict]:
  """The verdicts of one study after Holm's correction over them all.

  "reproduced" with an adjusted p >= 5 % becomes "undecided". The rule tells the
  adjusted p, and the raw kind where the correction changed the kind.
  """
  count, out = sum(not math.isnan(v.p) for v in verdicts), []
  adjusted = holm([v.p for v in verdicts]) if verdicts else []
  for verdict, p in zip(verdicts, adjusted, strict=True):
    rule, kind = verdict.rule, verdict.kind
    if not math.isnan(p):
      rule += f"; Holm over {count}: p = {p:.2g}"
    if kind == REPRODUCED and p >= ALPHA:
      kind, rule = UNDECIDED, f"{rule} (raw: {kind})"
    out.append(verdict._replace(kind=kind, rule=rule))
  return out


def bootstrap(function, n_seeds, draws, rng, widen=True) -> np.ndarray:
  """Draws of an estimate under resampled seeds.

  Few seeds resampled are too close together: of 3 seeds a 90 % interval covers
  70 %. So draws are spread about the estimate, by sqrt(n / (n - 1)) and by what
  Student's t is wider than the normal; for a mean the interval is then nearly
  `mean_interval`.

  Args:
    function: indices [n_seeds] -> a number or an array; nan where a fit fails.
    n_seeds: Seeds, at least 2: one seed says nothing of other seeds.
    draws: Number of draws.
    rng: A NumPy generator.
    widen: Whether to spread the draws.

  Returns:
    [draws, ...].
  """
  for name, value, least in (("n_seeds", n_seeds, 2), ("draws", draws, 1)):
    if value < least:
      raise ValueError(f"{name}={value} must be at least {least}.")
  found = np.array(
    [function(rng.integers(n_seeds, size=n_seeds)) for _ in range(draws)], float
  )
  if not widen:
    return found
  centre = np.asarray(function(np.arange(n_seeds)), float)
  from scipy import stats

  wide = _t().ppf(1 - ALPHA, n_seeds - 1) / stats.norm.ppf(1 - ALPHA)
  return centre + wide * math.sqrt(n_seeds / (n_seeds - 1)) * (found - centre)


def _below(x, limit) -> float:
  """One-sided p-value of "the mean (or median) is below the limit"."""
  n = x.size
  if not np.isfinite(x).all():
    hits = int((x < limit).sum())
    return sum(math.comb(n, i) for i in range(hits, n + 1)) / 2**n
  if n == 1:
    return math.nan
  gap, stderr = float(x.mean() - limit), float(x.std(ddof=1)) / math.sqrt(n)
  if stderr == 0:
    return float(gap > 0)
  return float(_t().cdf(gap / stderr, n - 1))


def _t():
  from scipy import stats  # Slow to import; few programs need it.

  return stats.t


def _vector(name, values, finite=True) -> np.ndarray:
  x = np.asarray(values, float)
  if x.ndim != 1 or not x.size:
    raise ValueError(f"{name} has shape {x.shape}; it must be [n] with n >= 1.")
  if finite and not np.isfinite(x).all():
    raise ValueError(f"{name}={x.tolist()} must be finite.")
  return x


def _above_zero(name, value) -> float:
  if not 0 < value < math.inf:
    raise ValueError(f"{name}={value} must be a finite number > 0.")
  return float(value)
