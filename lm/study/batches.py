"""The critical batch size, read from steps to a target.

A fit of steps = a + b / B gives b / a, the batch at which both steps and
samples are twice their least, and from it two definitions, side by side:
`free` = over b / a, where samples exceed their least by `over`, and `paper` =
(1 + over) B_ref + over b / a, where steps exceed linear scaling from B_ref by
`over`. Their exponents in data differ (.62 and .47 on the paper's counts).
`measured` is the paper's batch read off the steps without the form a + b / B.

Dimension key: J targets, S seeds, B batches, M draws. a is in steps; batches, b
and b / a are in rows. Source: https://arxiv.org/abs/2410.21676.
"""

import math
from typing import NamedTuple

import numpy as np

import theory

from . import curves, statistics
from .statistics import Interval


class BatchFit(NamedTuple):
  """a, b, and batches with 90 % intervals; nan where undetermined.

  `notes` tells which batches did not reach the target in all seeds ("k of n"),
  which were left out, and why a reading is nan.
  """

  steps_min: float
  samples_min: float
  ratio: Interval
  free: Interval
  paper: Interval
  measured: Interval
  notes: tuple[str, ...]


class DataLaw(NamedTuple):
  """Batch = k D^p, by reading: "ratio" (p of `free` too), "paper", "measured".

  data [J] is b in tokens, or x; batch [J] in rows; draws [M] of p are for
  `statistics.exponent`.
  """

  data: np.ndarray
  batch: dict[str, np.ndarray]
  slope: dict[str, Interval]
  draws: dict[str, np.ndarray]
  fits: tuple[BatchFit, ...]


def crossings(runs, targets) -> tuple[np.ndarray, np.ndarray]:
  """Steps to each target (inf: never) and re-crossings, both [J, S, B].

  runs[s][i] is the curve (steps [n], losses [n]) of seed s at batch i.
  """
  found = [
    [[curves.crossing(*run, target=goal) for run in seed] for seed in runs]
    for goal in targets
  ]
  return np.array(found)[..., 0], np.array(found)[..., 1].astype(int)


def fit(batches, steps, rng, reference=None, over=0.2, draws=1000) -> BatchFit:
  """Reads the critical batch from steps [S, B] at batches [B]; inf: censored.

  `theory.steps_fit` of the seeds' mean log steps, or of their median where some
  are censored; a batch whose median is censored is left out. `reference` is
  B_ref, one of batches (None: the first). Intervals: `statistics.bootstrap`
  over seeds with the NumPy generator rng; infinite for one seed.
  """
  steps = np.asarray(steps, float)[None]
  return _fits(batches, steps, rng, reference, over, draws)[0][0]


def data_law(
  batches, steps, rng, row_tokens, x=None, reference=None, over=0.2, draws=1000
) -> DataLaw:
  """The exponent of the batch in data, by `theory.cbs_law`; see also `fit`.

  Target j of steps [J, S, B] has the least data D_j = b_j row_tokens, or x [J],
  e.g. sizes of models. The bootstrap resamples seeds, the same for all targets,
  and targets. A target whose reading is nan in `batch` is left out.
  """
  sizes = np.array([row_tokens] * len(steps) if x is None else x, float)
  if sizes.shape != (len(steps),) or not np.all(sizes > 0):
    raise ValueError(f"{row_tokens=} and {x=} [{len(steps)}] must be > 0.")
  fits, read, many = _fits(batches, steps, rng, reference, over, draws)
  for logs in (read, many):
    logs[..., 0] = np.log(sizes) + (logs[..., 0] if x is None else 0)
  batch, slope, drawn = {}, {}, {}
  for i, name in enumerate(("ratio", "paper", "measured"), 1):
    kept = np.flatnonzero(np.isfinite(read[:, i]))
    some = [_slope(logs[_picked(kept, rng)][:, [0, i]]) for logs in many]
    batch[name], drawn[name] = np.exp(read[:, i]), np.array(some)
    found = statistics.percentiles(drawn[name])
    slope[name] = found._replace(estimate=_slope(read[kept][:, [0, i]]))
  return DataLaw(np.exp(read[:, 0]), batch, slope, drawn, fits)


