"""Checkpoints: the only file of `lm` that uses Orbax.

A checkpoint is two items, `state` (arrays, each process writes its shards) and
`clock` (JSON: step, examples, tokens, seconds, configuration and the data's
fingerprint). Orbax writes into a temporary folder and renames the folder, so a
checkpoint exists whole or not at all. A damaged checkpoint is set aside with a
message, and the one before it is used.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ..config import translations
from ..config.errors import ConfigError
from ..model.params import by_path
from ..step import methods
from ..step.parts import Parts
from ..step.state import TrainState

_FOLDER = "checkpoints"


class CheckpointError(OSError):
  """A checkpoint could not be written or read; the message says what to do."""


def abstract(parts: Parts) -> TrainState:
  """Shapes, dtypes and shardings of the state of a run, to restore into."""
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    parts.abstract_state,
    parts.shardings,
  )


class Checkpointer:
  """Saves and restores the checkpoints of one run; a context manager."""

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    keep: int = 2,
    keep_period: int = 0,
    keep_best: bool = False,
    async_save: bool = True,
    log: Callable[[str], None] = print,
  ):
    """Opens the checkpoints of `workdir`, existing or not.

    Args:
      workdir: Folder of the run.
      keep: Newest checkpoints to keep, >= 1.
      keep_period: Keep each step that it divides, too; 0 for none.
      keep_best: Keep the one with the lowest evaluation loss, too.
      async_save: Write in the background.
      log: Where messages go.
    """
    policy = ocp.checkpoint_managers
    kept: list[Any] = [policy.LatestN(keep)]
    if keep_period:
      kept.append(policy.EveryNSteps(keep_period))
    if keep_best:
      best = policy.BestN(
        get_metric_fn=lambda m: m["loss"],
        reverse=True,
        n=1,
        keep_checkpoints_without_metrics=False,
      )
      kept.append(best)
    self._folder = pathlib.Path(workdir).absolute() / _FOLDER
    self._log = log
    self._options = ocp.CheckpointManagerOptions(
      enable_async_checkpointing=async_save,
      preservation_policy=policy.AnyPreservationPolicy(kept),
      cleanup_tmp_directories=True,  # Left by a killed process.
      save_root_metadata=False,  # A thread that an early exit would trip over.
    )
    self._manager = ocp.CheckpointManager(self._folder, options=self._options)

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, kind, error, trace) -> None:
    if kind is not None and jax.process_count() > 1:
      return  # The end of a save waits for processes that may be lost.
    try:
      self.wait()
    except CheckpointError:
      if kind is None:
        raise
    finally:
      self._manager.close()

  def steps(self) -> list[int]:
    """Steps with a whole checkpoint, ascending."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: Any,
    clock: dict[str, Any],
    loss: float | None,
  ) -> None:
    """Waits for the save before, and starts a new one; existing steps stay.

    Args:
      step: Names the checkpoint.
      state: Of arrays; may be donated once this returns.
      clock: What JSON can hold.
      loss: Evaluation loss at this step if there is one, for `keep_best`.

    Raises:
      CheckpointError: If this save, or the one before it, failed.
    """
    if step in self._manager.all_steps():
      return
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state), clock=ocp.args.JsonSave(clock)
    )
    metrics = None if loss is None else {"loss": float(loss)}
    with self._saving():
      self._manager.save(step, args=args, metrics=metrics, force=True)

  def wait(self) -> None:
    """Blocks until the running save is on disk.

    Raises:
      CheckpointError: If it failed.
    """
    with self._saving():
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def reached_preemption(self, step: int) -> bool:
    """Whether some process of the run was told to stop (several processes)."""
    return jax.process_count() > 1 and self._manager.reached_preemption(step)

  def newest(self) -> tuple[int, dict[str, Any]] | None:
    """Step and clock of the newest whole checkpoint; None without any.

    A checkpoint whose clock cannot be read is set aside.
    """
    while steps := self.steps():
      try:
        return steps[-1], read_clock(self._folder.parent, steps[-1])
      except CheckpointError as error:
        self.set_aside(steps[-1], error)
    return None

  def restore(self, step: int, parts: Parts) -> Any:
    """The function `restore`, of this run."""
    return restore(self._folder.parent, step, parts)

  def set_aside(self, step: int, error: Exception) -> None:
    """Moves a damaged checkpoint out of the way, with a message.

    Raises:
      CheckpointError: With several processes, which may see different damage.
    """
    source = self._folder / str(step)
    if jax.process_count() > 1:
      raise CheckpointError(
        f"{error}\nMove {source} away to resume from the one before it."
      )
    target = self._folder.parent / "damaged" / str(step)
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)
    self._manager.reload()
    left = self.steps()
    self._log(
      f"{error}\nMoved it to {target}; resuming from "
      f"{f'step {left[-1]}' if left else 'the start'}."
    )

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    """Turns what the storage raises into one message that says what is left."""
    try:
      yield
    except Exception as error:
      good = (
        f"Step {max(self.steps())} is whole" if self.steps() else "None yet"
      )
      raise CheckpointError(
        f"Could not write a checkpoint to {self._folder}: "
        f"{_first_line(error)}\n{good}; make room or set another --workdir, "
        "then run the same command."
      ) from error


