"""Learning rate as a function of the update count.

A run is a warm-up of length W and a main part up to its end T. W, T, A and the
final decay are converted from `schedule.unit` to updates and may be fractions.
With a = start_factor, z = end_factor and peak p:

    warm-up       p (a + (1 - a) t / W)
    constant      p
    cosine        p (z + (1 - z) (1 + cos(pi s)) / 2),  s = (t - W) / (T - W)
    linear        p (1 - (1 - z) s)
    wsd           p until T - decay, then linear to z p at T
    inverse_sqrt  p sqrt(A / (t - W + A)),  A = offset, W without one
    seesaw        p times the rate of the phase (`lm/config/ramp.py`)

t is the number of updates before this one. While batches grow, t counts tokens,
in updates of the first size. In a branch with other batches than its past t
counts tokens too, unless `train.num_steps` or a unit of steps counts updates.
After T the value at T is kept. Sources: OLMo's warm-up and cosine, the
warm-up-stable-decay of MiniCPM (Hu et al., 2024), the inverse square root of
Vaswani et al. (2017). optax's schedules count whole steps only.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..config import ramp
from ..config.schema import Config


def learning_rate(config: Config, peak: float | None = None) -> optax.Schedule:
  """The schedule of a configuration, to be called with the update count.

  Args:
    config: Validated.
    peak: None for `optim.learning_rate`.

  Returns:
    A function from the count (int or array, the first update is 0) to a
    float32 learning rate.
  """
  s = config.schedule
  peak = config.optim.learning_rate if peak is None else peak
  total = _length(config)
  clock = _clock(config)
  warmup, decay = warmup_steps(config), s.decay * _updates_per_unit(config)
  offset = s.offset * _updates_per_unit(config) or warmup
  main = max(total - warmup, 1e-9)

  def rate(count):
    t, factor = clock(count)
    t = jnp.minimum(t, total)
    rising = s.start_factor + (1 - s.start_factor) * t / max(warmup, 1e-9)
    past = jnp.maximum(t - warmup, 0.0)
    share = jnp.minimum(past / main, 1.0)
    if s.name == "cosine":
      falling = 1 - (1 - s.end_factor) * (1 - jnp.cos(jnp.pi * share)) / 2
    elif s.name == "linear":
      falling = 1 - (1 - s.end_factor) * share
    elif s.name == "wsd":
      tail = jnp.maximum(past - (main - decay), 0.0) / max(decay, 1e-9)
      falling = 1 - (1 - s.end_factor) * tail
    elif s.name == "inverse_sqrt":
      falling = jnp.sqrt(offset / (past + offset))
    else:
      falling = 1.0
    height = jnp.where(t < warmup, rising, falling)
    return jnp.float32(peak) * factor * height

  return rate


def warmup_steps(config: Config) -> float:
  """Length of the warm-up in updates, fractions of one included."""
  return config.schedule.warmup * _updates_per_unit(config)


def _length(config: Config) -> float:
  """Of the run, in updates of the first size."""
  end = ramp.num_steps(config)
  if not _by_tokens(config):
    return float(end)
  found, row = ramp.of_config(config), config.data.seq_length
  tokens = config.train.num_tokens or ramp.tokens_at(found, row, end)
  return tokens / config.tokens_per_step


def _by_tokens(config: Config) -> bool:
  branched = ramp.of_config(config)[0].step > 0  # With other batches.
  unit = config.schedule.unit
  counts = unit == "tokens" or (unit == "fraction" and config.train.num_tokens)
  return ramp.ramps(config) or bool(branched and counts)


def _updates_per_unit(config: Config) -> float:
  return {
    "fraction": _length(config),
    "steps": 1.0,
    "tokens": 1.0 / config.tokens_per_step,
  }[config.schedule.unit]


def _clock(config: Config) -> Callable[[Any], tuple[jax.Array, Any]]:
  """Update count -> (t in updates of the first size, rate of the phase)."""
  found = ramp.of_config(config)
  first = len(found) == 1 and found[0].step == 0
  if first or not _by_tokens(config):
    return lambda count: (jnp.asarray(count, jnp.float32), 1.0)
  steps = np.array([phase.step for phase in found])
  size = config.data.seq_length / config.tokens_per_step
  begin = np.array([p.tokens / config.tokens_per_step for p in found])
  slope = np.array([phase.rows * size for phase in found])
  rates = np.array([phase.rate for phase in found])

  def clock(count):
    k = jnp.searchsorted(steps, jnp.asarray(count), side="right") - 1
    k = jnp.maximum(k, 0)  # The past of a branch has phases of its own.
    begin_k, slope_k, rate = (
      jnp.asarray(values, jnp.float32)[k] for values in (begin, slope, rates)
    )
    return begin_k + slope_k * (count - jnp.asarray(steps)[k]), rate

  return clock
