"""From the records of a study to its results: plain data, the same each time."""

import math
import shlex
import statistics as stats
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..cli import overrides
from . import batches, curves, declare, plan, statistics
from .declare import Claim, Study
from .plan import REPORT, TUNING, Find, Place, Plan, Run
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
  book = _Book(study, found, find)
  fits = critical_batches(book) if study.targets else {}
  verdicts = [
    (claim, cell, arm, than, verdict)
    for claim in study.claims
    for cell, arm, than, verdict in _verdicts(book, claim, fits)
  ]
  raw = [entry[-1] for entry in verdicts]
  claims = [
    {
      "claim": claim.claim, "arm": arm, "than": than, "cell": cell,
      "verdict": after.kind, "raw": before.kind,
      **{key: getattr(after, key) for key in ("estimate", "low", "high")},
      "n": after.n, "p": before.p, "p_holm": p, "rule": before.rule,
    }
    for (claim, cell, arm, than, before), after, p in zip(
      verdicts,
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
      "runs": _runs(book),
      "missing": [run.id for run in found.missing(find)],
      "waiting": found.waiting,
    }
  )


class _Book:
  """The ended runs of a plan, by what they are for."""

  def __init__(self, study: Study, found: Plan, find: Find):
    self.study, self.plan, self.find = study, found, find
    self._report: dict[Place, dict[int, Record]] = {}
    for run in found.runs:
      record = find(run.id)
      if run.role == REPORT and record is not None:
        place = run.arm, run.cell, run.horizon
        self._report.setdefault(place, {})[run.seed] = record
    self.score = next(iter(study.scores))

  def report(self, arm: str, cell: str, horizon: float = 1.0):
    """Records by seed."""
    return self._report.get((arm, cell, horizon), {})

  def losses(self, arm: str, cell: str, score: str = "") -> dict[int, float]:
    """The last losses by seed."""
    score = score or self.score
    runs = self.report(arm, cell)
    return {seed: record.losses[score] for seed, record in runs.items()}

  def speeds(self, arm: str, cell: str) -> dict[int, curves.Speed]:
    """Speed-ups by seed, on the reference's own curve of this seed."""
    study, found = self.study, {}
    of = study.reference
    for seed, loss in self.losses(arm, cell).items():
      points = [
        (horizon, record.losses[self.score])
        for horizon in sorted(study.horizons)
        if (record := self.report(of, cell, horizon).get(seed))
      ]
      if len(points) == len(study.horizons):
        found[seed] = curves.speed_up(*zip(*points, strict=True), loss, 1.0)
    return found


