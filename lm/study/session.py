"""A study, the folder of its runs, and how a run is made."""

import pathlib
from collections.abc import Callable, Sequence

from ..config.errors import InputError
from ..data import rows
from ..tools import sweeps
from . import plan, records
from .declare import Study
from .records import Record


class Session:
  """A study in a folder. Records of ended runs are kept: they do not change."""

  def __init__(self, study: Study, root: pathlib.Path, trainer: str = ""):
    """Nothing is read or made yet.

    Args:
      study: From `declare.load`.
      root: Parent of the runs' folders.
      trainer: FILE.py:NAME; "" for `lm.main`.
    """
    self.study, self.root, self.trainer = study, root, trainer
    self._train: records.Trainer | None = None  # Loaded when it is needed.
    self._found: dict[str, Record] = {}

  def find(self, id_: str) -> Record | None:
    """The record of a run; None if the run has not ended."""
    if id_ not in self._found:
      scores = self.study.scores
      record = records.find(self.root / id_, scores, self.trainer)
      if record is None:
        return None
      self._found[id_] = record
    return self._found[id_]

  def planned(self) -> plan.Plan:
    """Where the study stands."""
    return plan.plan(self.study, self.find)

  def foreign(self, found: plan.Plan) -> list[str]:
    """Folders of runs that the study has not asked for; they are not used."""
    return records.foreign(self.root, {run.id for run in found.runs})

  def make(
    self,
    wave: Sequence[plan.Run],
    jobs: int,
    line: Callable[[str], str] | None = None,
  ) -> dict[str, str]:
    """Makes runs; returns what became of each, see `sweeps.run_sweep`.

    Args:
      wave: Runs that have not ended.
      jobs: How many at a time.
      line: What is printed when the run of an id starts.
    """
    if not self.trainer:
      for run in wave:
        self._check_epochs(run)
      found = [run.job for run in wave]
      return sweeps.run_sweep(found, self.root, parallel=jobs, line=line)
    train = self._train or records.load_trainer(self.trainer)
    for run in wave:
      self._plant(run, train)
    return dict.fromkeys((run.id for run in wave), "finished")

  def _check_epochs(self, run: plan.Run) -> None:
    """Refuses to see a row more often than the study allows.

    Raises:
      InputError: If the run does, or its text is not prepared.
    """
    data = plan.resolve(run).data
    weights = [weight for _, weight in data.mixture]
    for source, weight in zip(rows.open_training(data), weights, strict=True):
      share = weight / sum(weights) * run.tokens
      epochs = share / (len(source) * data.seq_length)
      if epochs > self.study.epochs:
        raise InputError(
          f"study {self.study.name}: a run of {run.arm} in {run.cell} sees "
          f"{source.prepared.meta.corpus} {epochs:.2f} times; the study allows "
          f"epochs={self.study.epochs:g}."
        )

  def _plant(self, run: plan.Run, train: records.Trainer) -> None:
    study, folder = self.study, self.root / run.id
    if self.find(run.id) is not None:
      return
    if folder.exists():
      raise InputError(
        f"{folder} holds a run that has not ended, and that --trainer="
        f"{self.trainer} cannot go on with; remove the folder."
      )
    method = study.arms[run.arm].trains
    times = run.horizon * study.arms[run.arm].length
    horizon = round(times * study.cells[run.cell].tokens)
    points = train(method, dict(run.settings), horizon, run.batch, run.seed)
    length = plan.row_tokens(study, run.cell)
    records.plant(
      folder, points, run.settings, study.scores, run.batch * length,
      self.trainer,
    )  # fmt: skip
