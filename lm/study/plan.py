"""Which runs a study needs now: a pure function of those that have ended.

Each method of a cell first has its trials on the seeds that choose, then one
run for each seed that reports. Nothing is typed in between: the next runs
follow from the losses, so the same command goes on after a kill, and the order
in which runs end does not matter.
"""

import functools
import json
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..tools import sweeps
from . import declare, methods, tuning
from .declare import Study
from .records import Record
from .tuning import RATE, Log, Tuned

TUNING, REPORT = "tuning", "report"
Find = Callable[[str], Record | None]  # A run's record by its id.
Place = tuple[str, str, float]  # Arm, cell, horizon in those of the cell.


class Run(NamedTuple):
  """A run of a study."""

  arm: str
  cell: str
  horizon: float  # In those of the cell.
  seed: int
  role: str  # TUNING or REPORT.
  settings: Mapping[str, Any]  # Of all tuned keys.
  job: sweeps.Job
  tokens: int  # Of the run.
  batch: int  # Rows of an update.

  @property
  def id(self) -> str:
    """Name of its folder."""
    return self.job.id


class Choice(NamedTuple):
  """What an arm's trials in a cell have shown."""

  settings: Mapping[str, Any]  # Chosen, or the best so far.
  tuned: Tuned | None  # None: the settings are another cell's or arm's.
  tried: list[tuple[Mapping[str, Any], float]]  # In the order of asking.
  done: bool


class Plan(NamedTuple):
  """Where a study stands."""

  runs: list[Run]  # Asked for so far, ended or not, each use of a run.
  choices: dict[Place, Choice]
  waiting: int  # Trials that cannot be named yet; report runs beside them.

  def missing(self, find: Find) -> list[Run]:
    """The present wave: one of each id that has not ended."""
    found = {run.id: run for run in self.runs if find(run.id) is None}
    return list(found.values())


def plan(study: Study, find: Find) -> Plan:
  """The runs that a study needs, as far as the losses tell.

  Args:
    study: From `declare`.
    find: Record of a run by its id; None if the run has not ended.
  """
  return _Replay(study, find).all()


def count(study: Study, place: Place) -> int:
  """Number of runs of a place, trials and reports."""
  _, cell, horizon = place
  trials = 0
  if source(study, place) is None:
    trials = _budget(study, cell, horizon) * len(study.tuning_seeds)
  return trials + len(study.seeds)


def first(study: Study, place: Place) -> Run:
  """A run of a place at the start of its settings, e.g. to time it."""
  space = study.arms[place[0]].entry().tuned
  settings = {k: v.start if k == RATE else v[0] for k, v in space.items()}
  rate = study.arms[study.reference].entry().tuned[RATE].start
  return make(study, place, settings, study.seeds[0], REPORT, rate)


