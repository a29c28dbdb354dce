"""Where a run starts: afresh, at its checkpoint, or from other weights."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ..config import load, ramp
from ..config.errors import ConfigError
from ..config.schema import Config
from ..step import build
from ..step.parts import Parts
from ..step.state import TrainState
from ..weights import table as weights_table
from . import length, weights
from .checkpoint import Checkpointer, CheckpointError

# Keys that may differ between a checkpoint and the command that resumes from
# it. They change neither the numbers nor their meaning.
FREE = (
  "mesh.",
  "eval.",
  "checkpoint.",
  "log.",
  "schedule.allow_new_length",
  "train.num_steps",  # If the past would be the same: `length.check`.
  "train.num_tokens",
  "train.stop_at_loss",
  "train.stop_at_average",
  "train.init_from",
  "train.microbatch_size",
  "data.root",
  "data.prefetch",
  "data.select",  # The fingerprint depends on the file's rows.
  "model.remat",
  "model.attention",
  "model.loss_chunk",
  "model.compute_dtype",
)


class Clock(NamedTuple):
  """How far a run is; saved with each checkpoint.

  Attributes:
    step: Updates made.
    examples: Rows of the stream consumed.
    tokens: Targets trained on (padding included).
    seconds: Spent training, over all lives of the run (`Stopwatch`).
  """

  step: int = 0
  examples: int = 0
  tokens: int = 0
  seconds: float = 0.0

  def advance(self, rows: int, seq_length: int) -> "Clock":
    """After an update of `rows` rows; `seconds` is the caller's."""
    return self._replace(
      step=self.step + 1,
      examples=self.examples + rows,
      tokens=self.tokens + rows * seq_length,
    )


class Stopwatch:
  """Seconds spent training over all lives of a run.

  Compiling, scoring and waiting for a checkpoint are left out, so that a run
  does not look slower when it is scored more often.
  """

  def __init__(self, seconds: float):
    """Stands still at `seconds`."""
    self._seconds = seconds
    self._since: float | None = None

  def seconds(self) -> float:
    """What it shows."""
    running = 0.0 if self._since is None else time.monotonic() - self._since
    return self._seconds + running

  def run(self) -> None:
    """Starts it."""
    self._since = time.monotonic()

  def stop(self) -> None:
    """Stops it."""
    self._seconds, self._since = self.seconds(), None


def to_json(clock: Clock, config: Config, fingerprint: str) -> dict[str, Any]:
  """What is saved beside the state."""
  return {
    **clock._asdict(),
    "config": load.to_dict(config),
    "fingerprint": fingerprint,
  }


def check(saved: dict[str, Any], config: Config, fingerprint: str) -> Clock:
  """The clock of a checkpoint, if `config` may go on from it.

  Args:
    saved: What `to_json` made.
    config: Resolved configuration of this command.
    fingerprint: Of this command's data.

  Raises:
    ConfigError: If a key that shapes the run differs, or the data does, or the
      updates made would have had other batches or rates.
  """
  if found := differences(saved, config, lambda key: key.startswith(FREE)):
    raise ConfigError(
      f"This workdir holds a run with another configuration:\n{found}\nUse "
      "another --workdir; to start from these weights with a fresh optimiser, "
      "pass --config.train.init_from=THIS_WORKDIR as well; to go on with "
      "another batch, rate or schedule, --config.train.branch_from."
    )
  _check_tokens(saved, config)
  check_tails(saved, config)
  if saved["fingerprint"] != fingerprint:
    raise ConfigError(
      f"The data below config.data.root={config.data.root}"
      f"{_select(saved['config']['data'], config)} is not what the "
      f"checkpoint was trained on (fingerprint {fingerprint[:12]}, was "
      f"{saved['fingerprint'][:12]}). Prepare the same data again, or use "
      "another --workdir."
    )
  note = length.check(load.from_dict(saved["config"]), config, saved["step"])
  if note and jax.process_index() == 0:
    print(note, flush=True)
  return Clock(*(saved[field] for field in Clock._fields))


