"""Rows of each update, as a function of the tokens seen before it.

A ramp is a list of milestones (tokens, rows, rate). A milestone holds from the
first update that begins at or after `tokens`: batches have `rows` rows, and the
learning rate is `rate` times its schedule. An update passes at most one
milestone. The number of microbatches is data to the compiled step, so a change
compiles nothing.

Seesaw replaces the decay of a cosine by a growing batch. Where the cosine has
fallen by another factor alpha, the rate falls by sqrt(alpha) and the batch
grows by alpha. For normalised updates dominated by noise the loss is then the
same function of tokens, after fewer updates. Beyond the critical batch size
this is no longer true.

Source: Meterez et al., "Seesaw: accelerating training by balancing learning
rate and batch size scheduling", 2025, https://arxiv.org/abs/2510.14717
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .schema import Config


class Milestone(NamedTuple):
  """What holds from some number of tokens on."""

  tokens: int
  rows: int
  rate: float = 1.0


class Phase(NamedTuple):
  """Updates of one size."""

  step: int  # Updates made before its first.
  tokens: int  # Targets trained on before its first update.
  rows: int  # Of each of its updates.
  rate: float  # Factor of the learning rate.
  updates: int  # How many it has.


def phases(
  milestones: Sequence[Milestone],
  total_tokens: int,
  seq_length: int,
  *,
  step: int = 0,
  tokens: int = 0,
) -> tuple[Phase, ...]:
  """Counts the updates of a ramp until `total_tokens` are reached.

  Args:
    milestones: In order, the first at 0 tokens.
    total_tokens: The last update is the one that reaches them.
    seq_length: Targets of a row.
    step: Updates made before, in a run that was branched off.
    tokens: Targets they trained on.

  Returns:
    Phases without updates are left out.
  """
  begun = sum(milestone.tokens <= tokens for milestone in milestones)
  milestones, found = milestones[begun - 1 :], []
  for i, milestone in enumerate(milestones):
    if tokens >= total_tokens:
      break
    size = milestone.rows * seq_length
    end = total_tokens
    if i + 1 < len(milestones):
      end = min(end, milestones[i + 1].tokens)
    updates = max(1, -(-(end - tokens) // size))
    found.append(Phase(step, tokens, milestone.rows, milestone.rate, updates))
    step, tokens = step + updates, tokens + updates * size
  return tuple(found)


def seesaw(
  rows: int,
  total_tokens: int,
  warmup_tokens: float,
  *,
  alpha: float = 1.1,
  end_factor: float = 0.1,
  multiple: int = 1,
  max_rows: int = 0,
) -> tuple[Milestone, ...]:
  r"""Milestones of the ramp that replaces a cosine.

  Milestone k is where the cosine, from 1 after the warm-up W to end_factor z
  at T, has fallen to alpha^-k:

      s_k = W + (T - W) / pi * arccos(2 (alpha^-k - z) / (1 - z) - 1)

  for k = 1, 2, ... while alpha^-k >= z. There the batch is rows alpha^k, and
  the rate alpha^(-k / 2). Once the batch may not grow, the rate falls by alpha.

  Args:
    rows: Of the first batches.
    total_tokens: T.
    warmup_tokens: W.
    alpha: > 1; the closer to 1, the fewer updates.
    end_factor: z, in (0, 1): rates do not fall below it.
    multiple: Batches are rounded down to multiples of it.
    max_rows: Largest batch; 0 for none.
  """
  count = math.floor(math.log(end_factor) / -math.log(alpha) + 1e-9)
  found = [Milestone(0, rows)]
  size, rate = float(rows), 1.0
  for k in range(1, count + 1):
    height = 2 * (alpha**-k - end_factor) / (1 - end_factor) - 1
    angle = math.acos(max(-1.0, min(1.0, height))) / math.pi
    tokens = warmup_tokens + round((total_tokens - warmup_tokens) * angle)
    if max_rows and size * alpha > max_rows:
      rate /= alpha
    else:
      size, rate = size * alpha, rate / math.sqrt(alpha)
    whole = max(multiple, int(size + 1e-9) // multiple * multiple)
    found.append(Milestone(round(tokens), whole, max(rate, end_factor)))
  return tuple(found)


def of_config(config: Config) -> tuple[Phase, ...]:
  """The phases of a run; one, unless its batch grows.

  The phases of a branch begin at the branch, unless the branch's own batches
  would have led there.
  """
  step, tokens = config.train.branch_step, config.train.branch_tokens
  found = _planned(config, 0, 0)
  if tokens == tokens_at(found, config.data.seq_length, step):
    return found  # A branch, if it is one, whose past had the same batches.
  return _planned(config, step, tokens)


def _planned(config: Config, step: int, tokens: int) -> tuple[Phase, ...]:
  """The phases after `step` updates on `tokens` targets of any batches."""
  d, t = config.data, config.train
  if not ramps(config):
    left = -(-(t.num_tokens - tokens) // config.tokens_per_step)
    updates = t.num_steps - step if t.num_steps else left
    return (Phase(step, tokens, d.batch_size, 1.0, updates),)
  if d.batch_schedule:
    milestones = [Milestone(*entry) for entry in d.batch_schedule]
  else:
    milestones = list(_seesaw(config, config.microbatch_size))
  return phases(
    milestones, t.num_tokens, d.seq_length, step=step, tokens=tokens
  )


def describe(config: Config) -> str:
  """What a growing batch does, in one line; empty if it does not grow."""
  if not ramps(config):
    return ""
  found = of_config(config)
  sizes = [phase.rows for phase in found]
  line = f"Batches of {min(sizes)} to {max(sizes)} rows in {len(found)} phases"
  if config.schedule.name == "seesaw":
    total, length = config.train.num_tokens, config.data.seq_length
    whole = phases(_seesaw(config, 1), total, length)[-1]
    line += (
      f", multiples of {config.microbatch_size} "
      f"(config.train.microbatch_size): {num_steps(config)} updates, where "
      f"batches of any size would need {whole.step + whole.updates}"
    )
  return line + "."


def ramps(config: Config) -> bool:
  """Whether the batch grows; the run is then measured in tokens alone."""
  return bool(config.data.batch_schedule) or config.schedule.name == "seesaw"


def num_steps(config: Config) -> int:
  """Updates of the whole run."""
  last = of_config(config)[-1]
  return last.step + last.updates


def phase_at(found: Sequence[Phase], step: int) -> Phase:
  """The phase of the update that comes after `step` updates."""
  return max((p for p in found if p.step <= step), key=lambda p: p.step)


def tokens_at(found: Sequence[Phase], seq_length: int, step: int) -> int:
  """Targets trained on in the first `step` updates."""
  phase = phase_at(found, step)
  return phase.tokens + (step - phase.step) * phase.rows * seq_length


def problems(config: Config) -> Iterator[str]:
  """What is wrong with the batches of a configuration."""
  d, s, t = config.data, config.schedule, config.train
  rows = config.microbatch_size
  if s.name == "seesaw":
    yield from _seesaw_problems(config)
  for entry in d.batch_schedule:
    pair = isinstance(entry, tuple) and len(entry) == 2
    if not pair or not all(type(n) is int for n in entry):
      yield (
        f"config.data.batch_schedule has {entry!r}, expected pairs (tokens, "
        "rows) of integers."
      )
      return
  starts = [tokens for tokens, _ in d.batch_schedule]
  if starts and (starts[0], d.batch_schedule[0][1]) != (0, d.batch_size):
    yield (
      f"config.data.batch_schedule begins with {d.batch_schedule[0]}; it must "
      f"be (0, config.data.batch_size) = (0, {d.batch_size})."
    )
  if starts != sorted(set(starts)):
    yield f"config.data.batch_schedule has tokens {starts}, not increasing."
  for _, n in d.batch_schedule:
    if n < 1 or n % rows:
      yield (
        f"config.data.batch_schedule has batches of {n} rows; they must be "
        f"multiples of the {rows} of a pass (config.train.microbatch_size)."
      )
  by_tokens = t.num_tokens and not t.num_steps and s.unit != "steps"
  if ramps(config) and not by_tokens:
    yield (
      "A batch that grows (config.data.batch_schedule, or schedule.name="
      "'seesaw') is scheduled by tokens: set config.train.num_tokens, not "
      "num_steps, and config.schedule.unit to 'fraction' or 'tokens'."
    )


def _seesaw(config: Config, multiple: int) -> tuple[Milestone, ...]:
  s, tokens = config.schedule, config.train.num_tokens
  return seesaw(
    config.data.batch_size,
    tokens,
    s.warmup * (tokens if s.unit == "fraction" else 1),
    alpha=s.alpha,
    end_factor=s.end_factor,
    multiple=multiple,
    max_rows=s.max_batch_size,
  )


def _seesaw_problems(config: Config) -> Iterator[str]:
  s = config.schedule
  if config.data.batch_schedule:
    yield (
      "config.schedule.name='seesaw' makes the batches; leave "
      "config.data.batch_schedule=() or take another schedule."
    )
  if not s.alpha > 1:
    yield f"config.schedule.alpha={s.alpha} must be > 1, e.g. 1.1."
  if not 0 < s.end_factor < 1:
    yield (
      f"config.schedule.end_factor={s.end_factor} must be in (0, 1) for "
      "'seesaw': it ends the growth of the batch."
    )
  elif s.alpha > 1:
    sizes = {m.rows for m in _seesaw(config, config.microbatch_size)}
    if sizes == {config.data.batch_size}:
      yield (
        "config.schedule.name='seesaw' would never grow the batch: "
        f"config.data.batch_size={config.data.batch_size}, in multiples of "
        f"config.train.microbatch_size={config.microbatch_size}, up to "
        f"config.schedule.max_batch_size={s.max_batch_size} (0: no limit), "
        f"alpha={s.alpha}, end_factor={s.end_factor}. Take a smaller "
        "microbatch, a larger limit, or alpha below 1 / end_factor."
      )
