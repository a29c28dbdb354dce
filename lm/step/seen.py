"""The weights that the model sees, made from a state outside of an update."""

from collections.abc import Callable
from typing import Any

import jax

from .parts import Parts
from .state import TrainState


def compiled(parts: Parts, mode: str) -> Callable[[Any, TrainState], Any]:
  """Compiles (params, state) -> weights that the model sees.

  Where the weights are the parameters themselves, nothing is compiled or
  copied.

  Args:
    parts: Of the run; its mesh must be entered.
    mode: eval | export.

  Returns:
    A function of what is trained, or of an average of it, and of a state, of
    which `frozen` and `step` are read.
  """
  now, lies = parts.abstract_state, parts.shardings

  def see(params, frozen, step):
    return parts.seen(params, now._replace(frozen=frozen, step=step), mode)

  traced = jax.jit(
    see,
    in_shardings=(lies.params, lies.frozen, lies.step),
    out_shardings=parts.weight_shardings,
  ).trace(now.params, now.frozen, now.step)
  jaxpr, given = traced.jaxpr.jaxpr, jax.tree.structure(now.params)
  same = given == jax.tree.structure(parts.specs)
  if same and all(
    a is b for a, b in zip(jaxpr.invars, jaxpr.outvars, strict=False)
  ):
    return lambda params, state: params
  see_compiled = traced.lower().compile()

  def seen(params, state):
    params = jax.device_put(params, lies.params)
    return see_compiled(params, state.frozen, state.step)

  return seen
