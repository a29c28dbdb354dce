"""What a study costs: before it starts, and while it goes on."""

import time
from typing import Any

from ..cli import text
from ..config import load as config_load
from . import clock, plan
from .session import Session

# Of the default corpus; the vocabulary is known once data are prepared.
_DATA = {"vocab_size": 4096, "eos_id": 1, "pad_id": 0, "platform": "cpu"}
START_SECONDS = 15.0  # Of a run: imports, cached compilations, a checkpoint.


class Progress:
  """Runs that have ended of all, and an honest time for the others.

  The speed is that of the runs that ended since the program started: seconds of
  all jobs together by the tokens of these runs, so evaluations, starts and a
  busy machine count. Runs that cannot be named yet are taken to be of the mean
  length.
  """

  def __init__(self, session: Session, jobs: int):
    """Starts the clock."""
    self._session, self._jobs = session, jobs
    self._began = time.monotonic()
    self._first: int | None = None

  def line(self, id_: str) -> str:
    """What is printed when a run starts."""
    s = self._session
    found = s.planned()
    runs = {run.id: run for run in found.runs}
    ended = [run.tokens for run in runs.values() if s.find(run.id)]
    named = sum(run.tokens for run in runs.values())
    count = len(runs) + found.waiting
    tokens = named * count / max(len(runs), 1)
    done = sum(ended)
    if self._first is None:
      self._first = done
    words = f"[{len(ended)} of about {count} runs ended"
    if done > self._first:
      seconds = time.monotonic() - self._began
      left = (tokens - done) * seconds / (done - self._first)
      words += f", about {text.duration(left)} to go"
    return f"{words}] {id_}"


def table(session: Session, jobs: int) -> str:
  """Runs, tokens, FLOP and hours of a study, by cell and arm.

  An update of the reference is timed in each cell, on this machine as it is
  now; other arms are taken to make the same FLOP/s. A run that two arms share
  counts twice until the losses tell that it is one.
  """
  s, study = session, session.study
  rows, total = [], [0, 0.0, 0.0, 0.0]
  costs = {place: _first(study, place) for place in plan.places(study)}
  speeds = {}
  for (arm, cell, _), (config, cost) in costs.items():
    if arm == study.reference and cell not in speeds and not s.trainer:
      ms = clock.time_updates({cell: config}, rounds=2)[cell]
      speeds[cell] = cost.flop_per_token * cost.tokens_per_update / ms * 1e3
  for place, (_, cost) in costs.items():
    arm, cell, horizon = place
    count = plan.count(study, place)
    times = count * horizon * study.arms[arm].length
    tokens = times * study.cells[cell].tokens
    flop = tokens * cost.flop_per_token
    hours = 0.0
    if cell in speeds:
      hours = (flop / speeds[cell] + count * START_SECONDS) / 3600 / jobs
    numbers = [count, tokens, flop, hours]
    total = [a + b for a, b in zip(total, numbers, strict=True)]
    name = arm if horizon == 1 else f"{arm}, {horizon:g} x"
    rows.append([cell, name, *_cells(numbers)])
  rows.append(["all", "", *_cells(total)])
  header = ["cell", "arm", "runs", "tokens", "TFLOP", f"hours, {jobs} at once"]
  done = len({run.id for run in s.planned().runs if s.find(run.id)})
  note = "" if not done else f"\n{done} runs have ended already."
  return text.format_table(header, rows) + note


def config_of(run: plan.Run) -> Any:
  """The configuration of a run, resolved on the default corpus."""
  config = plan.resolve(run)
  return config_load.resolve(config, **_DATA)


def _first(study, place):
  """Configuration and cost of an arm at its first settings."""
  run = plan.first(study, place)
  config = config_of(run)
  return config, clock.cost(config)


def _cells(numbers) -> list[str]:
  count, tokens, flop, hours = numbers
  return [
    str(count), text.human(tokens), f"{flop / 1e12:.1f}",
    f"{hours:.2f}" if hours else "-",
  ]  # fmt: skip
