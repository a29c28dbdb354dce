"""Curves and a comparison table from the folders of any runs.

    python -m lm.report RUN [RUN ...] [--out=DIR]
    python -m lm.report RUN [RUN ...] --to=3.5 --set=sotu

The first form prints two tables and draws loss.png, learning_rate.png and
norms.png against steps, tokens and seconds into DIR (default: the folder of
the run, or report/ for several). The second prints what each run needed to
bring a validation loss down to a target. Both work while a run is going on.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import plots, text
from .train import writers


class Run(NamedTuple):
  """What a run has written to its folder."""

  name: str
  columns: dict[str, writers.Column]  # Of metrics.jsonl.
  info: dict[str, Any]  # run.json; empty if the run has not written it.

  def clock(self, unit: str, steps: np.ndarray) -> np.ndarray:
    """Converts steps to "steps", "tokens" or "seconds"."""
    if unit == "steps":
      return steps.astype(np.float64)
    column = self.columns[unit]
    return np.interp(steps, column.steps, column.values)

  def eval_sets(self) -> list[str]:
    """Names NAME with a column eval/NAME/loss, in order of appearance."""
    keys = [key for key in self.columns if key.startswith("eval/")]
    return [k[5:-5] for k in keys if k.endswith("/loss")]

  def floors(self, name: str) -> dict[str, float]:
    """N-gram losses of a set in nats per token, e.g. {"bigram": 5.1}."""
    floors = self.info.get("floors", {}).get(name, {})
    return {k: v for k, v in floors.items() if k.endswith("gram")}


class Reached(NamedTuple):
  """What it took to reach a loss."""

  steps: float
  tokens: float
  seconds: float


def load_run(folder: str | pathlib.Path, name: str | None = None) -> Run:
  """Reads the folder of a run.

  Args:
    folder: The --workdir of a run, finished or not.
    name: Shown in tables and legends; None takes the folder's name.

  Returns:
    The run.

  Raises:
    ValueError: If the folder is not a run, or nothing has been logged yet.
  """
  folder = pathlib.Path(folder)
  path = folder / writers.METRICS_FILE
  if not path.is_file():
    what = "has no metrics.jsonl" if folder.is_dir() else "is not a folder"
    raise ValueError(
      f"{folder} {what}, so it is not a run. Pass the --workdir of a run of "
      "lm.main."
    )
  columns = writers.read(path)
  if "tokens" not in columns or "seconds" not in columns:
    raise ValueError(
      f"{path} has no lines yet. Wait for the first one (config.log.every "
      "steps), or see why the run stopped."
    )
  info_path = folder / "run.json"
  info = json.loads(info_path.read_text()) if info_path.is_file() else {}
  return Run(name or folder.resolve().name, columns, info)


def load_runs(folders: Sequence[str | pathlib.Path]) -> list[Run]:
  """Reads several runs; equal folder names are told apart by their parents.

  Args:
    folders: As in `load_run`.

  Returns:
    The runs, in the same order.
  """
  paths = [pathlib.Path(folder).resolve() for folder in folders]
  depth = 1
  while len({p.parts[-depth:] for p in paths}) < len(set(paths)):
    depth += 1
  names = ["/".join(path.parts[-depth:]) for path in paths]
  return [load_run(f, name) for f, name in zip(folders, names, strict=True)]


def final_train_loss(run: Run) -> float:
  """Mean train/loss over the last tenth of its lines, or NaN.

  One line is the loss of one batch, too noisy to compare runs by.
  """
  column = run.columns.get("train/loss")
  if column is None:
    return float("nan")
  return float(column.values[-max(1, len(column.values) // 10) :].mean())


def steps_to_loss(
  run: Run, name: str, loss: float, metric: str = "loss"
) -> Reached | None:
  """When a validation loss first came down to a target.

  Between the last evaluation above the target and the first at or below it
  the loss is taken as a straight line.

  Args:
    run: The run.
    name: Evaluation set.
    loss: Target in nats per token.
    metric: loss, or ema_loss for that of the averaged weights.

  Returns:
    Steps, tokens and seconds, or None if the target was not reached.

  Raises:
    ValueError: If the run has not evaluated that set.
  """
  key = f"eval/{name}/{metric}"
  if key not in run.columns:
    raise ValueError(
      f"run {run.name} has no {key}; its sets are {run.eval_sets()}. "
      "Choose one of them with --set."
    )
  steps, values = run.columns[key]
  below = np.flatnonzero(values <= loss)
  if not below.size:
    return None
  i = below[0]
  at = float(steps[i])
  if i and np.isfinite(values[i - 1]):
    share = (values[i - 1] - loss) / (values[i - 1] - values[i])
    at = steps[i - 1] + share * (steps[i] - steps[i - 1])
  where = np.array([at])
  tokens, seconds = (run.clock(u, where)[0] for u in ("tokens", "seconds"))
  return Reached(float(at), float(tokens), float(seconds))


def runs_table(runs: Sequence[Run]) -> str:
  """One line a run: size, length, time and train loss."""
  rows = []
  for run in runs:
    params = run.info.get("parameters", {}).get("total")
    tokens, seconds = run.columns["tokens"], run.columns["seconds"]
    rows.append(
      [
        run.name,
        run.info.get("status", "?"),
        "?" if params is None else text.human(params),
        str(tokens.steps[-1]),
        text.human(tokens.values[-1]),
        text.clock_text(seconds.values[-1]),
        f"{final_train_loss(run):.4f}",
      ]
    )
  header = "run status params steps tokens time train_loss".split()
  return text.format_table([h.replace("_", " ") for h in header], rows)


def eval_table(runs: Sequence[Run]) -> str:
  """One line a set and run: the last evaluation beside the n-gram floor."""
  sets = list(dict.fromkeys(name for run in runs for name in run.eval_sets()))
  rows = []
  for name in sets:
    for run in runs:
      if name in run.eval_sets():
        rows.append([name, run.name, *_eval_cells(run, name)])
  header = ["set", "run", "step", "loss ± stderr", "bits/byte"]
  return text.format_table([*header, "ema loss", "best n-gram"], rows)


def _eval_cells(run: Run, name: str) -> list[str]:
  loss = run.columns[f"eval/{name}/loss"]
  step = loss.steps[-1]

  def last(metric: str) -> float | None:
    column = run.columns.get(f"eval/{name}/{metric}")
    if column is None or column.steps[-1] != step:
      return None
    return float(column.values[-1])

  stderr, bits, ema = map(last, ("stderr", "bits_per_byte", "ema_loss"))
  floors = run.floors(name)
  best = min(floors, key=floors.__getitem__, default=None)
  return [
    str(step),
    f"{loss.values[-1]:.4f}" + ("" if stderr is None else f" ± {stderr:.4f}"),
    "-" if bits is None else f"{bits:.4f}",
    "-" if ema is None else f"{ema:.4f}",
    "-" if best is None else f"{floors[best]:.4f} ({best})",
  ]


def reach_table(
  runs: Sequence[Run], name: str, loss: float, metric: str = "loss"
) -> str:
  """One line a run: what it took to reach the loss, see `steps_to_loss`."""
  rows = []
  for run in runs:
    reached = steps_to_loss(run, name, loss, metric)
    cells = ["not reached", "-", "-"]
    if reached:
      cells = [
        f"{reached.steps:.0f}",
        text.human(reached.tokens),
        text.clock_text(reached.seconds),
      ]
    rows.append([run.name, *cells])
  return text.format_table(["run", "steps", "tokens", "time"], rows)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m lm.report", description=(__doc__ or "").split("\n\n")[0]
  )
  parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
  parser.add_argument("--out", metavar="DIR", help="folder of the PNGs")
  parser.add_argument(
    "--log_x", action="store_true", help="logarithmic axis of steps, ..."
  )
  parser.add_argument("--to", type=float, metavar="LOSS", help="target loss")
  parser.add_argument("--set", metavar="NAME", help="evaluation set of --to")
  parser.add_argument(
    "--metric", default="loss", choices=("loss", "ema_loss"), help="of --to"
  )
  args = parser.parse_args(argv)
  try:
    runs = load_runs(args.runs)
    if args.to is not None:
      name = args.set or (runs[0].eval_sets() or ["?"])[0]
      print(f"to {name} {args.metric} <= {args.to:g} nats/token:\n")
      print(reach_table(runs, name, args.to, args.metric))
      return 0
  except ValueError as error:
    print(f"lm.report: {error}", file=sys.stderr)
    return 2
  print(runs_table(runs))
  if any(run.eval_sets() for run in runs):
    print("\n" + eval_table(runs))
  default = args.runs[0] if len(runs) == 1 else "report"
  print()
  for path in plots.draw(runs, args.out or default, log_x=args.log_x):
    print(f"wrote {path}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