def list_steps(workdir: str | os.PathLike) -> list[int]:
  """Steps with a whole checkpoint below `workdir`, ascending."""
  folder = pathlib.Path(workdir).absolute() / _FOLDER
  if not folder.is_dir():
    return []
  return sorted(ocp.path.step.checkpoint_steps(folder))


def pick(workdir: str | os.PathLike, step: int | None) -> int:
  """The step itself if it has a whole checkpoint; the newest one for None.

  Raises:
    ConfigError: If there is no such checkpoint.
  """
  steps = list_steps(workdir)
  if not steps:
    raise ConfigError(f"{workdir} holds no checkpoint.")
  if step is not None and step not in steps:
    raise ConfigError(
      f"{workdir} holds no checkpoint of step {step}; it has {steps}."
    )
  return steps[-1] if step is None else step


def newest_text(workdir: str | os.PathLike) -> str:
  """Where a run goes on: "step N", or "the start" without a checkpoint."""
  steps = list_steps(pathlib.Path(workdir).expanduser())
  return f"step {steps[-1]}" if steps else "the start"


def read_clock(workdir: str | os.PathLike, step: int) -> dict[str, Any]:
  """What was saved as the clock of `step`; the run may be open elsewhere.

  Raises:
    CheckpointError: If it cannot be read.
  """
  folder = pathlib.Path(workdir).absolute() / _FOLDER / str(step)
  with (
    _reading(folder),
    ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader,
  ):
    return reader.restore(folder / "clock")


def restore(workdir: str | os.PathLike, step: int, parts: Parts) -> Any:
  """State of a checkpoint, laid out for `parts`.

  Stacks of matrices are padded to a multiple of the devices (`optim`). On
  another mesh missing padding is filled with zeros, and surplus padding is left
  out.

  Args:
    workdir: Of the run.
    step: Which one.
    parts: Of the run, on any mesh.

  Raises:
    CheckpointError: If it cannot be read.
    ValueError: If it holds another state.
  """
  whole = abstract(parts)
  leaves = read_leaves(workdir, step, by_path(whole), parts)
  return jax.tree.unflatten(jax.tree.structure(whole), list(leaves.values()))


def read_leaves(
  workdir: str | os.PathLike,
  step: int,
  wanted: dict[str, jax.ShapeDtypeStruct],
  parts: Parts,
) -> dict[str, jax.Array]:
  """Some leaves of a checkpoint; nothing else is read.

  Args:
    workdir: Of the run.
    step: Which checkpoint.
    wanted: Shapes with shardings by path in a `TrainState`. Stacks of matrices
      may have another length than the saved ones: see `restore`.
    parts: Of the run.

  Returns:
    Arrays by the paths of `wanted`, in its order.

  Raises:
    CheckpointError: If the checkpoint cannot be read.
    ValueError: If a leaf is missing, or has another shape.
  """
  folder = pathlib.Path(workdir).absolute() / _FOLDER / str(step)
  reader = ocp.PyTreeCheckpointer()
  with _reading(folder):
    metadata: Any = reader.metadata(folder / "state")
    saved = metadata.item_metadata.tree
  where: dict[str, Any] = {name: name for name in wanted}
  if "ema" in saved:
    updates = step // methods.of(parts.config).updates_per_step(parts.config)
    where = {name: translations.leaf(name, updates) for name in wanted}
  stored = by_path(saved)
  _check_shapes(folder, wanted, where, stored)
  asked = {where[k]: leaf for k, leaf in wanted.items()}
  leaves = [asked.get(path, ocp.PLACEHOLDER) for path in stored]
  item = jax.tree.unflatten(jax.tree.structure(saved), leaves)
  args = ocp.args.PyTreeRestore(item, jax.tree.map(_restore_args, item))
  with _reading(folder):
    found = by_path(reader.restore(folder / "state", args=args))
  return {
    name: found[place] if isinstance(place, str) else _full(place, wanted[name])
    for name, place in where.items()
  }


def _check_shapes(
  folder: pathlib.Path,
  wanted: dict[str, jax.ShapeDtypeStruct],
  where: dict[str, Any],
  saved: dict[str, Any],
) -> None:
  """Raises unless saved shapes differ in the length of stacks at most."""
  for name, place in where.items():
    shape = tuple(wanted[name].shape)
    if not isinstance(place, str):
      continue
    if place not in saved or tuple(saved[place].shape)[1:] != shape[1:]:
      there = f"of shape {saved[place].shape}" if place in saved else "nowhere"
      raise ValueError(
        f"Checkpoint {folder} holds {name} {there}, and this program has "
        f"{shape}: it was written by another version."
      )


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
  if leaf is ocp.PLACEHOLDER:
    return ocp.RestoreArgs()
  return ocp.ArrayRestoreArgs(
    sharding=leaf.sharding,
    global_shape=leaf.shape,
    dtype=leaf.dtype,
    strict=False,
  )


def _full(value: float, like: jax.ShapeDtypeStruct) -> jax.Array:
  full = np.full(like.shape, value, like.dtype)
  return jax.make_array_from_callback(
    like.shape, like.sharding, lambda index: full[index]
  )


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[None]:
  """Turns whatever the storage raises into one message."""
  try:
    yield
  except Exception as error:
    raise CheckpointError(
      f"Checkpoint {folder} is damaged: {_first_line(error)}"
    ) from error


def _first_line(error: Exception) -> str:
  if "No space left" in str(error):  # At the end of a long chain of paths.
    return "No space left on the disk."
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
