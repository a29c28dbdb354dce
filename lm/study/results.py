"""From the records of a study to its results: plain data, always the same."""

import math
import shlex
import statistics as stats
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..cli import overrides
from . import batches, declare, plan, statistics, verdicts
from .book import Book
from .declare import READINGS, Study
from .plan import REPORT, Find, Place, Plan, Run
from .records import Record
from .tuning import RATE

DRAWS = 1000  # Of the bootstrap.


def results(study: Study, found: Plan, find: Find) -> dict[str, Any]:
  """What the runs that have ended say.

  Args:
    study: It.
    found: Its plan.
    find: Record of a run by its id.

  Returns:
    A dictionary for JSON, without times: those are in another file.
  """
  book = Book(study, found, find)
  fits = critical_batches(book) if study.targets else {}
  laws = {"data": fits, "size": batches_by_size(study, fits)}
  found_all = [
    (claim, cell, arm, than, verdict)
    for claim in study.claims
    for cell, arm, than, verdict in verdicts.of_claim(
      book, claim, laws[claim.against]
    )
  ]
  raw = [entry[-1] for entry in found_all]
  claims = [
    {
      "claim": claim.claim, "arm": arm, "than": than, "cell": cell,
      "to": claim.to, "unit": claim.unit, "of": claim.of,
      "against": claim.against, "score": claim.score,
      "verdict": after.kind, "raw": before.kind,
      **{key: getattr(after, key) for key in ("estimate", "low", "high")},
      "n": after.n, "p": before.p, "p_holm": p, "rule": before.rule,
    }
    for (claim, cell, arm, than, before), after, p in zip(
      found_all,
      statistics.corrected(raw),
      statistics.holm([v.p for v in raw]) if raw else [],
      strict=True,
    )
  ]  # fmt: skip
  return plain(
    {
      "declaration": study._asdict()
      | {
        "cells": {k: v._asdict() for k, v in study.cells.items()},
        "arms": {k: v._asdict() for k, v in study.arms.items()},
        "claims": [c._asdict() for c in study.claims],
      },
      "table": [_row(book, place) for place in found.choices],
      "claims": claims,
      "critical_batch": {
        f"{arm} {group}".strip(): value["plain"]
        for (arm, group), value in fits.items()
      },
      "batch_by_size": {
        arm: value["plain"] for (arm, _), value in laws["size"].items()
      },
      "runs": _runs(book),
      "missing": [run.id for run in found.missing(find)],
      "waiting": found.waiting,
    }
  )


def _row(book: Book, place: Place) -> dict[str, Any]:
  """An arm in a cell: its trials, its choice and its losses."""
  arm, cell, horizon = place
  choice, study = book.plan.choices[place], book.study
  runs = book.report(*place)
  tuned = choice.tuned
  row: dict[str, Any] = {
    "arm": arm, "cell": cell, "horizon": horizon,
    "settings": choice.settings, "trials": len(choice.tried),
    "tried": [[settings, loss] for settings, loss in choice.tried],
    "edge": book.edge(place),
    "vertex": _vertex(choice) if tuned else math.nan,
    "seeds": sorted(runs), "done": len(runs) == len(study.seeds),
    "losses": {
      score: [runs[seed].losses[score] for seed in sorted(runs)]
      for score in study.scores
    },
    "depth": max((r.depth for r in runs.values()), default=math.nan),
    "updates": max((r.updates for r in runs.values()), default=math.nan),
  }  # fmt: skip
  if study.horizons and horizon == 1:
    speeds = book.speeds(arm, cell)
    row["speeds"] = [
      [seed, speed.value, speed.bound] for seed, speed in speeds.items()
    ]
    if speeds and arm != study.reference:
      logs = verdicts.logs([speed.value for speed in speeds.values()])
      interval = statistics.mean_interval(logs).of(np.exp)
      row["speed"] = interval._asdict()
  return row


def _vertex(choice: plan.Choice) -> float:
  """Rate at the least of the parabola through the best and its neighbours."""
  best = choice.settings
  others = {k: v for k, v in best.items() if k != RATE}
  line = sorted(
    (settings[RATE], loss)
    for settings, loss in choice.tried
    if others.items() <= settings.items() and math.isfinite(loss)
  )
  at = [rate for rate, _ in line].index(best[RATE]) if line else 0
  if not 0 < at < len(line) - 1:
    return math.nan
  rates, losses = zip(*line[at - 1 : at + 2], strict=True)
  bend, slope, _ = np.polyfit(np.log(rates), losses, 2)
  return float(np.exp(-slope / (2 * bend))) if bend > 0 else math.nan