def _row(book: _Book, place: Place) -> dict[str, Any]:
  """An arm in a cell: its trials, its choice and its losses."""
  arm, cell, horizon = place
  choice, study = book.plan.choices[place], book.study
  runs = book.report(*place)
  tuned = choice.tuned
  row: dict[str, Any] = {
    "arm": arm, "cell": cell, "horizon": horizon,
    "settings": choice.settings, "trials": len(choice.tried),
    "tried": [[settings, loss] for settings, loss in choice.tried],
    "edge": bool(tuned and tuned.edge and choice.done),
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
      logs = _logs([speed.value for speed in speeds.values()])
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


def _verdicts(book: _Book, claim: Claim, fits):
  """(cell, arm, than, verdict) of a claim where its runs have ended."""
  study = book.study
  than = claim.than or study.reference
  if claim.claim == "exponent":
    for (arm, group), fit in fits.items():
      if claim.arm in ("*", arm) and claim.of in fit["draws"]:
        draws = fit["draws"][claim.of]
        verdict = statistics.exponent(draws, claim.centre, claim.tolerance)
        yield group, arm, "", verdict
    return
  arms = [a for a in study.arms if a != than] if claim.arm == "*" else [claim.arm]
  for arm in arms:
    for cell in claim.cells or declare.runs_in(study, arm):
      if cell in declare.runs_in(study, than):
        verdict = _verdict(book, claim, cell, arm, than)
        if verdict is not None:
          yield cell, arm, than, verdict


def _verdict(book: _Book, claim: Claim, cell: str, arm: str, than: str):
  mine = book.losses(arm, cell, claim.score)
  other = book.losses(than, cell, claim.score)
  seeds = [seed for seed in book.study.seeds if seed in mine and seed in other]
  if len(seeds) < len(book.study.seeds):
    return None
  place = book.plan.choices[arm, cell, 1.0]
  if claim.claim in ("lower", "equal"):
    with np.errstate(invalid="ignore"):
      gap = np.array([mine[s] for s in seeds]) - [other[s] for s in seeds]
    if claim.claim == "equal":
      return statistics.equal(gap, claim.margin)
    verdict = statistics.lower(gap, claim.threshold)
  elif claim.to == "":
    speeds = book.speeds(arm, cell)
    if len(speeds) < len(seeds):
      return None
    logs = -_logs([speeds[seed].value for seed in seeds])
    verdict = statistics.faster(logs, claim.threshold)
  else:
    goal = claim.to
    if isinstance(goal, str):
      goal = max(book.losses(goal, cell).values(), default=math.nan)
    if not math.isfinite(goal):
      return None
    counts = [_count_to(book, a, cell, goal, claim.unit) for a in (arm, than)]
    with np.errstate(invalid="ignore"):
      logs = _logs(counts[0]) - _logs(counts[1])
    verdict = statistics.faster(logs, claim.threshold)
  if place.tuned is not None and place.tuned.edge:
    rule = f"{verdict.rule}; not ranked: the best rate lies at an edge"
    verdict = verdict._replace(kind=statistics.UNDECIDED, rule=rule, p=math.nan)
  return verdict


def _count_to(book: _Book, arm, cell, goal, unit) -> list[float]:
  """Tokens, updates or depth to a loss, seed by seed; inf if never."""
  counts = []
  for seed in book.study.seeds:
    record = book.report(arm, cell)[seed]
    if book.score not in record.curves:
      counts.append(math.inf)
      continue
    at = curves.crossing(*record.curves[book.score], goal).at
    if unit != "tokens":
      at *= record.updates / record.tokens
    counts.append(at * record.depth if unit == "depth" else at)
  return counts


def critical_batches(book: _Book) -> dict[tuple[str, str], dict[str, Any]]:
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
      length = plan.row_tokens(study.config, study.cells[mine[0]])
      runs = [
        [_steps(book.report(arm, c)[seed], book.score) for c in mine]
        for seed in study.seeds
      ]
      steps, again = batches.crossings(runs, list(goals.values()))
      rng = np.random.default_rng(0)
      law = batches.data_law(rows, steps, rng, length, draws=DRAWS)
      found[arm, group] = {
        "draws": law.draws,
        "plain": {
          "batches": rows, "row_tokens": length, "cells": mine,
          "targets": goals, "steps": steps, "recrossings": again,
          "fits": [_fit(fit) for fit in law.fits],
          "data": law.data, "batch": law.batch,
          "slope": {k: v._asdict() for k, v in law.slope.items()},
        },
      }  # fmt: skip
  return found


def _targets(book: _Book, cell: str) -> dict[str, float]:
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
  return tokens * (record.updates / record.tokens), losses


def _fit(fit: batches.BatchFit) -> dict[str, Any]:
  return {
    key: value._asdict() if isinstance(value, tuple) and key != "notes" else value
    for key, value in fit._asdict().items()
  }


def _runs(book: _Book) -> list[dict[str, Any]]:
  """Every ended run, with the command that makes it again."""
  found: dict[str, dict[str, Any]] = {}
  for run in book.plan.runs:
    record = book.find(run.id)
    if record is None:
      continue
    use = {"arm": run.arm, "cell": run.cell, "role": run.role}
    if run.id in found:
      found[run.id]["uses"].append(use)
      continue
    found[run.id] = {
      "id": run.id, "uses": [use], "seed": run.seed, "tokens": run.tokens,
      "settings": run.settings, "losses": record.losses,
      "command": command(run),
    }  # fmt: skip
    if run.role == REPORT:
      found[run.id]["curves"] = {
        score: np.transpose(curve) for score, curve in record.curves.items()
      }
  return [found[id_] for id_ in sorted(found)]


def command(run: Run) -> str:
  """The command line that makes a run."""
  given = overrides.arguments(run.job.config, run.job.overrides)
  return shlex.join(["python", "-m", "lm.main", *given])


def counts(found: Plan, find: Find) -> Mapping[str, int]:
  """Runs that have ended, by role; a run of two uses counts once."""
  ended = {r.id: r.role for r in reversed(found.runs) if find(r.id)}
  return {
    role: sum(r == role for r in ended.values()) for role in (TUNING, REPORT)
  }


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


def _logs(values: Sequence[float]) -> np.ndarray:
  """Logarithms, -inf of 0 and nan of nan."""
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.log(np.asarray(values, float))
