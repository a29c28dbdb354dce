"""A toy method: plain descent, evaluated halfway between two updates."""

from typing import Any, NamedTuple

import jax
import optax

from lm.methods import schedule
from lm.step.methods import METHODS, Method, plain_update
from optim.common.evaluation import Reader, register


class HalfwayState(NamedTuple):
  count: Any
  before: Any  # The parameters of one update ago.


def make(config, model, specs, placement, quantizers):
  del model, specs, placement, quantizers
  rate = schedule.learning_rate(config)

  def init(params):
    return HalfwayState(jax.numpy.zeros((), "int32"), params)

  def update(grads, state, params, **extra):
    del extra
    scale = -10 * rate(state.count)
    updates = jax.tree.map(lambda g: scale * g, grads)
    return updates, HalfwayState(state.count + 1, params)

  return optax.GradientTransformationExtraArgs(init, update)


def read(state, name):
  middle = lambda a, b: (a + b) / 2  # noqa: E731
  return (lambda p: jax.tree.map(middle, state.before, p)) if not name else None


register(HalfwayState, Reader(lambda s: (), read, lambda s: s.before))
METHODS["halfway"] = Method(lambda config: [], make, plain_update)
