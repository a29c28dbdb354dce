"""Tables of runs, for people: where each stands, and what it needed."""

import math
from collections.abc import Sequence

from ..cli import text
from . import read
from .read import Run


def runs_table(runs: Sequence[Run]) -> str:
  """One line a run: size, length, time and train loss."""
  rows = []
  for run in runs:
    params = run.info.get("parameters", {}).get("total")
    tokens = run.columns["tokens"]
    seconds = run.clock("seconds", tokens.steps[-1:])[0]
    rows.append(
      [
        run.name,
        run.info.get("status", "?"),
        "?" if params is None else text.human(params),
        str(tokens.steps[-1]),
        text.human(tokens.values[-1]),
        _time(seconds),
        f"{read.final_train_loss(run):.4f}",
      ]
    )
  header = "run status params steps tokens time train_loss".split()
  return text.format_table([h.replace("_", " ") for h in header], rows)


def _time(seconds: float) -> str:
  return "-" if math.isnan(seconds) else text.clock_text(seconds)


def eval_table(runs: Sequence[Run]) -> str:
  """One line a set and run: the last evaluation beside the n-gram floor."""
  sets = list(dict.fromkeys(name for run in runs for name in run.eval_sets()))
  rows = []
  for name in sets:
    for run in runs:
      if name in run.eval_sets():
        rows.append([name, run.name, *_eval_cells(run, name)])
  header = ["set", "run", "step", "loss ± stderr", "bits/byte"]
  return text.format_table([*header, "averages", "best n-gram"], rows)


def _eval_cells(run: Run, name: str) -> list[str]:
  step, loss = run.last(name) or (0, float("nan"))

  def cell(metric: str, average: str | None = None) -> str:
    found = run.last(name, metric, average)
    return f"{found[1]:.4f}" if found and found[0] == step else "-"

  stderr = cell("stderr")
  averages = [f"{a} {cell('loss', a)}" for a in run.averages(name)]
  floors = run.floors(name)
  best = min(floors, key=floors.__getitem__, default=None)
  return [
    str(step),
    f"{loss:.4f}" + ("" if stderr == "-" else f" ± {stderr}"),
    cell("bits_per_byte"),
    ", ".join(averages) or "-",
    "-" if best is None else f"{floors[best]:.4f} ({best})",
  ]


def reach_table(
  runs: Sequence[Run], name: str, loss: float, average: str | None = None
) -> str:
  """One line a run: what it took to reach the loss, see `steps_to_loss`."""
  rows = []
  for run in runs:
    reached = read.steps_to_loss(run, name, loss, average)
    cells = ["not reached", "-", "-"]
    if reached:
      cells = [
        f"{reached.steps:.0f}",
        text.human(reached.tokens),
        _time(reached.seconds),
      ]
    rows.append([run.name, *cells])
  return text.format_table(["run", "steps", "tokens", "time"], rows)
