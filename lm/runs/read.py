"""What a run has written to its folder, read back."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import metrics


class Run(NamedTuple):
  """What a run has written to its folder."""

  name: str
  columns: dict[str, metrics.Column]  # Of metrics.jsonl.
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
  path = folder / metrics.METRICS_FILE
  if not path.is_file():
    what = "has no metrics.jsonl" if folder.is_dir() else "is not a folder"
    raise ValueError(
      f"{folder} {what}, so it is not a run. Pass the --workdir of a run of "
      "lm.main."
    )
  columns = metrics.read(path)
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
