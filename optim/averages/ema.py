"""An average of the weights, without bias and on the clock of the updates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.tree import upcast


class AverageState(NamedTuple):
  """State of `average_weights`."""

  count: jax.Array  # int32 []: updates averaged.
  average: Any  # s, like params, float32.
  weight: jax.Array  # float32 []: what s is of ones in place of weights.
  inner: Any  # Of the wrapped transform.


def average_weights(
  inner: optax.GradientTransformation,
  decay: float,
  *,
  has_updated: Callable[[Any], jax.Array] | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Wraps any optimiser and averages the weights that its updates lead to.

      s <- decay s + (1 - decay) (params + updates),  from s = 0

  read as s / (1 - decay^n) by `averaged_params`: the initial parameters have no
  part in it. One update is one update whatever the optimiser does inside it, so
  averages of different optimisers compare.

  Args:
    inner: The optimiser.
    decay: Share of the old average kept at an update, in [0, 1).
    has_updated: State of `inner` -> whether it made an update at this call;
      for those that accumulate, e.g. `optim.has_updated`. None: always.

  Returns:
    A transform whose `update` needs `params`; updates are those of `inner`.

  Raises:
    ValueError: For a decay out of range, or an `update` without `params`.
  """
  checks.decay("decay", decay)
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    zeros = upcast(optax.tree.zeros_like(params))
    return AverageState(
      jnp.zeros((), jnp.int32),
      zeros,
      jnp.zeros((), jnp.float32),
      inner.init(params),
    )

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(
        "average_weights averages the parameters, so pass them: "
        "tx.update(grads, opt_state, params)."
      )
    updates, inner_state = inner.update(
      updates, state.inner, params, **extra_args
    )
    counted = jnp.asarray(True)
    if has_updated is not None:
      counted = has_updated(inner_state)

    def blend(s, new):
      new = decay * s + (1 - decay) * new
      return jnp.where(counted, new, s).astype(s.dtype)

    def average(s, w, u):
      return blend(s, w.astype(s.dtype) + u.astype(s.dtype))

    mean = jax.tree.map(average, state.average, params, updates)
    weight = blend(state.weight, 1.0)
    count = state.count + counted.astype(jnp.int32)
    return updates, AverageState(count, mean, weight, inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def averaged_params(state: AverageState, params: Any) -> Any:
  """The average without bias, in the dtypes of params; params before any.

  Args:
    state: Of `average_weights`.
    params: The current parameters.
  """

  def read(s, p):
    mean = s / jnp.where(state.count > 0, state.weight, 1.0).astype(s.dtype)
    return jnp.where(state.count > 0, mean, p.astype(s.dtype)).astype(p.dtype)

  return jax.tree.map(read, state.average, params)
