"""What a run has written to its folder, read back."""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..config import translations
from . import metrics

# Of a set, maybe of an average of the weights.
_LOSS = re.compile(r"eval/(.+?)(?:/avg/([^/]+))?/(?:final_)?loss")


class Run(NamedTuple):
  """What a run has written to its folder."""

  name: str
  columns: dict[str, metrics.Column]  # Of metrics.jsonl.
  info: dict[str, Any]  # run.json; empty if the run has not written it.

  def clock(self, unit: str, steps: np.ndarray) -> np.ndarray:
    """Converts steps to "steps", "tokens" or "seconds".

    Seconds are NaN if the run does not state them, as runs that are stored for
    comparison do not: they took theirs on another machine.
    """
    if unit == "steps":
      return steps.astype(np.float64)
    if unit not in self.columns:
      return np.full(len(steps), np.nan)
    column = self.columns[unit]
    return np.interp(steps, column.steps, column.values)

  def eval_sets(self) -> list[str]:
    """Sets with a loss of the weights, in order of appearance."""
    found = [_LOSS.fullmatch(key) for key in self.columns]
    return list(dict.fromkeys(m[1] for m in found if m and not m[2]))

  def averages(self, name: str) -> list[str]:
    """Averages of the weights that a set was scored with."""
    found = [_LOSS.fullmatch(key) for key in self.columns]
    return list(
      dict.fromkeys(m[2] for m in found if m and m[1] == name and m[2])
    )

  def last(
    self, name: str, metric: str = "loss", average: str | None = None
  ) -> tuple[int, float] | None:
    """Step and value of the newest score of a set; None if there is none.

    The score at the end of the run is on more rows, and is preferred unless the
    run went on.

    Args:
      name: Of the set.
      metric: E.g. "loss" or "stderr".
      average: Of the weights; None for the weights themselves.
    """
    keys = [loss_key(name, p + metric, average) for p in ("", "final_")]
    columns = [self.columns[key] for key in keys if key in self.columns]
    ends = [(int(c.steps[-1]), float(c.values[-1])) for c in columns]
    return max(reversed(ends), key=lambda end: end[0], default=None)

  def floors(self, name: str) -> dict[str, float]:
    """N-gram losses of a set in nats per token, e.g. {"bigram": 5.1}."""
    floors = self.info.get("floors", {}).get(name, {})
    return {k: v for k, v in floors.items() if k.endswith("gram")}


def loss_key(
  name: str, metric: str = "loss", average: str | None = None
) -> str:
  """Key of a score of a set, of the weights or of an average of them."""
  which = f"avg/{average}/" if average else ""
  return f"eval/{name}/{which}{metric}"


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
  columns = _todays(metrics.read(path), folder / "config.json")
  if "tokens" not in columns:
    raise ValueError(
      f"{path} has no lines yet. Wait for the first one (config.log.every "
      "steps), or see why the run stopped."
    )
  info_path = folder / "run.json"
  info = json.loads(info_path.read_text()) if info_path.is_file() else {}
  return Run(name or folder.resolve().name, columns, info)


def _todays(
  columns: dict[str, metrics.Column], stored: pathlib.Path
) -> dict[str, metrics.Column]:
  """The columns under today's keys; one in two parts is joined."""
  plain = json.loads(stored.read_text()) if stored.is_file() else {}
  averages = translations.config(plain).get("optim", {}).get("averages", ())
  found: dict[str, metrics.Column] = {}
  for key, column in columns.items():
    new = translations.metric(key, averages)
    if new in found:
      pairs = zip(found[new], column, strict=True)
      steps, values = (np.concatenate(pair) for pair in pairs)
      steps, first = np.unique(steps, return_index=True)
      column = metrics.Column(steps, values[first])
    found[new] = column
  return found


def load_runs(folders: Sequence[str | pathlib.Path]) -> list[Run]:
  """Reads several runs; equal folder names are told apart by their parents.

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

  A single line is the loss of one batch, which is too noisy to compare runs.
  """
  column = run.columns.get("train/loss")
  if column is None:
    return float("nan")
  return float(column.values[-max(1, len(column.values) // 10) :].mean())


def steps_to_loss(
  run: Run, name: str, loss: float, average: str | None = None
) -> Reached | None:
  """When a validation loss first came down to a target.

  Between the last evaluation above the target and the first at or below it
  the loss is taken as a straight line.

  Args:
    run: The run.
    name: Evaluation set.
    loss: Target in nats per token.
    average: Of the weights, by its name; None for the weights themselves.

  Returns:
    Steps, tokens and seconds, or None if the target was not reached.

  Raises:
    ValueError: If the run has not evaluated that set.
  """
  key = loss_key(name, average=average)
  if key not in run.columns:
    raise ValueError(
      f"run {run.name} has no {key}; its sets are {run.eval_sets()}, with the "
      f"averages {run.averages(name)}. Choose by --set and --average."
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


def is_finished(folder: pathlib.Path) -> bool:
  """Whether the run of a folder says it is finished."""
  try:
    info = json.loads((folder / "run.json").read_text())
  except (OSError, json.JSONDecodeError):
    return False
  return info.get("status") == "finished"
