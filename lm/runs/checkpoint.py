"""Checkpoints: the only file of `lm` that touches Orbax.

A checkpoint is two items, `state` (arrays, each process writes its shards) and
`clock` (JSON: step, examples, tokens, seconds, configuration and the data's
fingerprint). Orbax writes into a temporary folder and renames it, so a
checkpoint exists whole or not at all; a damaged one is set aside with a
message and the one before it is used.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from ..step.state import TrainState

_FOLDER = "checkpoints"


class CheckpointError(OSError):
  """A checkpoint could not be written or read; the message says what to do."""


def abstract(tree: Any, shardings: Any) -> Any:
  """Shapes and dtypes of `tree` with the given shardings, to restore into."""
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    tree,
    shardings,
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
    self, step: int, state: Any, clock: dict[str, Any], loss: float | None
  ) -> None:
    """Starts saving (waits for the save before it); existing steps are kept.

    Args:
      step: Names the checkpoint.
      state: Tree of arrays; may be donated once this returns.
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

    One whose clock cannot be read is set aside.
    """
    while steps := self.steps():
      try:
        return steps[-1], self.clock(steps[-1])
      except CheckpointError as error:
        self.set_aside(steps[-1], error)
    return None

  def clock(self, step: int) -> dict[str, Any]:
    """What `save` was given as the clock of `step`.

    Raises:
      CheckpointError: If it cannot be read.
    """
    return self._restore(step, clock=ocp.args.JsonRestore())["clock"]

  def restore(self, step: int, abstract_state: Any) -> Any:
    """State of a checkpoint, laid out as `abstract_state` says.

    Stacks of matrices are padded to a multiple of the devices (`optim`): on
    another mesh what is missing is zeros, and what is too much is left out.

    Args:
      step: Which one.
      abstract_state: `jax.ShapeDtypeStruct`s with shardings, on any mesh.

    Raises:
      CheckpointError: If it cannot be read.
    """
    args = ocp.args.StandardRestore(abstract_state, strict=False)
    state = self._restore(step, state=args)["state"]
    self._check_shapes(step, abstract_state)
    return state

  def _check_shapes(self, step: int, abstract_state: Any) -> None:
    """Raises unless saved shapes differ in the length of stacks at most."""
    saved = _shapes(self._manager.item_metadata(step)["state"])
    for name, shape in _shapes(abstract_state).items():
      if saved.get(name, shape)[1:] != shape[1:]:
        raise ValueError(
          f"Checkpoint {self._folder / str(step)} holds {name} of shape "
          f"{saved[name]}, and this program has {shape}: it was written by "
          "another version."
        )

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

  def _restore(self, step: int, **items: Any) -> Any:
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Whatever the storage raises.
      raise CheckpointError(
        f"Checkpoint {self._folder / str(step)} is damaged: "
        f"{_first_line(error)}"
      ) from error

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


def newest_text(workdir: str | os.PathLike) -> str:
  """Where a run goes on: "step N", or "the start" without a checkpoint."""
  steps = list_steps(pathlib.Path(workdir).expanduser())
  return f"step {steps[-1]}" if steps else "the start"


def restore_fields(
  workdir: str | os.PathLike, step: int, abstract_state: TrainState
) -> TrainState:
  """The fields of a checkpoint that are asked for; nothing else is read.

  Args:
    workdir: Of the run.
    step: Which checkpoint.
    abstract_state: Fields that are None are left out, the others hold
      `jax.ShapeDtypeStruct`s with shardings.

  Raises:
    CheckpointError: If it cannot be read or does not fit.
  """
  item = {k: v for k, v in abstract_state._asdict().items() if v is not None}
  folder = pathlib.Path(workdir).absolute() / _FOLDER / str(step) / "state"
  args = ocp.args.PyTreeRestore(
    item=item,
    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
    partial_restore=True,
  )
  try:
    return abstract_state._replace(
      **ocp.PyTreeCheckpointer().restore(folder, args=args)
    )
  except Exception as error:
    raise CheckpointError(
      f"Could not read the parameters in {folder}: {_first_line(error)}"
    ) from error


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """Shapes by path, whether fields are attributes, indices or keys."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _first_line(error: Exception) -> str:
  if "No space left" in str(error):  # At the end of a long chain of paths.
    return "No space left on the disk."
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
