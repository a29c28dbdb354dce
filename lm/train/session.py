"""A run that is open: its state, its clock and everything it writes to."""

import contextlib
import dataclasses
import pathlib

from ..config import load, ramp
from ..data import layout
from ..data.stream import Stream, open_stream
from ..eval.evaluator import Evaluator
from ..eval.rounded import Rounder
from ..processes.stopping import StopSignals
from ..runs import branch, metrics, resume, workdir
from ..runs.checkpoint import Checkpointer
from ..step import memory, state
from ..step.parts import Parts
from .progress import Progress
from .reporter import Reporter


@dataclasses.dataclass
class Session:
  """What the loop and its jobs share; only the first four fields change."""

  state: state.TrainState  # Training state after the newest update.
  clock: resume.Clock  # Where that is.
  # Loss of the first eval set at this very step, if it was scored, by the name
  # of an average; None for the weights themselves.
  scores: dict[str | None, float]

  evaluator: Evaluator  # Of the recipe of the newest update.

  parts: Parts
  path: pathlib.Path
  stream: Stream
  rounder: Rounder | None
  checkpointer: Checkpointer
  reporter: Reporter
  progress: Progress
  stopwatch: resume.Stopwatch
  run_file: workdir.RunFile
  signals: StopSignals


def open_session(
  parts: Parts,
  data: dict[str, layout.Prepared],
  path: pathlib.Path,
  stack: contextlib.ExitStack,
) -> Session:
  """Restores or initialises, and opens what the loop writes to.

  Raises:
    ConfigError: If the folder holds another run.
  """
  config, options = parts.config, parts.config.checkpoint
  signals = stack.enter_context(StopSignals())
  stream = open_stream(config.data, config.seed)
  evaluator = Evaluator(parts, data)
  checkpointer = Checkpointer(
    path,
    keep=options.keep,
    keep_period=options.keep_period,
    keep_best=options.keep_best,
    async_save=options.async_save,
  )
  stack.enter_context(checkpointer)
  train_state, clock = (
    resume.newest(parts, checkpointer, stream.fingerprint)
    or branch.start(parts, stream.fingerprint)
    or resume.fresh(parts)
  )
  workdir.write_json(path / "config.json", load.to_dict(config))
  run_file = workdir.RunFile(path, workdir.facts(parts, data))
  run_file.write("running")
  writer = metrics.open_writers(
    path,
    tensorboard=config.log.tensorboard,
    wandb=config.log.wandb,
    config=load.to_dict(config),
  )
  stack.callback(writer.close)
  steps, length = ramp.num_steps(config), config.data.seq_length
  progress = Progress(
    config.log.progress,
    steps,
    ramp.tokens_at(ramp.of_config(config), length, steps),
    start_step=clock.step,
    start_tokens=clock.tokens,
  )
  stack.callback(progress.close)
  progress.log(workdir.headline(parts, clock.step))
  if growth := ramp.describe(config):
    progress.log(growth)
  progress.log(memory.table(memory.kept(parts)))
  stopwatch = resume.Stopwatch(clock.seconds)
  return Session(
    state=train_state,
    clock=clock,
    scores={},
    evaluator=evaluator,
    parts=parts,
    path=path,
    stream=stream,
    rounder=None if parts.quantizers is None else Rounder(parts),
    checkpointer=checkpointer,
    reporter=Reporter(parts, writer, progress, stopwatch, clock),
    progress=progress,
    stopwatch=stopwatch,
    run_file=run_file,
    signals=signals,
  )
