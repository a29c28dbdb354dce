"""Where the numbers of a run go: JSON lines always, TensorBoard and W&B beside.

Every writer has `write(step, scalars)`, `sync()` and `close()`. The file
`<workdir>/metrics.jsonl` holds one JSON object a line with the integer "step"
and flat keys such as "train/loss". The file is flushed line by line, so a
killed process loses at most the line that it was writing. A resumed run appends
to the file. Everything is synced before a checkpoint is saved: a resumed run
begins after the checkpoint, and does not write earlier lines again.

A reader of the raw file needs two conventions:

* JSON has no NaN or infinity, so those are the strings "nan", "inf", "-inf"
  (null would not say which), and every line stays valid JSON;
* a resumed run repeats the steps since its checkpoint. Of equal (step, key) the
  last line counts, and `read` returns this line.
"""

import json
import math
import os
import pathlib
import secrets
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

import jax
import numpy as np

METRICS_FILE = "metrics.jsonl"


class Column(NamedTuple):
  """The history of one key, in increasing steps."""

  steps: np.ndarray  # int64, shape [lines with the key].
  values: np.ndarray  # float64, same shape.


class JsonlWriter:
  """Appends one JSON object a line to a file, flushed at once."""

  def __init__(self, path: str | os.PathLike):
    """Opens the file for appending.

    Args:
      path: The file; made with its folder if missing. A last line torn by a
        killed process is removed first, so that appending stays valid.
    """
    self._path = pathlib.Path(path)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    _repair(self._path)
    self._file: IO[str] = self._path.open("a", encoding="utf-8")

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends {"step": step, **scalars}; values are numbers or 0-d arrays."""
    encoded = {key: _encode(key, value) for key, value in scalars.items()}
    line = {"step": int(step)} | encoded
    self._file.write(json.dumps(line, allow_nan=False) + "\n")
    self._file.flush()

  def sync(self) -> None:
    """Has the lines on the disk even if the machine stops."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


class _TensorBoardWriter:
  """Writes TensorBoard event files through tensorboardX."""

  def __init__(self, logdir: pathlib.Path):
    self._make = _import("tensorboardX", "tensorboard").SummaryWriter
    self._logdir, self._writer = str(logdir), None

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    if self._writer is None:
      # Opened at the first write, when the step is known: TensorBoard hides the
      # events that an earlier life of the run wrote from this step on.
      self._writer = self._make(self._logdir, purge_step=int(step))
    for key, value in scalars.items():
      self._writer.add_scalar(key, float(value), int(step))

  def sync(self) -> None:
    if self._writer is not None:  # Else events wait in memory for two minutes.
      self._writer.flush()

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()


class _WandbWriter:
  """Writes to Weights & Biases; a resumed run continues the same W&B run.

  The project, entity and mode come from W&B's environment variables
  (WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE). W&B ignores steps it has seen, so
  of the steps repeated by a resume it keeps the first. The file `wandb_id` of
  the run's folder keeps W&B's id.
  """

  def __init__(self, workdir: pathlib.Path, config: Mapping[str, Any]):
    wandb = _import("wandb", "wandb")
    workdir.mkdir(parents=True, exist_ok=True)
    id_file = workdir / "wandb_id"
    if not id_file.exists():
      id_file.write_text(secrets.token_hex(4))
    self._run = wandb.init(
      id=id_file.read_text().strip(),
      name=workdir.name,
      dir=str(workdir),
      config=dict(config),
      resume="allow",
    )

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    self._run.log({k: float(v) for k, v in scalars.items()}, step=int(step))

  def sync(self) -> None:
    """Does nothing: W&B's own process has the data already."""

  def close(self) -> None:
    self._run.finish()


