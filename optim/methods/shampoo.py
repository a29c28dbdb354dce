"""Shampoo with Adam grafting, on the matrix engine.

Differs from the original paper: factors are bias-corrected moving averages,
the exponent is free (1/2 for each side by default, as in the study of Shampoo
by Morwani et al.), and each step refreshes a part of the inverse roots.

Dimension key: see `matrices/plan.py`.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.options import also_takes, takes
from ..matrices import elementwise, factors, linalg, roots
from ..matrices.any_mesh import on_any_mesh
from ..matrices.options import MatrixOptions
from ..matrices.placement import from_stacks
from ..matrices.refresh import make_schedule, refresh_side
from ..matrices.stacks import Stacks
from .decay import Decay, descend


class ShampooState(NamedTuple):
  """State of `scale_by_shampoo`."""

  count: jax.Array  # int32 []: calls.
  grafting: elementwise.AdamState  # Adam's, on a `Split`, in no basis.
  kronecker: Stacks  # A `Kronecker` for each bucket; derived = inverse roots.


@dataclasses.dataclass(frozen=True, eq=False)
class ShampooOptions(MatrixOptions):
  """Options of `scale_by_shampoo`.

  Attributes:
    exponent: The exponent of each factor: 1/2, or 1/4 for the original Shampoo.
    matrix_eps: Added to the eigenvalues of L and R, in units of gradient^2, or
      as `relative_eps` says.
    relative_eps: True: `matrix_eps` is in units of the largest eigenvalue of
      each factor (with `root="products"`, of a bound: its largest absolute row
      sum). What L and R do then does not depend on the scale of the gradients.
    root: "eigh" makes roots from eigenvectors. "products" makes them by matrix
      products alone, for exponents 1/2 and 1/4; see `docs/shampoo.md`.
    grafting: "adam" gives P the length of Adam's direction; "none" does not.
    start_preconditioning_step: s, counted from 1. None is
      `precondition_frequency`: by then each root has been computed.
  """

  b1: float = 0.9
  _: dataclasses.KW_ONLY
  exponent: float = 0.5
  matrix_eps: float = 1e-12
  relative_eps: bool = False
  root: Literal["eigh", "products"] = "eigh"
  grafting: Literal["adam", "none"] = "adam"
  start_preconditioning_step: int | None = None

  def __post_init__(self):
    """Raises for any argument out of range."""
    super().__post_init__()
    checks.positive("matrix_eps", self.matrix_eps, zero_too=True)
    checks.positive("exponent", self.exponent)
    if self.start_preconditioning_step is not None:
      checks.count(
        "start_preconditioning_step", self.start_preconditioning_step
      )
    checks.choice("grafting", self.grafting, ("adam", "none"))
    checks.choice("root", self.root, ("eigh", "products"))
    if self.root == "products":
      roots.check_exponent(self.exponent)


@takes(ShampooOptions)
@on_any_mesh
def scale_by_shampoo(
  o: ShampooOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Multiplies the momentum of each matrix by inverse roots of its factors.

  For a matrix G [I, O], with t = 1, 2, ... and bias-corrected averages M of G
  (b1), V of G^2 (b2), L of G G^T and R of G^T G (beta):

      P = (L + matrix_eps)^(-exponent) M (R + matrix_eps)^(-exponent)
      A = M / (sqrt(V) + eps)                               Adam's direction
      U = P ||A||_F / ||P||_F                        its length, from step s on

  Before step s = `start_preconditioning_step`, U = A. Each root is computed
  once in `precondition_frequency` steps. Leaves without a matrix get A.

  Without grafting, U = Tr(L)^(k exponent - 1/2) P, with k factored sides. This
  U does not depend on the scale of the gradients. The exponent 1/4 on two sides
  gives the original Shampoo; 1/2 gives the square root of (L x R) / Tr(L).

  A matrix whose gradient has a NaN or an infinity is replaced by zeros and
  counted in `kronecker[...].rejections`. A root that is not finite is not used:
  the old root stays, and `kronecker[...].failures` counts it.

  Returns:
    A transform whose updates are a direction of ascent, like gradients. If
    `update` is given `statistics`, a tree like the gradients, L and R average
    the statistics instead of the gradients.

  Raises:
    ValueError: For an argument out of range. At `init`, for a leaf of unknown
      layout or type.

  References:
    Gupta et al., "Shampoo", 2018, https://arxiv.org/abs/1802.09568
    Anil et al., 2020, https://arxiv.org/abs/2002.09018 (grafting)
    Morwani et al., "A New Perspective on Shampoo's Preconditioner", 2024,
    https://arxiv.org/abs/2406.17748 (exponent and trace)
  """
  adam = elementwise.scale_by_split_adam(
    o.b1, o.b2, o.eps, o.eps_root, storage=o.storage
  )

  def init_fn(params):
    plan = o.plan(params)
    grafting: Any = adam.init(plan.split(params))
    kept = factors.init(plan, o.storage)
    return ShampooState(jnp.zeros((), jnp.int32), grafting, kept)

  def update_fn(updates, state, params=None, *, statistics=None, **extra_args):
    del params, extra_args
    plan = o.plan(updates)
    if plan.empty:
      return updates, state
    count: Any = optax.safe_increment(state.count)
    grads, kept = factors.observe(
      plan, updates, state.kronecker, o.beta, o, statistics
    )

    def root(factor, old):
      del old
      corrected = factor / (1 - o.beta**count)
      return linalg.inverse_root(
        corrected,
        o.exponent,
        o.matrix_eps,
        method=o.root,
        relative=o.relative_eps,
      )

    for (name, side), turn in make_schedule(plan, o).items():
      # True, but not to the compiler: branches take turns. LAPACK calls for
      # several stacks at once wait for each other for ever on two cores.
      now = count > 0
      kept[name], _ = refresh_side(turn, count, now, root, kept[name], side)
    grafted: Any = adam.update(grads, state.grafting)
    directions, grafting = grafted
    mu = grafting.mu.stacks
    directions = directions.map(
      lambda name, adam_S: _direction(o, count, adam_S, mu[name], kept[name])
    )
    updates = from_stacks(directions, plan, updates, o.placement)
    return updates, ShampooState(count, grafting, kept)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(scale_by_shampoo)
