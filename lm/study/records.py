"""What the runs of a study have written, and what a planted trainer writes."""

import contextlib
import json
import math
import pathlib
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..config import load as config_load
from ..config.errors import InputError
from ..runs import metrics, read

# (method, settings, horizon in tokens, rows of a batch, seed) -> [points, 2] of
# tokens and averaged loss; the last row is the final loss.
Trainer = Callable[[str, Mapping[str, Any], int, int, int], Any]
_ENDED = ("finished", "crashed")  # A run that crashed has diverged.
_FILES = ("config.json", "run.json", metrics.METRICS_FILE)  # Of a run.
_UPDATES = "planted/updates"  # They need not be whole numbers.


class Record(NamedTuple):
  """A run that has ended."""

  clock: tuple[np.ndarray, np.ndarray]  # Tokens and updates, of all lines.
  losses: dict[str, float]  # Of the whole run by score; inf if it diverged.
  curves: dict[str, tuple[np.ndarray, np.ndarray]]  # Tokens and losses.
  depth: float  # Passes one after the other of an update; 1 if not logged.
  seconds: float
  device: str
  cores: int  # That it could use; 0 if not told.

  @property
  def tokens(self) -> float:
    """At the end; nan if the run crashed."""
    return float(self.clock[0][-1])

  @property
  def updates(self) -> float:
    """At the end; nan if the run crashed."""
    return float(self.clock[1][-1])

  def updates_at(self, tokens: Any) -> np.ndarray:
    """Updates at numbers of tokens; inf at inf."""
    at = np.asarray(tokens, float)
    return np.where(np.isinf(at), at, np.interp(at, *self.clock))


def find(
  folder: pathlib.Path, scores: Mapping[str, str], trainer: str = ""
) -> Record | None:
  """The record of a run's folder; None if the run has not ended.

  Args:
    folder: ROOT/ID.
    scores: As in `Study`: key below eval/SET/ by name, where avg/* is the only
      average of the weights that the run has.
    trainer: FILE.py:NAME of a planted trainer; "" for `lm.main`.

  Raises:
    InputError: If another trainer has made the run, or a score is missing.
  """
  try:
    info = json.loads((folder / "run.json").read_text())
  except (OSError, json.JSONDecodeError):
    return None
  if info.get("status") not in _ENDED:
    return None
  made_by = info.get("trainer", "")
  if trainer_name(made_by) != trainer_name(trainer):
    raise InputError(
      f"{folder} was made by {made_by or 'lm.main'}, not by "
      f"{trainer or 'lm.main'}; give each trainer a --root of its own."
    )
  facts = str(info.get("device", "")), int(info.get("cores", 0))
  if info["status"] == "crashed":
    lost, never = dict.fromkeys(scores, math.inf), np.array([math.nan])
    return Record((never, never), lost, {}, 1.0, math.nan, *facts)
  run = read.load_run(folder)
  columns, curves, losses = run.columns, {}, {}
  for name, key in scores.items():
    curve, end = (_key(run, key, prefix) for prefix in ("", "final_"))
    if end not in columns:
      raise InputError(f"{folder} has no {end}; see the study's `scores`.")
    loss = float(columns[end].values[-1])
    losses[name] = loss if math.isfinite(loss) else math.inf
    if curve in columns:
      found = columns[curve]
      curves[name] = run.clock("tokens", found.steps), found.values
  tokens = columns["tokens"]
  updates = columns.get(_UPDATES, tokens._replace(values=tokens.steps))
  start = np.zeros(1)
  clock = [np.append(start, column.values) for column in (tokens, updates)]
  deep = columns.get("gn/depth")
  seconds = columns.get("seconds")
  return Record(
    (clock[0], clock[1]),
    losses,
    curves,
    float(deep.values[-1]) if deep else 1.0,
    float(seconds.values[-1]) if seconds else math.nan,
    *facts,
  )


