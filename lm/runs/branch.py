"""A branch: a run that goes on from a checkpoint of another run.

    --config.train.branch_from=RUN[:STEP]

A branch takes over the weights, optimiser, clock and place in the stream of the
other run. It may have another batch, length, rate, schedule and rounding of
products. The length
counts from the start of the other run. A branch with the same configuration
makes the updates that the other run would have made, bit for bit.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax

from ..config import load
from ..config.errors import ConfigError
from ..config.schema import Config
from ..processes import distributed
from ..step.parts import Parts
from ..step.state import TrainState
from . import checkpoint, length, resume, workdir

# Beginnings of keys in which a branch may differ, beside those of `resume`.
_FREE = (
  "data.batch_size",
  "data.batch_schedule",
  "model.product",
  "optim.learning_rate",
  "product.",
  "schedule.",
  "train.branch_",
)


def resolve(config: Config, folder: str | os.PathLike | None = None) -> Config:
  """Fills in where a branch begins: `branch_step` and `branch_tokens`.

  A branch that has begun reads both from its own folder: the other run may have
  gone on, or may be gone.

  Args:
    config: Validated; returned as it is unless `train.branch_from` is set.
    folder: Of the branch.

  Raises:
    ConfigError: If there is no such run or step, or the branch would have no
      updates.
    CheckpointError: If the checkpoint's clock cannot be read.
  """
  t = config.train
  if not t.branch_from:
    return config
  run, step = _place(t.branch_from)
  own = None if folder is None else pathlib.Path(folder).expanduser()
  if own is not None and own.resolve() == run.resolve():
    raise ConfigError(
      f"config.train.branch_from={t.branch_from} is the run in --workdir="
      f"{folder} itself; give the branch another --workdir."
    )
  begun = _begun(t.branch_from, folder)
  if begun is None:
    step = checkpoint.pick(run, step)
    tokens = checkpoint.read_clock(run, step)["tokens"]
  else:
    step, tokens = begun.train.branch_step, begun.train.branch_tokens
  # Processes may have seen different newest steps of a run that goes on.
  step, tokens = json.loads(distributed.said_by_first(f"[{step}, {tokens}]"))
  for name, end, past in (
    ("num_steps", t.num_steps, step),
    ("num_tokens", t.num_tokens, tokens),
  ):
    if 0 < end <= past:
      raise ConfigError(
        f"config.train.{name}={end} counts from the start of the run that "
        f"config.train.branch_from={t.branch_from} names, and the branch "
        f"begins at {past}: set it higher."
      )
  t = dataclasses.replace(t, branch_step=step, branch_tokens=tokens)
  return dataclasses.replace(config, train=t)


def start(
  parts: Parts, fingerprint: str
) -> tuple[TrainState, resume.Clock] | None:
  """State and clock that a branch begins with; None if the run is none.

  Prints one line about the learning rate.

  Args:
    parts: Of the branch, whose configuration is `resolve`d.
    fingerprint: Of its data.

  Raises:
    ConfigError: If the other run differs in what a branch keeps.
    CheckpointError: If the checkpoint cannot be read.
  """
  config = parts.config
  if not config.train.branch_from:
    return None
  run, step = _place(config.train.branch_from)[0], config.train.branch_step
  saved = checkpoint.read_clock(run, checkpoint.pick(run, step))
  _check(saved, config, fingerprint)
  state = checkpoint.restore(run, step, parts)
  if jax.process_index() == 0:
    jump = length.rates(load.from_dict(saved["config"]), config, step)
    print(f"Branched from step {step} of {run}: {jump}", flush=True)
  return state, resume.Clock(*(saved[name] for name in resume.Clock._fields))


def _check(saved: dict[str, Any], config: Config, fingerprint: str) -> None:
  source = f"config.train.branch_from={config.train.branch_from}"
  differences = resume.differences(saved, config, _is_free)
  if differences:
    raise ConfigError(
      f"{source} has another configuration:\n{differences}\nA branch may "
      "differ in batch, length, rate and schedule. To take the weights alone: "
      "--config.train.init_from."
    )
  if saved["fingerprint"] != fingerprint:
    raise ConfigError(
      f"{source} was trained on other data (fingerprint "
      f"{saved['fingerprint'][:12]}) than what is below config.data.root="
      f"{config.data.root} (fingerprint {fingerprint[:12]}). Prepare the same "
      "data again."
    )
  resume.check_tails(saved, config)


def _is_free(key: str) -> bool:
  of_a_role = key.startswith("optim.by_role.") and key.endswith("learning_rate")
  return of_a_role or key.startswith((*_FREE, *resume.FREE))


def _place(source: str) -> tuple[pathlib.Path, int | None]:
  """Splits RUN[:STEP]; a folder whose name ends in :STEP is a RUN."""
  run, colon, step = source.rpartition(":")
  if colon and step.isdecimal() and not pathlib.Path(source).is_dir():
    return pathlib.Path(run).expanduser(), int(step)
  return pathlib.Path(source).expanduser(), None


def _begun(source: str, folder: str | os.PathLike | None) -> Config | None:
  """The configuration of a branch from `source` that `folder` already holds."""
  path = pathlib.Path(folder or ".").expanduser() / "config.json"
  if folder is None or not path.is_file():
    return None
  stored = workdir.read_config(path.parent)
  return stored if stored.train.branch_from == source else None
