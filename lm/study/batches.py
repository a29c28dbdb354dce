"""The critical batch size (https://arxiv.org/abs/2410.21676).

A fit of steps to a target = a + b / B gives b / a, the batch at which steps and
samples are twice their least, and two definitions of the critical batch: `free`
= over b / a, where samples exceed their least by `over`, and `paper` = (1 +
over) B_ref + over b / a, where steps exceed linear scaling from B_ref by it.
`measured` is `paper` without the form a + b / B. Batches, b and b / a are in
rows. Dimension key: J targets, S seeds, B batches, M draws.
"""

import math
from typing import NamedTuple

import numpy as np

import theory

from .curves import crossing
from .statistics import Interval, bootstrap, percentiles


class BatchFit(NamedTuple):
  """a, b, and batches with 90 % intervals; nan where undetermined.

  `notes` tells "k of n" of censored batches, and why a reading is nan. logs
  [1 + M, 4] of b, ratio, paper and measured are of all seeds, then of draws.
  """

  steps_min: float
  samples_min: float
  ratio: Interval
  free: Interval
  paper: Interval
  measured: Interval
  notes: tuple[str, ...]
  logs: np.ndarray


class DataLaw(NamedTuple):
  """Batch = k D^p, by reading: "ratio" (p of `free` too), "paper", "measured".

  data [J] is b in tokens, or x; batch [J] in rows; draws [M] are of p.
  """

  data: np.ndarray
  batch: dict[str, np.ndarray]
  slope: dict[str, Interval]
  draws: dict[str, np.ndarray]
  fits: list[BatchFit]


def crossings(runs, targets) -> tuple[np.ndarray, np.ndarray]:
  """Steps to each target (inf: never) and re-crossings, both [J, S, B].

  runs[s][i] is the curve (steps [n], losses [n]) of seed s at batch i.
  """
  found = np.array(
    [[[crossing(*r, target=at) for r in s] for s in runs] for at in targets]
  )
  return found[..., 0], found[..., 1].astype(int)


def fit(batches, steps, rng, reference=None, over=0.2, draws=1000) -> BatchFit:
  """Reads the critical batch from steps [S, B] at batches [B]; inf: censored.

  `theory.steps_fit` of the seeds' mean log steps, or of their median where some
  are censored; a batch whose median is censored is left out. `reference` is
  B_ref (None: the first batch). Intervals are of M draws by `bootstrap` and the
  NumPy generator rng, infinite for one seed.
  """
  rows, steps = np.asarray(batches, float), np.asarray(steps, float)
  if steps.ndim != 2 or steps.shape[1:] != rows.shape or not np.all(steps > 0):
    raise ValueError(f"steps {steps.shape} must be > 0 and [S, {rows.size}].")
  if not (np.all(np.diff(rows, prepend=0) > 0) and over > 0):
    raise ValueError(f"{batches=} must be > 0 and increase, {over=} > 0.")
  options = (rows[0] if reference is None else reference, over)
  logs, notes = _read(rows, steps, *options)
  many = np.full((draws, 4), math.nan)
  if len(steps) > 1:
    read = lambda pick: _read(rows, steps[pick], *options)[0]  # noqa: E731
    many = bootstrap(read, len(steps), draws, rng)
  b, ratio, paper, measured = (
    percentiles(some)._replace(estimate=log).of(np.exp)
    for log, some in zip(logs, many.T, strict=True)
  )
  read = (ratio, ratio.of(lambda batch: over * batch), paper, measured)
  a, logs = b.estimate / ratio.estimate, np.vstack([logs, many])
  return BatchFit(a, b.estimate, *read, notes, logs)


def data_law(
  batches, steps, rng, row_tokens, x=None, reference=None, over=0.2, draws=1000
) -> DataLaw:
  """The exponent of the batch in data, by `theory.cbs_law`; see also `fit`.

  Target j of steps [J, S, B] has the least data D_j = b_j row_tokens, or x [J],
  e.g. sizes of models. The bootstrap resamples seeds, the same for all targets,
  and targets. A target whose reading is nan is left out.
  """
  sizes = np.array([row_tokens] * len(steps) if x is None else x, float)
  if sizes.shape != (len(steps),) or not np.all(sizes > 0):
    raise ValueError(f"{row_tokens=} and {x=} [{len(steps)}] must be > 0.")
  seeds, rest = rng.integers(2**63), (reference, over, draws)
  fits = [fit(batches, y, np.random.default_rng(seeds), *rest) for y in steps]
  logs = np.stack([found.logs for found in fits], 1)  # [1 + M, J, 4]
  logs[..., 0] = np.log(sizes) + (logs[..., 0] if x is None else 0)
  law = DataLaw(np.exp(logs[0, :, 0]), {}, {}, {}, fits)
  for i, name in enumerate(("ratio", "paper", "measured"), 1):
    first, *some = logs[:, np.isfinite(logs[0, :, i])][..., [0, i]]
    law.batch[name] = np.exp(logs[0, :, i])
    law.draws[name] = np.array([_slope(y, key) for key, y in enumerate(some)])
    interval = percentiles(law.draws[name])
    law.slope[name] = interval._replace(estimate=_slope(first))
  return law


def theory_curve(samples, batches, a=1.5, b=3.0, sigma2=0.25, over=0.2):
  """Exact B* [n] of least squares at samples [n]; nan for the last few."""
  # The exponents and the noise are those of notebooks/theory_05_critical_batch.
  problem = theory.power_law(1e5, a, b, sigma2, nodes=4)
  etas = theory.eta_grid(problem, batches, 18, 3e-4)
  table = theory.risk_table(problem, etas, batches, samples)
  return theory.critical_batch(table, batches, samples, over)


def _read(batches, steps, reference, over):
  """Logs of (b, b / a, paper, measured) from steps [S, B], and notes."""
  n, reached, logs = len(steps), np.isfinite(steps).sum(0), np.log(steps)
  typical = np.exp(np.where(reached == n, logs.mean(0), np.median(logs, 0)))
  kept, out, notes = np.isfinite(typical), np.full(4, math.nan), []
  for i in np.flatnonzero(reached < n):
    left = "" if kept[i] else ", left out of the fit"
    notes.append(f"batch {batches[i]:g}: {reached[i]} of {n} reached{left}")
  rows, samples = batches[kept], (batches * typical)[kept]
  try:
    a, b, paper = theory.steps_fit(rows, samples / rows, reference, over)
    out[:3] = np.log([b, b / a, paper])
  except theory.UndeterminedError as error:
    notes.append(f"no fit: {error}")
  rows, samples = rows[rows >= reference], samples[rows >= reference]
  if reference in rows and max(samples) > (most := (1 + over) * samples[0]):
    out[3] = np.log(crossing(rows, -samples, -most).at)
  else:
    notes.append(f"no batch measured at {over:.0%} over linear scaling")
  return out, tuple(notes)


def _slope(logs, seed=None) -> float:
  """Exponent of targets' logs [J, 2], redrawn by seed; nan if it is free."""
  try:
    law = theory.cbs_law(*np.exp(logs).T)
  except ValueError:
    return math.nan
  return law.params["p"] if seed is None else law.bootstrap(1, seed)["p"][0]
