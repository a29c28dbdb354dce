"""What a run does beside its updates: score, save, stop."""

import jax
import numpy as np

from ..config import errors, ramp
from ..eval import rounded
from ..eval.sampler import sample_texts
from ..objectives import table as objectives
from ..objectives.decoding import Sampling
from ..runs import resume
from ..step.state import TrainState
from .session import Session


def score(s: Session, max_batches: int, *, final: bool = False) -> None:
  """Evaluates the weights, their averages if there are any, and roundings.

  Args:
    s: The run; without `final`, `scores` becomes the loss of the first set by
      the name of the average, None for the weights themselves.
    max_batches: Per set; 0 scores whole splits.
    final: The keys are those of the end of a run, `eval/SET/final_loss`, and
      weights are rounded at random as well.
  """
  config, prefix = s.parts.config, "final_" if final else ""
  values: dict[str, float] = {}

  def add(name: str, scalars: dict[str, float]) -> None:
    for key, value in scalars.items():
      values[f"eval/{name}/{prefix}{key}"] = value

  with s.reporter.paused(s.clock):
    own = s.evaluator.point(s.state)
    results = s.evaluator.run(own, max_batches)
    scores: dict[str | None, float] = {None: results[config.eval.sets[0]].loss}
    lines = [f"{name} {result}" for name, result in results.items()]
    for name, result in results.items():
      add(name, result.scalars())
    for average in s.evaluator.averages:
      weights = s.evaluator.point(s.state, average)
      averaged = s.evaluator.run(weights, max_batches)
      scores[average] = averaged[config.eval.sets[0]].loss
      for name, result in averaged.items():
        add(f"{name}/avg/{average}", {"loss": result.loss})
    if s.rounder is not None:
      draws = config.quant.draws if final else 0
      values |= s.rounder.measure(own)
      roundings = rounded.score(s.evaluator, s.rounder, own, max_batches, draws)
      lines += [f"{name} {result}" for name, result in roundings.items()]
      for name, result in roundings.items():
        add(name, result.scalars())
    s.reporter.write(s.clock, values)
    if not final:
      s.scores = scores
    when = f"{'end, ' if final else ''}step {s.clock.step}"
    for line in lines:
      s.progress.log(f"{when}: {line}")


def save(s: Session) -> bool:
  """Starts a checkpoint of this step, unless the state is halted.

  Returns:
    Whether the state was sound.
  """
  with s.reporter.paused(s.clock):
    if s.reporter.halted or bool(s.state.halted):
      return False
    _save(s, s.state, s.clock)
  return True


def preempt(s: Session) -> int:
  """Waits for the checkpoint of this step and says how to go on."""
  s.checkpointer.wait()
  s.run_file.write("preempted", step=s.clock.step)
  s.progress.log(
    f"Stopped by {s.signals.received or 'SIGTERM to a process'}; step "
    f"{s.clock.step} is saved. Run the same command again to go on."
  )
  return errors.PREEMPTED


def crash(s: Session) -> int:
  """Saves the last good state and names the rows that broke it."""
  good = int(s.state.step)
  found = ramp.of_config(s.parts.config)
  length = s.parts.config.data.seq_length
  tokens = ramp.tokens_at(found, length, good)
  clock = resume.Clock(good, tokens // length, tokens, s.stopwatch.seconds())
  sound = jax.device_put(np.zeros((), bool), s.parts.shardings.halted)
  _save(s, s.state._replace(halted=sound), clock)
  s.checkpointer.wait()
  first = clock.examples
  end = first + ramp.phase_at(found, good).rows
  s.run_file.write("crashed", step=good, examples=[first, end])
  s.progress.log(
    f"Update {good} met a loss or gradient that is not finite, on examples "
    f"[{first}, {end}) of the stream. The state before it is saved as step "
    f"{good}: the same command repeats that update. A smaller "
    "--config.optim.learning_rate or --config.optim.clip_norm needs another "
    "--workdir, with --config.train.init_from to keep the weights."
  )
  return errors.NOT_FINITE


def show_samples(s: Session) -> None:
  """Prints what `config.log.samples` asks for; process 0 alone prints."""
  log = s.parts.config.log
  if not log.samples:
    return
  if line := objectives.chosen(s.parts.config).cannot_sample():
    s.progress.log(line)
    return
  texts = sample_texts(
    s.parts,
    s.evaluator.point(s.state),
    prompts=[""] * log.samples,
    num_tokens=log.sample_tokens,
    key=jax.random.key(s.parts.config.seed),
    sampling=Sampling(temperature=0.8),
  )
  for i, text in enumerate(texts, 1):
    s.progress.log(f"--- sample {i} ---\n{text}")


def _save(s: Session, train_state: TrainState, clock: resume.Clock) -> None:
  clock = clock._replace(seconds=s.stopwatch.seconds())
  saved = resume.to_json(clock, s.parts.config, s.stream.fingerprint)
  s.reporter.sync()  # A resumed run would not write these lines again.
  s.checkpointer.save(clock.step, train_state, saved, s.scores.get(None))
