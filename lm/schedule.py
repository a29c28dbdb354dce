"""Learning rate as a function of the update count.

A run is a warm-up of length W and a main part up to its end T; W, T and the
final decay are converted from `schedule.unit` to updates, fractions of one
included. With a = start_factor, z = end_factor and peak p:

    warm-up       p (a + (1 - a) t / W)
    constant      p
    cosine        p (z + (1 - z) (1 + cos(pi s)) / 2),  s = (t - W) / (T - W)
    linear        p (1 - (1 - z) s)
    wsd           p until T - decay, then linear to z p at T
    inverse_sqrt  p sqrt(W / t)

After T the value at T is kept. Sources: OLMo's warm-up and cosine, the
warm-up-stable-decay of MiniCPM (Hu et al., 2024), the inverse square root of
Vaswani et al. (2017). optax's schedules count whole steps; these lengths may
be fractions of a step.
"""

import jax.numpy as jnp
import optax

from .config import Config


def learning_rate(config: Config) -> optax.Schedule:
  """The schedule of a configuration, to be called with the update count.

  Args:
    config: Validated; `optim.learning_rate` is the peak.

  Returns:
    A function from the count (int or array, the first update is 0) to a
    float32 learning rate.
  """
  s, peak = config.schedule, config.optim.learning_rate
  total = float(config.num_steps)
  warmup, decay = warmup_steps(config), s.decay * _updates_per_unit(config)
  main = max(total - warmup, 1e-9)

  def rate(count):
    t = jnp.minimum(jnp.asarray(count, jnp.float32), total)
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
      falling = jnp.sqrt(warmup / jnp.maximum(t, warmup))
    else:
      falling = 1.0
    return jnp.float32(peak) * jnp.where(t < warmup, rising, falling)

  return rate


def warmup_steps(config: Config) -> float:
  """Length of the warm-up in updates, fractions of one included."""
  return config.schedule.warmup * _updates_per_unit(config)


def _updates_per_unit(config: Config) -> float:
  return {
    "fraction": float(config.num_steps),
    "steps": 1.0,
    "tokens": 1.0 / config.tokens_per_step,
  }[config.schedule.unit]