def shampoo(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.01,
  mask: Any | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """Shampoo with decoupled weight decay; see `scale_by_shampoo`.

  Args:
    learning_rate: Number, array or schedule; about Adam's with grafting.
    weight_decay: weight_decay * params is added to the direction; number,
      schedule or `Decay`.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays, biases and gains of
      norms as well; `lambda params: jax.tree.map(lambda x: x.ndim > 1, params)`
      leaves biases and gains out.
    **direction: The arguments of `scale_by_shampoo`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_shampoo`.
  """
  return descend(
    scale_by_shampoo(**direction), learning_rate, weight_decay, mask
  )


def _direction(o, count, adam_S, momentum, kept):
  """Shampoo's direction of one bucket, or Adam's before step s."""
  momentum = momentum.astype(adam_S.dtype) / (1 - o.b1**count)
  turned = factors.rotate(
    momentum, kept.derived, transpose=False, precision=o.precision.rotation
  )
  if o.grafting == "adam":
    plain = adam_S
    scale = linalg.norm(adam_S) / jnp.maximum(linalg.norm(turned), 1e-30)
  else:
    plain = momentum
    scale = _trace_scale(kept, o.exponent, 1 - o.beta**count)
  start = o.start_preconditioning_step or o.precondition_frequency
  return jnp.where(count >= start, scale * turned, plain)


def _trace_scale(state: factors.Kronecker, exponent, correction):
  """Tr(L)^(k exponent - 1/2), [S, 1, 1]; all sides have the same trace."""
  present = [factor for factor in state.factors if factor is not None]
  trace_S = jnp.trace(present[0], axis1=-2, axis2=-1) / correction
  power = len(present) * exponent - 0.5
  trace_S = jnp.maximum(trace_S, jnp.finfo(trace_S.dtype).tiny)
  return jnp.expand_dims(
    trace_S**power, tuple(range(1, len(state.factors) + 1))
  )