def foreign(root: pathlib.Path, ids: Collection[str]) -> list[str]:
  """Folders of runs that the study has not asked for; they are not used."""
  if not root.is_dir():
    return []
  folders = {path.parent.name for f in _FILES for path in root.glob(f"*/{f}")}
  return sorted(f for f in folders - {*ids} if not f.startswith("."))


def trainer_of(root: pathlib.Path) -> str:
  """The trainer that made the first run below a root; "" for `lm.main`."""
  for path in sorted(root.glob("*/run.json")):
    with contextlib.suppress(OSError, json.JSONDecodeError):
      return json.loads(path.read_text()).get("trainer", "")
  return ""


def trainer_name(trainer: str) -> str:
  """FILE.py:NAME without folders: a file may be given by several paths."""
  return trainer.rpartition("/")[2]


def load_trainer(text: str) -> Trainer:
  """The function FILE.py:NAME."""
  file, colon, name = text.rpartition(":")
  found = getattr(config_load.import_file(file), name, None) if colon else None
  if not callable(found):
    raise InputError(f"--trainer={text} must be FILE.py:NAME of a function.")
  return found


def plant(
  folder: pathlib.Path,
  points: Any,
  settings: Mapping[str, Any],
  scores: Mapping[str, str],
  update_tokens: int,
  trainer: str,
) -> None:
  """Writes a trainer's points as a run writes them, whole or not at all.

  Args:
    folder: ROOT/ID, not there yet.
    points: Tokens and losses, [points, 2].
    settings: What the trainer was given, for `config.json`.
    scores: Keys that get the losses.
    update_tokens: Of an update.
    trainer: Its name.

  Raises:
    InputError: If the points are no such array.
  """
  try:
    table = np.asarray(points, float)
  except (TypeError, ValueError) as error:
    raise InputError(
      f"--trainer={trainer} returned {points!r:.60} for {dict(settings)}; it "
      "must be an array [points, 2]: tokens and losses."
    ) from error
  if table.ndim != 2 or table.shape[1] != 2 or not len(table):
    raise InputError(
      f"--trainer={trainer} returned an array of shape {table.shape} for "
      f"{dict(settings)}; it must be [points, 2]: tokens and losses."
    )
  at = table[:, 0]
  if not (at[0] > 0 and np.isfinite(at).all() and (np.diff(at) > 0).all()):
    raise InputError(
      f"--trainer={trainer} returned the tokens {at.tolist()} for "
      f"{dict(settings)}; they must be finite, > 0, and increase."
    )
  draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
  draft.mkdir(parents=True)
  (draft / "config.json").write_text(json.dumps(dict(settings)) + "\n")
  writer = metrics.JsonlWriter(draft / metrics.METRICS_FILE)
  # Points may be closer than updates: the step is the number of the point.
  for i, (tokens, loss) in enumerate(table.tolist()):
    values = {"tokens": tokens, _UPDATES: tokens / update_tokens}
    for key in scores.values():
      key = "eval/planted/" + key.replace("*", "planted")
      values[key] = loss
      if i + 1 == len(table):
        values[_final(key, "final_")] = loss
    writer.write(i + 1, values)
  writer.sync()
  writer.close()
  info = {"status": "finished", "trainer": trainer, "device": "planted"}
  (draft / "run.json").write_text(json.dumps(info) + "\n")
  try:
    draft.rename(folder)
  except OSError:  # Another process was first; a trainer is deterministic.
    shutil.rmtree(draft)
    if not read.is_finished(folder):
      raise


def _key(run: read.Run, key: str, prefix: str) -> str:
  name = run.eval_sets()[0] if run.eval_sets() else "planted"
  if "*" in key:
    averages = run.averages(name)
    if len(averages) != 1:
      raise InputError(
        f"the run {run.name} has the averages {averages}, but the score {key} "
        "asks for the only one; name it."
      )
    key = key.replace("*", averages[0])
  return _final(f"eval/{name}/{key}", prefix)


def _final(key: str, prefix: str) -> str:
  above, _, last = key.rpartition("/")
  return f"{above}/{prefix}{last}"