def make(
  study: Study,
  place: Place,
  settings: Mapping[str, Any],
  seed: int,
  role: str,
  auxiliary_rate: float,
) -> Run:
  """The run of an arm in a cell.

  Args:
    study: It.
    place: Arm, cell and horizon.
    settings: A value for each tuned key.
    seed: Of initialisation and stream.
    role: TUNING or REPORT.
    auxiliary_rate: AdamW's in this cell, for what a method of matrices leaves.
  """
  name, cell_name, horizon = place
  arm, cell = study.arms[name], study.cells[cell_name]
  entry = arm.entry()
  overrides: dict[str, Any] = {
    "train.num_tokens": 0, **study.overrides, **cell.overrides,
    **methods.changes(
      entry, settings, auxiliary_rate, cell.batch, cell.kwargs
    ),
    **arm.in_cell.get(cell_name, {}), "seed": seed,
  }  # fmt: skip
  length = row_tokens(study, cell_name)
  tokens = horizon * arm.length * cell.tokens
  steps = max(1, round(tokens / (overrides["data.batch_size"] * length)))
  overrides |= {"train.num_steps": steps}
  if study.points:
    overrides.setdefault("eval.every", max(1, steps // study.points))
  job = _job(study.config, json.dumps(overrides), f"{arm.trains}_seed={seed}")
  batch = cell.batch
  return Run(
    name, cell_name, horizon, seed, role, dict(settings), job,
    steps * overrides["data.batch_size"] * length, batch,
  )  # fmt: skip


def resolve(run: Run) -> Any:
  """The configuration of a run, before its text is looked at."""
  return sweeps.resolve(run.job.config, run.job.overrides)


def row_tokens(study: Study, cell: str) -> int:
  """Targets of a row."""
  overrides = {**study.overrides, **study.cells[cell].overrides}
  given = overrides.get("data.seq_length")
  return int(given or _resolve(study.config, "{}").data.seq_length)


class _Replay:
  """One pass over a study, from its first trial on."""

  def __init__(self, study: Study, find: Find):
    self._study, self._find = study, find
    self._plan = Plan([], {}, 0)

  def all(self) -> Plan:
    waiting = 0
    for place in places(self._study):
      waiting += self._one(place)
    return self._plan._replace(waiting=waiting)

  def _one(self, place: Place) -> int:
    """Asks for the runs of a place; returns how many cannot be named yet."""
    study, (_, cell, horizon) = self._study, place
    rate = self._auxiliary_rate(place)
    held = source(study, place)
    if held:
      chosen = self._plan.choices.get(held)
      if chosen is None or not chosen.done or rate is None:
        return len(study.seeds)
      choice = Choice(chosen.settings, None, [], True)
    else:
      space = self._space(place)
      budget = _budget(study, cell, horizon)
      if space is None or rate is None:
        return budget * len(study.tuning_seeds) + len(study.seeds)
      choice = self._tune(place, space, budget, rate)
    self._plan.choices[place] = choice
    if choice.tuned is not None and not choice.done:
      made = len(choice.tried) + len(choice.tuned.trials)
      left = _budget(study, cell, horizon) - made
      return left * len(study.tuning_seeds) + len(study.seeds)
    for seed in study.seeds:
      run = make(study, place, choice.settings, seed, REPORT, rate)
      self._plan.runs.append(run)
    return 0

  def _tune(self, place, space, budget, rate) -> Choice:
    """Replays the trials against the records, and asks for the next ones."""
    tried: list[tuple[Mapping[str, Any], float]] = []
    while True:
      tuned = tuning.next_trials(space, tried, budget)
      new = []
      for settings in tuned.trials:
        runs = [
          make(self._study, place, settings, seed, TUNING, rate)
          for seed in self._study.tuning_seeds
        ]
        records = [self._find(run.id) for run in runs]
        if None not in records:
          loss = statistics.fmean(_first_loss(r) for r in records)
          new.append((settings, loss))
        self._plan.runs.extend(runs)
      tried += new
      if len(new) < len(tuned.trials):
        # Those that were found count; the others are the wave.
        again = tuning.next_trials(space, tried, budget)
        return Choice(again.best, again, tried, False)
      if not tuned.trials:
        return Choice(tuned.best, tuned, tried, True)

  def _space(self, place: Place) -> dict[str, Any] | None:
    """What is tuned, from its start; None if the start is not known yet."""
    study, (arm, cell, horizon) = self._study, place
    space = dict(study.arms[arm].entry().tuned)
    if not study.auxiliary:
      space.pop(methods.AUXILIARY, None)
    start = study.cells[cell].start_of
    above = (arm, cell, 1.0) if horizon != 1 else (arm, start, 1.0)
    if horizon != 1 or start:
      chosen = self._plan.choices.get(above)
      if chosen is None or not chosen.done:
        return None
      best = chosen.settings
      space = {
        k: Log(best[k], v.factor) if k == RATE else (best[k],)
        for k, v in space.items()
      }
    return space

  def _auxiliary_rate(self, place: Place) -> float | None:
    """AdamW's rate where a method of matrices runs; None if not known yet."""
    study, (arm, cell, _) = self._study, place
    entry = study.arms[arm].entry()
    if entry.whole:
      return math.nan
    reference = study.arms[study.reference]
    chosen = self._plan.choices.get((reference.name, cell, 1.0))
    return chosen.settings[RATE] if chosen and chosen.done else None


def places(study: Study) -> list[Place]:
  """Arms, cells and horizons: the reference first, since others need its rate.

  Longer and shorter runs are the reference's alone.
  """
  names = sorted(study.arms, key=lambda name: name != study.reference)
  names.sort(key=lambda name: bool(study.arms[name].settings_of))
  found = []
  for name in names:
    for cell in declare.runs_in(study, name):
      found.append((name, cell, 1.0))
      if name == study.reference:
        found += [(name, cell, h) for h in study.horizons if h != 1]
  return found


def source(study: Study, place: Place) -> Place | None:
  """Where the settings of a place come from; None if they are tuned there."""
  arm, cell, horizon = place
  if study.arms[arm].settings_of:
    other, at = study.arms[arm].settings_of
    return other, at, 1.0
  held = study.cells[cell].settings_of
  return (arm, held, horizon) if held else None


def _budget(study: Study, cell: str, horizon: float) -> int:
  return 3 if horizon != 1 else study.cells[cell].trials or study.trials


def _first_loss(record: Record | None) -> float:
  loss = next(iter(record.losses.values())) if record else math.inf
  return loss if math.isfinite(loss) else math.inf


@functools.cache
def _resolve(config: str, overrides: str) -> Any:
  return sweeps.resolve(config, json.loads(overrides))


@functools.cache
def _job(config: str, overrides: str, name: str) -> sweeps.Job:
  """The job of overrides in JSON; a run of two arms is one."""
  changes = _tuples(json.loads(overrides))
  run = {"config": config, "overrides": changes, "name": name}
  return sweeps.expand([run])[0]


def _tuples(value: Any) -> Any:
  if isinstance(value, list):
    return tuple(map(_tuples, value))
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return value
