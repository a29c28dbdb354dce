"""MARS: momentum of gradients that are corrected by the previous gradient.

Differs from the authors' code: the norm that is clipped is that of each matrix
of a stack (MARS-M takes one norm for a whole stack), the Newton-Schulz products
are float32 by default, and without clipping Lion and Shampoo keep no previous
gradient.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import optax

from ..common import checks
from ..common.options import also_takes, takes
from ..common.tree import is_function, zeros
from ..common.warmups import at
from ..common.wide import in_work_dtype
from ..matrices import elementwise, factors
from ..matrices.any_mesh import on_any_mesh
from ..matrices.mars_correction import (
  MarsCorrectionOptions,
  mars_correction,
  screened,
)
from ..matrices.newton_schulz import newton_schulz
from ..matrices.options import check_placement
from ..matrices.placement import Placement, from_stacks, to_stacks
from ..matrices.plan import Plan, check_two_sides, make_plan
from .decay import Decay, decay_weights, descend

Variant = Literal["adamw", "lion", "shampoo", "muon"]


class MarsMomentumState(NamedTuple):
  """State of the momentum of unclipped corrections."""

  momentum: Any  # M, like params, float32.


@dataclasses.dataclass(frozen=True, eq=False)
class MarsOptions(MarsCorrectionOptions):
  """Options of `scale_by_mars`.

  Attributes:
    b2: Decay of the second moment of "adamw".
    eps: Added to the square root, or to the norm that Newton-Schulz starts by.
    variant: What becomes of the momentum; see above.
    optimize_1d: True: leaves that are no matrices are corrected as well; their
      direction is that of "lion", else that of "adamw". False: they get Adam.
    b1_1d: Decay of the first moment of Adam, for leaves that are no matrices.
    b2_1d: Decay of the second moment of Adam, for leaves that are no matrices.
    eps_1d: eps of Adam, for leaves that are no matrices; None is `eps`.
    ns_steps: Newton-Schulz iterations of "shampoo" and "muon", >= 1.
    ns_dtype: Type of their products; None is that of the arithmetic, float32.
      The authors take bfloat16.
    placement: Where the stacks of "shampoo" and "muon" lie on a mesh; see
      `Placement`.
  """

  b2: float = 0.99
  eps: float = 1e-8
  _: dataclasses.KW_ONLY
  variant: Variant = "adamw"
  optimize_1d: bool = False
  b1_1d: float = 0.9
  b2_1d: float = 0.95
  eps_1d: float | None = None
  ns_steps: int = 5
  ns_dtype: Any | None = None
  placement: Placement = Placement()

  def __post_init__(self):
    """Raises for any argument out of range."""
    super().__post_init__()
    for name in ("b2", "b1_1d", "b2_1d"):
      checks.decay(name, getattr(self, name))
    for name in ("eps", "eps_1d"):
      if getattr(self, name) is not None:
        checks.positive(name, getattr(self, name), zero_too=True)
    checks.choice("variant", self.variant, get_args(Variant))
    checks.count("ns_steps", self.ns_steps)
    check_placement(self.placement)

  def plan(self, tree: Any) -> Plan:
    """`make_plan` with these options: no side is too long."""
    plan = make_plan(
      tree,
      self.dimension_numbers,
      max_precond_dim=2**31,
      stack_shards=self.placement.stack_shards,
    )
    if self.variant in ("shampoo", "muon"):
      check_two_sides(plan, f"variant={self.variant!r}")
    return plan

  def labels(self, tree: Any) -> Any:
    """ "matrix" or "rest" for each leaf."""
    return elementwise.labels(self.plan(tree))

  def scale(self, shape: tuple[int, ...]) -> float:
    """The factor of the orthogonal matrix of a bucket of this shape."""
    inputs, outputs = shape[-2:]
    if self.variant == "muon":
      return 0.2 * max(inputs, outputs) ** 0.5
    return max(1.0, outputs / inputs) ** 0.5


@takes(MarsOptions)
def scale_by_mars(o: MarsOptions) -> optax.GradientTransformationExtraArgs:
  r"""Momentum of corrected gradients, with one of four preconditioners.

  For matrices, with c of `mars_correction` and M = b1 M + (1 - b1) c:

      "adamw"    U = (M / (1 - b1^t)) / (sqrt(V / (1 - b2^t)) + eps),
                 V = b2 V + (1 - b2) c^2
      "lion"     U = sign(M)
      "shampoo"  U = newton_schulz(M / (1 - b1)) sqrt(max(1, O / I))
      "muon"     U = newton_schulz(M) 0.2 sqrt(max(I, O)), which is MARS-M

  with I inputs and O outputs. Leaves that are no matrices get Adam of the plain
  gradient, unless `optimize_1d`. A matrix, or leaf, whose gradient has a NaN or
  an infinity is replaced by zeros. The previous gradient is kept in float32. It
  is not needed with `max_norm=None` for "lion", "shampoo" and "muon": M is then
  M' + gamma g with M' = b1 M' + (1 - b1)(1 - gamma) g.

  Returns:
    A transform whose updates are a direction of ascent, like gradients. If
    `exact`, `update` needs `previous_grads`, a tree like the gradients.

  Raises:
    ValueError: For an argument out of range. At `init`, for a leaf of unknown
      layout or type, or for a leaf that has not two sides.

  References:
    Yuan et al., "MARS: unleashing the power of variance reduction for training
    large models", 2024, https://arxiv.org/abs/2411.10438
    Liu et al., "MARS-M: when variance reduction meets matrices", 2025
    ("muon"), https://arxiv.org/abs/2510.21800
  """
  eps = o.eps if o.eps_1d is None else o.eps_1d
  rest = optax.chain(
    optax.stateless(lambda grads, _: jax.tree.map(factors.screen_leaf, grads)),
    optax.scale_by_adam(o.b1_1d, o.b2_1d, eps),
  )
  if o.optimize_1d:
    rest = _direction(o, "lion" if o.variant == "lion" else "adamw")
  groups: Any = dict(matrix=_direction(o, o.variant), rest=rest)
  return in_work_dtype(optax.partition(groups, o.labels))


def _direction(
  o: MarsOptions, variant: Variant
) -> optax.GradientTransformation:
  if variant == "adamw":
    return optax.chain(_correction(o), optax.scale_by_adam(o.b1, o.b2, o.eps))
  if variant == "lion":
    return optax.chain(_momentum(o), optax.scale_by_sign())
  return optax.chain(_momentum(o), _orthogonalized(o))


def _correction(o: MarsOptions) -> optax.GradientTransformation:
  values = {
    f.name: getattr(o, f.name)
    for f in dataclasses.fields(MarsCorrectionOptions)
  }
  return mars_correction(**values)


def _momentum(o: MarsOptions) -> optax.GradientTransformation:
  """M, the average of the corrected gradients."""
  if o.max_norm is not None or o.exact:
    return optax.chain(_correction(o), optax.ema(o.b1, debias=False))

  def init_fn(params):
    return MarsMomentumState(zeros(params))

  def update_fn(updates, state, params=None):
    del params
    grads = screened(updates, o)
    share = (1 - o.b1) * (1 - o.gamma)

    def average(m, g):
      return (o.b1 * m + share * g).astype(m.dtype)

    momentum = jax.tree.map(average, state.momentum, grads)
    corrected = jax.tree.map(lambda m, g: m + o.gamma * g, momentum, grads)
    return corrected, MarsMomentumState(momentum)

  return optax.GradientTransformation(init_fn, update_fn)


@on_any_mesh
def _orthogonalized(o: MarsOptions) -> optax.GradientTransformationExtraArgs:
  """Replaces each matrix by a nearly orthogonal one; keeps no state."""

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    plan = o.plan(updates)
    if plan.empty:
      return updates, state

    def orthogonal(name, m):
      if o.variant == "shampoo":
        m = m / (1 - o.b1)
      dtype = m.dtype if o.ns_dtype is None else o.ns_dtype
      x = newton_schulz(m, num_steps=o.ns_steps, eps=o.eps, dtype=dtype)
      return x * o.scale(m.shape)

    split = to_stacks(updates, plan, o.placement).map(orthogonal)
    return from_stacks(split, plan, updates, o.placement), state

  return optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update_fn
  )


@also_takes(scale_by_mars)
def mars(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.0,
  mask: Any | None = None,
  rate_ratio_1d: float = 1.0,
  weight_decay_1d: optax.ScalarOrSchedule | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """MARS with decoupled weight decay; see `scale_by_mars`.

  Args:
    learning_rate: Number, array or schedule. The authors take 6e-3 for GPT-2
      small, 3e-3 for medium and 2e-3 for large, with 2000 steps of warm-up.
    weight_decay: weight_decay * params is added to the direction; number,
      schedule or `Decay`. The authors take 0.01.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays.
    rate_ratio_1d: The learning rate of leaves that are no matrices, in units of
      `learning_rate`, at every step of a schedule. The authors take 1 / 2.
    weight_decay_1d: Of leaves that are no matrices; None is `weight_decay`. The
      authors take 0.1.
    **direction: The arguments of `scale_by_mars`.

  Returns:
    A transform; its `update` needs `params` unless both decays are 0.

  Raises:
    ValueError: As for `scale_by_mars`, and for `rate_ratio_1d` or
      `weight_decay_1d` with `optimize_1d`, which has one rate and one decay.
  """
  o = MarsOptions(**direction)
  checks.scalar_or_schedule("learning_rate", learning_rate)
  checks.positive("rate_ratio_1d", rate_ratio_1d, zero_too=True)
  plain = not isinstance(rate_ratio_1d, jax.Array) and rate_ratio_1d == 1
  if o.optimize_1d and not (plain and weight_decay_1d is None):
    raise ValueError(
      f"optimize_1d=True treats all leaves alike, so rate_ratio_1d="
      f"{rate_ratio_1d} and weight_decay_1d={weight_decay_1d} have no meaning; "
      "leave both out."
    )
  chain, step = scale_by_mars(**direction), None
  if weight_decay_1d is not None:
    checks.scalar_or_schedule("weight_decay_1d", weight_decay_1d)
    decay = decay_weights(
      learning_rate, weight_decay_1d, order="optax", skip_first=False
    )
    chain = optax.chain(chain, optax.masked(decay, _part(o, mask, "rest")))
    mask = _part(o, mask, "matrix")
  if not plain:

    def slow(count):
      return rate_ratio_1d * at(learning_rate, count)

    step = elementwise.two_rates(learning_rate, slow, o.plan)
  return descend(chain, learning_rate, weight_decay, mask, step=step)


def _part(o: MarsOptions, mask: Any | None, label: str) -> Any:
  """The mask of the decay, restricted to one group of leaves."""

  def restricted(tree):
    chosen = jax.tree.map(lambda name: name == label, o.labels(tree))
    if mask is None:
      return chosen
    wanted = mask(tree) if is_function(mask) else mask
    return jax.tree.map(
      lambda want, part: jax.tree.map(lambda x: bool(want) and x, part),
      wanted,
      chosen,
    )

  return restricted