def critical_batches(book: Book) -> dict[tuple[str, str], dict[str, Any]]:
  """Fits of steps to each target by batch; by arm and group of cells.

  A target is the mean loss of the smallest batch after a share of its tokens,
  of the reference, so that all arms of a group have the same targets.
  """
  study, found = book.study, {}
  for group, cells in declare.groups(study).items():
    goals = _targets(book, cells[0])
    for arm in study.arms:
      mine = [c for c in cells if len(book.report(arm, c)) == len(study.seeds)]
      if len(mine) < 3 or not goals:
        continue
      rows = np.array([study.cells[c].batch for c in mine], float)
      wanted = study.reference_batch
      reference = wanted if wanted in rows else None
      length = plan.row_tokens(study, mine[0])
      runs = [
        [_steps(book.report(arm, c)[seed], book.score) for c in mine]
        for seed in study.seeds
      ]
      steps, again = batches.crossings(runs, list(goals.values()))
      rng = np.random.default_rng(0)
      law = batches.data_law(
        rows, steps, rng, length, reference=reference, draws=DRAWS
      )
      found[arm, group] = {
        "draws": law.draws,
        "logs": law.fits[-1].logs,
        "plain": {
          "batches": rows, "row_tokens": length, "cells": mine,
          "targets": goals, "steps": steps, "recrossings": again,
          "fits": [_fit(fit) for fit in law.fits],
          "data": law.data, "batch": law.batch,
          "slope": {k: v._asdict() for k, v in law.slope.items()},
        },
      }  # fmt: skip
  return found


def batches_by_size(
  study: Study, fits
) -> dict[tuple[str, str], dict[str, Any]]:
  """Exponents of the batch in the model's size; by arm and "".

  Every size has the target of the largest share of its tokens. Declare groups
  of the same tokens, and only the size differs.

  Args:
    study: It.
    fits: From `critical_batches`. Their draws resample the same seeds.
  """
  sizes = {g: study.cells[c[0]].size for g, c in declare.groups(study).items()}
  found = {}
  for arm in study.arms:
    mine = [g for g in sizes if sizes[g] and (arm, g) in fits]
    x = np.log([sizes[g] for g in mine])
    if len({*x}) < 3:
      continue
    logs = np.stack([fits[arm, g]["logs"] for g in mine])  # [J, 1 + M, 4]
    line = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    slopes = dict(zip(READINGS, np.tensordot(line, logs, 1).T[1:], strict=True))
    found[arm, ""] = {
      "draws": {k: draws[1:] for k, draws in slopes.items()},
      "plain": {
        "groups": mine, "sizes": np.exp(x), "batch": np.exp(logs[:, 0, 1]),
        "slope": {
          k: statistics.percentiles(s[1:])._replace(estimate=s[0])._asdict()
          for k, s in slopes.items()
        },
      },
    }  # fmt: skip
  return found


def _targets(book: Book, cell: str) -> dict[str, float]:
  """Loss after each share of the tokens; by the share."""
  runs = book.report(book.study.reference, cell)
  if len(runs) < len(book.study.seeds):
    return {}
  found = {}
  for share in book.study.targets:
    losses = [
      np.interp(share * r.tokens, *r.curves[book.score])
      for r in runs.values()
      if book.score in r.curves
    ]
    found[f"{share:g}"] = stats.fmean(losses) if losses else math.nan
  return {k: v for k, v in found.items() if math.isfinite(v)}


def _steps(record: Record, score: str):
  """The curve of a run in updates."""
  if score not in record.curves:
    return [1.0], [math.inf]
  tokens, losses = record.curves[score]
  return record.updates_at(tokens), losses


def _fit(fit: batches.BatchFit) -> dict[str, Any]:
  return {
    key: value._asdict() if isinstance(value, statistics.Interval) else value
    for key, value in fit._asdict().items()
  }


def _runs(book: Book) -> list[dict[str, Any]]:
  """Every ended run, with the command that makes it again."""
  found: dict[str, dict[str, Any]] = {}
  for run in book.plan.runs:
    record = book.find(run.id)
    if record is None:
      continue
    use = {key: getattr(run, key) for key in ("arm", "cell", "horizon", "role")}
    if run.id in found:
      found[run.id]["uses"].append(use)
      continue
    found[run.id] = {
      "id": run.id, "uses": [use], "seed": run.seed, "tokens": run.tokens,
      "settings": run.settings, "losses": record.losses,
      "command": command(run, record),
    }  # fmt: skip
    if run.role == REPORT:
      found[run.id]["curves"] = {
        score: np.transpose(curve) for score, curve in record.curves.items()
      }
  return [found[id_] for id_ in sorted(found)]


def command(run: Run, record: Record) -> str:
  """The command line that makes a run, on Linux with as many cores.

  On a CPU a sum over more cores has another order, and so other bits.
  """
  given = overrides.arguments(run.job.config, run.job.overrides)
  pinned = []
  if record.cores and record.device == "cpu":
    pinned = ["taskset", "-c", f"0-{record.cores - 1}"]
  return shlex.join([*pinned, "python", "-m", "lm.main", *given])


def plain(value: Any) -> Any:
  """What JSON can hold: numbers that are not finite are texts."""
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, np.ndarray):
    return plain(value.tolist())
  if isinstance(value, tuple | list):
    return [plain(item) for item in value]
  if isinstance(value, float | np.floating):
    return float(value) if math.isfinite(value) else str(float(value))
  if isinstance(value, np.integer):
    return int(value)
  return value