class Writer:
  """Passes everything on to several writers; does nothing with none."""

  def __init__(self, *writers: Any):
    """Takes the writers in the order they will be called."""
    self._writers = writers

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Records the scalars of one step."""
    for writer in self._writers:
      writer.write(step, scalars)

  def sync(self) -> None:
    """Hands all that was written to the disk; it outlives the process."""
    for writer in self._writers:
      writer.sync()

  def close(self) -> None:
    """Flushes and releases; nothing may be written afterwards."""
    for writer in self._writers:
      writer.close()


def open_writers(
  workdir: str | os.PathLike,
  *,
  tensorboard: bool = False,
  wandb: bool = False,
  config: Mapping[str, Any] | None = None,
) -> Writer:
  """Opens the writers of a run; process 0 writes, the others keep silent.

  Args:
    workdir: Folder of the run; gets metrics.jsonl, and tensorboard/.
    tensorboard: Also write TensorBoard events.
    wandb: Also log to Weights & Biases.
    config: Resolved configuration, for W&B.

  Raises:
    ValueError: If the package of an asked-for writer is not installed.
  """
  if jax.process_index() != 0:
    return Writer()
  workdir = pathlib.Path(workdir)
  extras: list[Any] = []  # First: a missing package opens no file.
  if tensorboard:
    extras.append(_TensorBoardWriter(workdir / "tensorboard"))
  if wandb:
    extras.append(_WandbWriter(workdir, config or {}))
  return Writer(JsonlWriter(workdir / METRICS_FILE), *extras)


def read(path: str | os.PathLike) -> dict[str, Column]:
  """Reads a metrics file into one column a key.

  Args:
    path: A metrics.jsonl, or the folder of a run that has one.

  Returns:
    Key -> Column. Of equal (step, key) the last line counts; a torn last line
    (the run may still be writing) is ignored.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If a line other than the last is not a JSON object with "step".
  """
  path = pathlib.Path(path)
  path = path / METRICS_FILE if path.is_dir() else path
  histories: dict[str, dict[int, float]] = {}
  for line in _lines(path):
    step = line.pop("step")
    for key, value in line.items():
      histories.setdefault(key, {})[step] = float(value)
  columns = {}
  for key, history in histories.items():
    steps = np.array(sorted(history), dtype=np.int64)
    values = np.array([history[s] for s in steps.tolist()], dtype=np.float64)
    columns[key] = Column(steps, values)
  return columns


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  with path.open(encoding="utf-8", errors="replace") as file:
    for number, text in enumerate(file, start=1):
      line = _parse(text)
      if line is not None:
        yield line
      elif next(file, None) is not None:
        raise ValueError(
          f"{path}, line {number}: expected a JSON object with an integer "
          f'"step", got {text.strip()[:60]!r}. Delete the line to go on.'
        )


def _parse(text: str) -> dict[str, Any] | None:
  """The object of one line, or None if the line is torn or not of a run."""
  try:
    line = json.loads(text)
  except json.JSONDecodeError:
    return None
  whole = isinstance(line, dict) and isinstance(line.get("step"), int)
  return line if whole else None


def _repair(path: pathlib.Path) -> None:
  """Makes the file end in a newline, dropping a line that is not whole."""
  if not path.exists():
    return
  with path.open("r+b") as file:
    whole, newline, last = file.read().rpartition(b"\n")
    if not last:
      return
    if _parse(last.decode("utf-8", errors="replace")) is None:
      file.truncate(len(whole) + len(newline))
    else:
      file.write(b"\n")


def _encode(key: str, value: Any) -> int | float | str:
  number = np.asarray(value)
  if number.ndim:
    raise ValueError(
      f"metric {key!r} has shape {number.shape}; a writer takes scalars. "
      "Reduce it, or write one key an element."
    )
  if np.issubdtype(number.dtype, np.integer):
    return int(number)
  number = float(number)
  return number if math.isfinite(number) else str(number)


def _import(module: str, extra: str) -> Any:
  try:
    return __import__(module)
  except ImportError as error:
    raise ValueError(
      f"config.log.{extra}=True needs the package {module}, which is not "
      f"installed: pip install 'goldenpath[{extra}]', or pass "
      f"--config.log.{extra}=False."
    ) from error
