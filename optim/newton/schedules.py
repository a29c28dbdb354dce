"""Learning rates of the inner steps, in closed form.

The learning rate is a function of the outer step t and of the inner step i
within the outer step. Gauss-Newton counts both steps itself. A reset of the
inner optimiser restarts neither count, and nothing is unrolled over the outer
steps.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from ..common import checks

InnerSchedule = Callable[[Any, Any], jax.Array]
Kind = Literal[
  "constant",
  "global_cosine",
  "constant_with_inner_cosine",
  "cosine_with_global_schedule",
]


def inner_schedule(
  kind: Kind,
  peak: float,
  outer_steps: int,
  inner_steps: int,
  outer_warmup: float = 0.0,
  inner_warmup: float = 0.0,
  end: float = 0.0,
) -> InnerSchedule:
  r"""Makes a learning rate for inner step i < N of outer step t < T.

  Let cos(x; p, w, D) be the line from p / 10 to p over w steps, then until D

      end + (p - end) (1 + cos(pi (x - w) / (D - w))) / 2

  and `end` after D. The kinds are:

      constant                     peak
      global_cosine                cos(t N + i; peak, outer_warmup N, T N)
      constant_with_inner_cosine   cos(i; peak_t, inner_warmup, N), where peak_t
                                   is peak after outer_warmup outer steps, and
                                   a line from peak / 10 before
      cosine_with_global_schedule  cos(i; cos(t; peak, outer_warmup, T),
                                   inner_warmup, N)

  The inner cosine averages the noise of the batches out within each outer step.

  Args:
    kind: One of the four kinds above.
    peak: Largest learning rate, >= 0; a number or an array.
    outer_steps: T, >= 1.
    inner_steps: N, the updates in an outer step, >= 1.
    outer_warmup: Number of outer steps; a number up to 1 is a fraction of T.
    inner_warmup: Number of inner steps; a number up to 1 is a fraction of N.
    end: The learning rate at the end of the cosines, >= 0.

  Returns:
    (t, i) -> learning rate, float32 [].

  Raises:
    ValueError: For an argument out of range.
  """
  checks.choice("kind", kind, get_args(Kind))
  for name, value in (("peak", peak), ("end", end)):
    checks.positive(name, value, zero_too=True)
  checks.count("outer_steps", outer_steps)
  checks.count("inner_steps", inner_steps)
  outer_warm = _steps("outer_warmup", outer_warmup, outer_steps)
  inner_warm = _steps("inner_warmup", inner_warmup, inner_steps)

  def rate(t, i):
    t, i = jnp.asarray(t, jnp.float32), jnp.asarray(i, jnp.float32)
    if kind == "constant":
      return jnp.asarray(peak, jnp.float32)
    if kind == "global_cosine":
      x, warm = t * inner_steps + i, outer_warm * inner_steps
      return _cosine(x, peak, warm, outer_steps * inner_steps, end)
    if kind == "constant_with_inner_cosine":
      peak_t = _warm(t, peak, outer_warm)
    else:
      peak_t = _cosine(t, peak, outer_warm, outer_steps, end)
    return _cosine(i, peak_t, inner_warm, inner_steps, end)

  return rate


def _steps(name, value, whole):
  checks.positive(name, value, zero_too=True)
  steps = value * whole if value <= 1 else value
  if steps > whole:
    raise ValueError(
      f"{name}={value} is longer than the {whole} steps there are; give a "
      "fraction up to 1, or fewer steps."
    )
  return steps


def _warm(x, peak, warm):
  """The line from peak / 10 to peak, and peak after it."""
  if not warm:
    return jnp.asarray(peak, jnp.float32)
  return peak * (0.1 + 0.9 * jnp.minimum(x / warm, 1.0))


def _cosine(x, peak, warm, whole, end):
  share = jnp.clip((x - warm) / max(whole - warm, 1e-9), 0.0, 1.0)
  down = end + (peak - end) * (1 + jnp.cos(jnp.pi * share)) / 2
  return jnp.where(x < warm, _warm(x, peak, warm), down)
