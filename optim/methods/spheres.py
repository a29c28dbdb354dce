"""Spheres: steps whose length and end are measured by the norm of the weights.

The rules for the norms are in `matrices/norm_rules.py`.
"""

import dataclasses
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..common import checks
from ..common.options import also_takes
from ..common.tree import by_path, upcast, work_dtype
from ..matrices import elementwise, norm_rules
from ..matrices.layout import DimensionTree, matrices_by_path
from ..matrices.norm_rules import RULES, Matrices, Rule
from .decay import (
  Decay,
  Order,
  as_decay,
  at,
  cautious,
  decay_amounts,
  masked_amounts,
)


class SphereState(NamedTuple):
  """State of the step of `on_sphere`."""

  count: jax.Array  # int32 []: calls.
  radius: Any  # {path: norm of each matrix at `init`}.


@dataclasses.dataclass(frozen=True, eq=False)
class SphereOptions:
  """Options of `on_sphere`, beside the direction and the learning rate.

  Attributes:
    rule: "hyperball", "relative", "brake", "record" or "record_rows"; or a
      function such as `hyperball`, `fixed_radius(2.0)`, `relative_step`,
      `radial_brake(...)`, `norm_control(...)`. Under
      `optax.inject_hyperparams` a function must be listed in `static_args`.
    adam_learning_rate: The learning rate of leaves that are no matrices, which
      take an ordinary step; None is `learning_rate`.
    dimension_numbers: Which axes are stack, input and output, as for
      `scale_by_muon`. Pass what the direction got.
    weight_decay: Number, schedule or `Decay`. A fixed norm takes the place of
      decay: with "hyperball", decay only turns the matrices.
    mask: Tree of bools like params or a prefix of it, or a function of params
      that makes such a tree: True decays the leaf. None: every leaf decays.
    decay_order: "optax" decays W before the rule sees W; "official" decays what
      the rule makes. A cautious decay compares the direction with the old W,
      with "official" the direction that the rule makes.
  """

  _: dataclasses.KW_ONLY
  rule: str | Rule = "hyperball"
  adam_learning_rate: optax.ScalarOrSchedule | None = None
  dimension_numbers: DimensionTree = None
  weight_decay: optax.ScalarOrSchedule | Decay = 0.0
  mask: Any | None = None
  decay_order: Order = "optax"

  def __post_init__(self):
    """Raises for any argument out of range."""
    if self.adam_learning_rate is not None:
      checks.scalar_or_schedule("adam_learning_rate", self.adam_learning_rate)
    checks.choice("decay_order", self.decay_order, get_args(Order))
    if not callable(self.rule):
      checks.choice("rule", self.rule, tuple(RULES))


@also_takes(SphereOptions)
def on_sphere(
  direction: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  **sphere: Any,
) -> optax.GradientTransformationExtraArgs:
  """Steps along any direction, with a rule for the norms of the matrices.

      optim.on_sphere(optim.scale_by_soap(), 0.018, adam_learning_rate=3e-3)

  Args:
    direction: Transform of gradients into a direction of ascent, e.g.
      `scale_by_muon()` or `optax.scale_by_adam()`.
    learning_rate: eta of the matrices: with "hyperball" about the angle of a
      step in radians, 0.018 in the speed run. Number, array or schedule.
    **sphere: The fields of `SphereOptions`.

  Returns:
    A transform; its `update` needs `params`.

  Raises:
    ValueError: For an argument out of range. At `init`, for a matrix of zeros
      that the rule would never move.

  References:
    Hyperball: the optimisation track of modded-nanogpt, 2026.
  """
  checks.scalar_or_schedule("learning_rate", learning_rate)
  o = SphereOptions(**sphere)
  decay = as_decay(o.weight_decay)
  decay.check_peak(learning_rate)
  return optax.chain(direction, _step(learning_rate, decay, o))


def for_sphere(options: dict[str, Any]) -> tuple[dict, dict]:
  """Keyword arguments of `on_sphere`, and those of a direction."""
  names = {field.name for field in dataclasses.fields(SphereOptions)}
  sphere = {k: x for k, x in options.items() if k in names}
  both = "dimension_numbers"
  direction = {k: x for k, x in options.items() if k not in names or k == both}
  return sphere, direction


