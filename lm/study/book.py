"""The ended runs of a plan, by what they are for."""

from collections.abc import Mapping

import numpy as np

from . import curves, plan
from .declare import Study
from .plan import REPORT, Find, Place, Plan
from .records import Record


class Book:
  """The ended runs of a plan, by what they are for."""

  def __init__(self, study: Study, found: Plan, find: Find):
    """Looks up the runs that report."""
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

  def ended(self, arm: str, cell: str) -> bool:
    """Whether each seed has its run."""
    return len(self.report(arm, cell)) == len(self.study.seeds)

  def losses(self, arm: str, cell: str, score: str = "") -> list[float]:
    """The last losses, in the order of the seeds that have ended."""
    runs = self.report(arm, cell)
    return [runs[s].losses[score or self.score] for s in self._seeds(runs)]

  def speeds(
    self, arm: str, cell: str, score: str = ""
  ) -> dict[int, curves.Speed]:
    """Speed-ups by seed, on the reference's own curve of this seed."""
    study, found, score = self.study, {}, score or self.score
    of, runs = study.reference, self.report(arm, cell)
    for seed in self._seeds(runs):
      points = [
        (horizon, record.losses[score])
        for horizon in sorted(study.horizons)
        if (record := self.report(of, cell, horizon).get(seed))
      ]
      if len(points) == len(study.horizons):
        loss = runs[seed].losses[score]
        x, y = np.transpose(points)
        found[seed] = curves.speed_up(x, y, loss, 1.0)
    return found

  def edge(self, place: Place) -> bool:
    """Whether the settings of a place, tuned there or not, lie at an edge."""
    source: Place | None = place
    while source is not None:
      choice, place = self.plan.choices.get(source), source
      if choice is not None and choice.tuned is not None:
        return choice.done and choice.tuned.edge
      source = plan.source(self.study, place)
    return False

  def _seeds(self, runs: Mapping[int, Record]) -> list[int]:
    return [seed for seed in self.study.seeds if seed in runs]
