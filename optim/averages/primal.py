"""Points to evaluate of methods that take gradients elsewhere.

Schedule-Free takes gradients at y, its parameters, and is evaluated at x. Its
state keeps a third sequence z, and y = b1 x + (1 - b1) z gives x.
"""

from typing import Any

import optax.contrib

from ..common import evaluation
from ..common.tree import like


def _read(state: Any, name: str | None):
  if name is not None:
    return None
  return lambda params: like(
    optax.contrib.schedule_free_eval_params(state, params), params
  )


evaluation.register(
  optax.contrib.ScheduleFreeState,
  evaluation.Reader(
    names=lambda state: (), read=_read, tree=lambda state: state.z
  ),
)