@also_takes(SphereOptions)
def adam_h(
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  **sphere: Any,
) -> optax.GradientTransformationExtraArgs:
  """Adam on spheres; see `on_sphere`.

  Args:
    learning_rate: eta of the matrices. Number, array or schedule.
    b1: Decay of the first moment, in [0, 1).
    b2: Decay of the second moment, in [0, 1). Default of the speed run.
    eps: Added to the square root.
    **sphere: The fields of `SphereOptions`.

  Returns:
    A transform; its `update` needs `params`.

  Raises:
    ValueError: As for `on_sphere`.

  References:
    AdamH: the optimisation track of modded-nanogpt, 2026; levanter.
  """
  for name, value in dict(b1=b1, b2=b2).items():
    checks.decay(name, value)
  checks.positive("eps", eps, zero_too=True)
  adam = elementwise.scale_by_split_adam(b1, b2, eps)
  return on_sphere(adam, learning_rate, **sphere)


def _step(learning_rate, decay, o):
  """The transform of a direction into the step of `on_sphere`."""
  rule = o.rule if callable(o.rule) else RULES[o.rule]

  def init_fn(params):
    return SphereState(jnp.zeros((), jnp.int32), _radii(params, rule, o))

  def update_fn(updates, state, params=None):
    if params is None:
      raise ValueError(
        "on_sphere measures its steps by the parameters, so pass them: "
        "tx.update(grads, opt_state, params)."
      )
    if not by_path(updates):
      return updates, state
    numbers = matrices_by_path(updates, o.dimension_numbers)
    eta = at(learning_rate, state.count)
    rest = eta
    if o.adam_learning_rate is not None:
      rest = at(o.adam_learning_rate, state.count)
    amounts = decay_amounts(decay, learning_rate, state.count, params)
    amounts = masked_amounts(o.mask, params, amounts)

    def move(key_path, u, w, amount):
      path = jax.tree_util.keystr(key_path)
      dims = numbers[path]
      rate = rest if dims is None else eta
      u32, w32 = upcast((u, w))
      x, v = w32, u32
      if o.decay_order == "optax":
        x = _eroded(decay, x, amount, rate, v, w32)
      if dims is None:
        x = x - rate * u32
      else:
        m = _matrices(x, u32, rate, state.radius[path], dims)
        x, v = norm_rules.step(m, rule)
      if o.decay_order == "official":
        x = _eroded(decay, x, amount, rate, v, w32)
      return (x - w32).astype(u.dtype)

    updates = jax.tree_util.tree_map_with_path(move, updates, params, amounts)
    count: Any = optax.safe_increment(state.count)
    return updates, SphereState(count, state.radius)

  return optax.GradientTransformation(init_fn, update_fn)


def _eroded(decay, x, amount, rate, v, w):
  """The weights x after a decay; v and w decide where a cautious one acts."""
  if decay.none:
    return x
  lost = (rate * amount if decay.coupling == "rate" else amount) * x
  return x - (cautious(lost, v, w) if decay.cautious else lost)


def _radii(params, rule, o):
  """{path: norm of each matrix}, after a look for matrices of zeros."""
  leaves = by_path(params)
  if not leaves:  # A placeholder: a leaf is a prefix of any subtree.
    return jnp.zeros(())
  found = {}
  for path, dims in matrices_by_path(params, o.dimension_numbers).items():
    if dims is not None:
      found[path] = _radius(leaves[path], dims)
      _check_start(path, leaves[path], found[path], rule)
  return found


def _matrices(w, u, rate, radius, dims) -> Matrices:
  sides = tuple(axis for axes in dims.side_axes for axis in axes)
  inputs = tuple(axis for axes in dims.side_axes[:-1] for axis in axes)
  radius = jnp.expand_dims(radius, sides)
  return Matrices(w, u, rate, radius, sides, inputs)


def _radius(w, dims):
  """Norm of each matrix of a leaf: the shape of its stack axes, in order."""
  sides = tuple(axis for axes in dims.side_axes for axis in axes)
  if isinstance(w, jax.ShapeDtypeStruct):
    shape = [n for axis, n in enumerate(w.shape) if axis not in sides]
    return jnp.zeros(shape, work_dtype(w))
  return jnp.sqrt(jnp.sum(jnp.square(w.astype(work_dtype(w))), axis=sides))


def _check_start(path, w, radius, rule):
  """Raises for a matrix of zeros, which the rule would never move."""
  if isinstance(w, (jax.core.Tracer, jax.ShapeDtypeStruct)):
    return
  if float(jnp.min(radius)) > 0:
    return
  zero, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
  start = Matrices(zero, one, 1.0, zero, (0, 1), (0,))
  if np.any(norm_rules.step(start, rule)[0]):
    return
  raise ValueError(
    f"Leaf {path} of shape {tuple(w.shape)} has a matrix of zeros, which has "
    "no direction and would never move. Start the matrix from small normal "
    "numbers, or give the leaf None in dimension_numbers."
  )
