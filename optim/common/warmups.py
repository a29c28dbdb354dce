"""Warm-ups of decays and of coefficients, counted from 1 as AdEMAMix does."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def at(value: Any, count: jax.Array) -> Any:
  """A number, or a schedule's value at a count."""
  return value(count) if callable(value) else value


def linear(value: Any, num_steps: Any | None, step: Any) -> Any:
  """A coefficient that grows linearly from 0 at step 0.

  Args:
    value: Number from `num_steps` on, or a schedule.
    num_steps: None: `value` itself, evaluated at the step if a schedule.
    step: int32 [], of the update that is being made, from 1.
  """
  if num_steps is None:
    return at(value, step)
  return value * jnp.minimum(_wide(step) / num_steps, 1)


def half_life(end: Any, start: Any, num_steps: Any | None, step: Any) -> Any:
  """A decay whose half-life grows linearly from that of `start`.

  With h(b) = ln(0.5) / ln(b + 1e-8) - 1 and s = step / num_steps, the decay is
  0.5^(1 / (1 + (1 - s) h(start) + s h(end))), and `end` from `num_steps` on.

  Args:
    end: Number in [0, 1), or a schedule.
    start: Number in [0, 1).
    num_steps: None: `end` itself, evaluated at the step if a schedule.
    step: int32 [], of the update that is being made, from 1.

  References:
    Pagliardini et al., "The AdEMAMix optimizer", 2024, appendix A.1,
    https://arxiv.org/abs/2409.03137
  """
  if num_steps is None:
    return at(end, step)
  s = _wide(step) / num_steps
  lives = (1 - s) * _life(start) + s * _life(end)
  return jnp.where(s < 1, 0.5 ** (1 / (1 + lives)), end)


def _life(decay: Any) -> Any:
  """h: the half-life in steps, less one."""
  log = jnp.log if isinstance(decay, jax.Array) else math.log
  return math.log(0.5) / log(decay + 1e-8) - 1


def _wide(step: Any) -> jax.Array:
  return step.astype(jnp.result_type(float))