def theory_curve(samples, batches, a=1.5, b=3.0, sigma2=0.25, over=0.2):
  """Exact B* [n] of least squares at samples [n], to draw beside a study.

  `theory.critical_batch` at the best constant steps; nan for the last few. The
  two exponents and the noise are those of notebooks/theory_05_critical_batch.
  """
  problem = theory.power_law(1e5, a, b, sigma2, nodes=4)
  etas = theory.eta_grid(problem, batches, 18, 3e-4)
  table = theory.risk_table(problem, etas, batches, samples)
  return theory.critical_batch(table, batches, samples, over)


def _fits(batches, steps, rng, reference, over, draws):
  """BatchFits [J]; logs of (b, b / a, paper, measured) [J, 4], [M, J, 4]."""
  batches, steps = np.asarray(batches, float), np.asarray(steps, float)
  if not (np.all(batches > 0) and np.all(np.diff(batches) > 0)):
    raise ValueError(f"batches={batches.tolist()} must be > 0 and increase.")
  if steps.ndim != 3 or steps.shape[2] != batches.size or not steps.size:
    raise ValueError(f"steps {steps.shape} must end in [S, {batches.size}].")
  if not (np.all(steps > 0) and over > 0):
    raise ValueError(f"{over=} and all steps must be > 0; inf is censored.")
  if reference is not None and reference not in batches:
    raise ValueError(f"{reference=} must be one of {batches.tolist()}.")
  at = 0 if reference is None else int(np.argmax(batches == reference))

  def read(pick):
    return [_read(batches, each[pick], at, over)[0] for each in steps]

  seeds, fits = steps.shape[1], []
  found = np.array(read(np.arange(seeds)))
  many = np.full((draws, *found.shape), math.nan)
  if seeds > 1:
    many = statistics.bootstrap(read, seeds, draws, rng)
  for j, logs in enumerate(found):
    ratio, paper, measured = (
      statistics.percentiles(many[:, j, i])
      ._replace(estimate=logs[i])
      .of(np.exp)
      for i in (1, 2, 3)
    )
    free = ratio.of(lambda value: over * value)
    a, b = float(np.exp(logs[0] - logs[1])), float(np.exp(logs[0]))
    notes = tuple(_read(batches, steps[j], at, over)[1])
    fits.append(BatchFit(a, b, ratio, free, paper, measured, notes))
  return tuple(fits), found, many


def _read(batches, steps, at, over):
  """Logs of (b, b / a, paper, measured) from steps [S, B], and notes."""
  n, reached, log_steps = len(steps), np.isfinite(steps).sum(0), np.log(steps)
  middle = np.where(reached == n, log_steps.mean(0), np.median(log_steps, 0))
  kept, out, notes = np.isfinite(middle), np.full(4, math.nan), []
  for i in np.flatnonzero(reached < n):
    left = "" if kept[i] else ", left out of the fit"
    notes.append(f"batch {batches[i]:g}: {reached[i]} of {n} reached{left}")
  try:
    rows, typical = batches[kept], np.exp(middle[kept])
    a, b, critical = theory.steps_fit(rows, typical, batches[at], over)
    out[:3] = np.log([b, b / a, critical])
  except theory.UndeterminedError as error:
    notes.append(f"no fit: {error}")
  data = middle + np.log(batches)  # Log rows; no reading if B_ref is censored.
  excess = data - (data[at] if kept[at] else math.nan)
  past = np.flatnonzero(excess[at:] > math.log(1 + over))
  if past.size and np.isfinite(excess[k := at + past[0]]):
    (x, y), (low, high) = batches[k - 1 : k + 1], np.exp(excess[k - 1 : k + 1])
    out[3] = math.log(x + (1 + over - low) / (high - low) * (y - x))
  else:
    notes.append(f"no batch measured at {over:.0%} over linear scaling")
  return out, notes


def _picked(kept, rng):
  """Targets drawn with replacement, two distinct ones at least."""
  pick = kept
  while kept.size > 2 and not np.ptp(pick := rng.choice(kept, kept.size)):
    pass
  return pick


def _slope(logs) -> float:
  """Exponent of logs [J, 2]; nan if they determine none."""
  try:
    return theory.cbs_law(*np.exp(logs).T).params["p"]
  except ValueError:
    return math.nan
