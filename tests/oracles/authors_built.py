"""What `authors.py` tells a method, and what a method gives back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim


class Setup(NamedTuple):
  """What a method is built from.

  Attributes:
    settings: Of the case, in the authors' names.
    dims: Dimension numbers of each leaf; None for leaves that are no matrices.
      A leaf of three axes is a stack of matrices.
    shapes: Of the leaves as the transform sees them.
    block_size: Where the layout cuts matrices into blocks, else None.
    warm: {leaf: {"inputs" or "outputs": {"factor", "basis", "eigenvalues"}}},
      the state that a case begins with, or None.
  """

  settings: dict[str, Any]
  dims: dict[str, optim.DimensionNumbers | None]
  shapes: dict[str, tuple[int, ...]]
  block_size: int | None
  warm: dict[str, dict[str, dict[str, np.ndarray]]] | None

  @property
  def learning_rate(self) -> Any:
    """The number, or the schedule of the count of calls from 0."""
    return rate(self.settings)

  def pick(self, *names: str) -> dict[str, Any]:
    """Those settings whose names are ours as well."""
    return {name: self.settings[name] for name in names}


class Built(NamedTuple):
  """A method as the runner steps it.

  Attributes:
    tx: The transform.
    init: params -> state; None is that of `tx`.
    extra_args: (step, 0-based, `Moment`) -> extra arguments of `update`.
    read: (state, params) -> the point to evaluate; None is `optim.eval_params`.
  """

  tx: optax.GradientTransformation
  init: Callable[[Any], Any] | None = None
  extra_args: Callable[[jax.Array, "Moment"], dict[str, Any]] | None = None
  read: Callable[[Any, Any], Any] | None = None


class Moment(NamedTuple):
  """What a step may ask for besides its gradient.

  Attributes:
    hessian_grads: A tree like params, of this step; None if the file has none.
    gradient: params -> the gradient of this step's batch at other params. In an
      open run the gradient is the same everywhere.
  """

  hessian_grads: Any
  gradient: Callable[[Any], Any]


def rate(settings: dict[str, Any]) -> Any:
  """The learning rate: the schedule of a case, or its number."""
  if "schedule" not in settings:
    return settings["learning_rate"]
  values = np.asarray(settings["schedule"])
  return lambda count: jnp.asarray(values)[count]
