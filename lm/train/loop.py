"""The training loop: data in, updates, and at their steps the other jobs.

    restore or init -> for each step: rows -> train_step -> reporter
                                      -> evaluate -> checkpoint -> stop?

Everything that runs on the devices is compiled before the first step. The loop
waits for the devices only at a due metric (one step late), an evaluation or a
checkpoint.
"""

import contextlib
import os
from collections.abc import Generator, Iterator
from concurrent import futures
from typing import NamedTuple

import jax
import numpy as np

from ..config import load, ramp
from ..config.schema import Config
from ..data.stream import Prefetcher
from ..eval.evaluator import Evaluator
from ..model import mesh as meshes
from ..model.transformer import Transformer
from ..objectives.view import Batch
from ..probes import table as probes
from ..runs import branch, lock, resume, weights, workdir
from ..step import build, memory
from ..step.parts import Parts
from . import compiles, jobs
from .session import Session, open_session


def train(config: Config, folder: str | os.PathLike) -> int:
  """Trains to the end of the configuration, resuming if it was begun.

  Returns:
    An exit code of `lm/config/errors.py`.

  Raises:
    ValueError: If data, devices or the folder do not fit the configuration, or
      another run is open in the folder.
    CheckpointError: If a checkpoint cannot be written.
  """
  weights.check_source(config.train.init_from)
  data = build.find_data(config)
  config = branch.resolve(config, folder)
  path = workdir.prepare(folder)
  with contextlib.ExitStack() as stack:
    stack.enter_context(lock.held(path))
    parts = build.build(build.resolve(config, data))
    build.check_rows(parts.config, parts.mesh)
    memory.check(parts)
    stack.enter_context(jax.set_mesh(parts.mesh))
    session = open_session(parts, data, path, stack)
    code = _steps(session)
    if code == 0:
      jobs.show_samples(session)
      session.run_file.write("finished", step=session.clock.step)
    return code


def _steps(s: Session) -> int:
  """Makes the updates that are left; returns the exit code."""
  config = s.parts.config
  phases = _phases(s)
  with futures.ThreadPoolExecutor(1) as other_core:
    scoring = other_core.submit(_compile_scoring, s, phases)
    steps = {
      (phase.begin, due): build.compile_step(
        phase.parts, probes.probing(phase.parts, due)
      )
      for phase in phases
      for due in probes.sets(config, phase.begin + 1, phase.end)
    }
    scoring.result()
  due_at = probes.schedule(config)
  ramps, pass_rows = ramp.ramps(config), s.parts.buffer_shape[1]
  with (
    compiles.counting() as compiled,
    _buffers(s) as buffers,
    contextlib.closing(_profile(s)) as profile,
  ):
    s.reporter.start(s.clock)
    for buffer, rows in buffers:
      next(profile)
      due = due_at(s.clock.step + 1)
      n = np.int32(rows // pass_rows)
      phase = next(p for p in phases if s.clock.step < p.end)
      s.evaluator = phase.evaluator
      s.state, metrics = steps[phase.begin, due](s.state, buffer, n)
      s.clock = s.clock.advance(rows, config.data.seq_length)
      more = {"train/batch_size": np.int32(rows)} if ramps else {}
      s.reporter.push(
        s.clock, metrics | more, buffers.wait_seconds, measured=bool(due)
      )
      s.scores = {}
      s.run_file.note(compiles_in_loop=compiled.count)
      code = _jobs(s)
      if code is not None:
        return code
  s.progress.log(f"Nothing left to do after step {s.clock.step}.")
  return 0


class _Phase(NamedTuple):
  """Updates begin + 1, ..., end, whose products have one recipe."""

  begin: int
  end: int
  parts: Parts
  evaluator: Evaluator


def _phases(s: Session) -> list[_Phase]:
  """Those that are left; one of them but for `config.product.switch_at`."""
  config, now = s.parts.config, s.clock.step
  recipes = load.product_phases(config)
  ends = [*(begin for begin, _ in recipes[1:]), ramp.num_steps(config)]
  found = []
  for (begin, other), end in zip(recipes, ends, strict=True):
    if end <= now and end != ends[-1]:
      continue
    parts, evaluator = s.parts, s.evaluator
    if other is not config:
      parts = parts._replace(config=other, model=Transformer(other.model))
      evaluator = evaluator.of(parts)
    found.append(_Phase(max(begin, now), end, parts, evaluator))
  return found


def _compile_scoring(s: Session, phases: list[_Phase]) -> None:
  for phase in phases:
    phase.evaluator.compile()
  s.evaluator.compile_points()
  if s.rounder is not None:
    s.rounder.compile()


def _jobs(s: Session) -> int | None:
  """What is due after an update; an exit code ends the run."""
  config, step = s.parts.config, s.clock.step
  last = step >= ramp.num_steps(config)
  e = config.eval
  if e.sets and e.every and (last or _due(step, e.every)):
    jobs.score(s, e.batches)
    last = last or _low_enough(s)
  if e.sets and last:
    jobs.score(s, e.final_batches, final=True)
  stop = s.signals.received or s.checkpointer.reached_preemption(step)
  if s.reporter.halted:
    return jobs.crash(s)
  if last or stop or _due(step, config.checkpoint.every):
    if not jobs.save(s):
      return jobs.crash(s)
  if last:
    s.checkpointer.wait()
    return 0
  return jobs.preempt(s) if stop else None


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0


def _low_enough(s: Session) -> bool:
  t = s.parts.config.train
  if s.scores[t.stop_at_average or None] >= t.stop_at_loss:
    return False
  which = f" of {t.stop_at_average}" if t.stop_at_average else ""
  s.progress.log(
    f"Loss{which} below config.train.stop_at_loss={t.stop_at_loss}: stopping."
  )
  return True


def _buffers(s: Session) -> Prefetcher:
  """(buffer on the devices, rows that count) of each update that is left.

  Made ahead; a buffer is as large as the largest batch of the run.
  """
  config, shape = s.parts.config, s.parts.buffer_shape
  first, end = meshes.row_range(s.parts.batch_sharding.tokens, shape)

  def read(start: int, size: int) -> tuple[Batch, int]:
    local = np.zeros((shape[0], end - first, shape[2]), np.int32)
    index = np.zeros(local.shape[:2], np.int64)
    for i in range(size // shape[1]):
      begin = start + i * shape[1] + first
      local[i] = s.stream.rows(begin, end - first)
      index[i] = np.arange(begin, begin + end - first)
    return build.put_buffer(s.parts, local, index), size

  def schedule(done: resume.Clock) -> Iterator[tuple[int, int]]:
    start = done.examples
    for phase in ramp.of_config(config):
      for _ in range(max(phase.step, done.step), phase.step + phase.updates):
        yield start, phase.rows
        start += phase.rows

  return Prefetcher(read, schedule(s.clock), config.data.prefetch)


def _profile(s: Session) -> Generator[None]:
  """Advanced before each step: traces the window that `config.log` asks for."""
  log = s.parts.config.log
  while s.clock.step < log.profile_start or not log.profile_steps:
    yield
  jax.profiler.start_trace(str(s.path / "profile"))
  end = s.clock.step + log.profile_steps
  try:
    while s.clock.step < end:
      yield
  finally:
    jax.block_until_ready(s.state)
    jax.profiler.stop_trace()
  s.progress.log(f"Profile written to {s.path / 'profile'}.")
  while True:
    yield