def _select(then: dict[str, Any], config: Config) -> str:
  """Names a choice of rows, which may be why a fingerprint differs."""
  old, new = then.get("select", ""), config.data.select
  if not old and not new:
    return ""
  return f", of which config.data.select={new!r} (was {old!r}) chooses rows,"


def _check_tokens(saved: dict[str, Any], config: Config) -> None:
  """Refuses to go on if the past would have had other batches.

  A growing batch may depend on the length of the run and on the microbatch.
  Both may change in a run whose batch does not grow.
  """
  step, row = saved["step"], config.data.seq_length
  tokens = ramp.tokens_at(ramp.of_config(config), row, step)
  if tokens == saved["tokens"]:
    return
  then, now = saved["config"]["train"], config.train
  raise ConfigError(
    f"The {step} updates of this run trained on {saved['tokens']} tokens, but "
    f"this configuration would have trained on {tokens}: the growth of batches "
    "depends on the length of the run and on the microbatch. Go on "
    f"with config.train.num_tokens={then['num_tokens']} and microbatch_size="
    f"{then['microbatch_size']} (now {now.num_tokens} and "
    f"{now.microbatch_size}), or use another --workdir."
  )


def check_tails(saved: dict[str, Any], config: Config) -> None:
  """Refuses another length once the average of a tail has begun."""
  then = load.from_dict(saved["config"])
  lengths = [ramp.num_steps(c) for c in (then, config)]
  for name in config.optim.averages:
    kind, _, share = name.partition(":")
    begins = (1 - float(share)) * min(lengths)
    if kind == "tail" and lengths[0] != lengths[1] and saved["step"] > begins:
      raise ConfigError(
        f"The average {name!r} of config.optim.averages is over a share of the "
        f"run and has begun by step {saved['step']}: go on with the length "
        f"num_steps={lengths[0]} (now {lengths[1]}), or use another --workdir."
      )


def differences(
  saved: dict[str, Any], config: Config, free: Callable[[str], bool]
) -> str:
  """The keys whose values differ from the checkpoint's although they must not.

  Args:
    saved: What `to_json` made.
    config: Resolved configuration of this command.
    free: Whether a key may differ.

  Returns:
    A line for each key; "" if there is none.
  """
  then = load.to_dict(load.from_dict(saved["config"]))
  found = _differences(then, load.to_dict(config))
  return "\n".join(
    f"  config.{key}: {old!r} there, {new!r} now"
    for key, old, new in found
    if not free(key)
  )


def _differences(
  old: dict[str, Any], new: dict[str, Any], path: str = ""
) -> list[tuple[str, Any, Any]]:
  """(key, old, new) of all leaves that differ."""
  found = []
  for key in sorted(old.keys() | new.keys()):
    name, a, b = f"{path}{key}", old.get(key), new.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
      found += _differences(a, b, f"{name}.")
    elif a != b:
      found.append((name, a, b))
  return found


def newest(
  parts: Parts, checkpointer: Checkpointer, fingerprint: str
) -> tuple[TrainState, Clock] | None:
  """State and clock of the newest whole checkpoint; None without any.

  Args:
    parts: Of the run.
    checkpointer: Of the run.
    fingerprint: Of the data.

  Raises:
    ConfigError: If the checkpoint belongs to another run.
  """
  while (found := checkpointer.newest()) is not None:
    step, saved = found
    clock = check(saved, parts.config, fingerprint)
    try:
      return checkpointer.restore(step, parts), clock
    except CheckpointError as error:
      checkpointer.set_aside(step, error)
  return None


def fresh(parts: Parts) -> tuple[TrainState, Clock]:
  """State and clock of a run that begins, from other weights if it says so."""
  made = build.init_state(parts)
  if parts.config.train.init_from:
    model = weights.load(parts, parts.config.train.init_from)
    params, frozen = weights_table.started(parts.config, made.params, model)
    made = made._replace(params=params, frozen=frozen)
  return made, Clock()
