"""MOSO: SOAP on the shorter side only, from the Gram matrix of the momentum.

Differs from NVIDIA's code: bases keep the order of their columns, the round-off
of a rotation is replaced by 0, and refreshes may be rarer and staggered. With
the default `precondition_frequency=1` the trajectories are NVIDIA's.

Dimension key: see `matrices/plan.py`.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.options import also_takes, takes
from ..common.tree import work_dtype, zeros
from ..matrices import eigenbasis, elementwise, factors
from ..matrices.any_mesh import on_any_mesh
from ..matrices.options import MatrixOptions
from ..matrices.placement import constrain, from_stacks, to_stacks
from ..matrices.plan import Plan
from ..matrices.refresh import make_schedule
from ..matrices.round_off import grains, silence
from ..matrices.stacks import Momentum, Split, Squares, Stacks, marked
from ..matrices.update_size import sized
from .decay import Decay, descend

RefreshMethod = Literal["qr", "cholesky", "eigh"]


class MosoState(NamedTuple):
  """State of `scale_by_moso`; by bucket, as `optim.make_plan` says."""

  count: jax.Array  # int32 []: calls.
  momentum: Momentum  # M [S, I, O], in no basis.
  squares: Squares  # V [S, I, O], in the basis of the shorter side.
  kronecker: Stacks  # A `Kronecker` for each bucket; derived = bases Q.
  adam: elementwise.AdamState  # Of the other leaves, on a `Split`.


@dataclasses.dataclass(frozen=True, eq=False)
class MosoOptions(MatrixOptions):
  """Options of `scale_by_moso`.

  Attributes:
    b1: Decay of the momentum M, in [0, 1).
    b2: Decay of V, in [0, 1).
    shampoo_beta: Decay beta of P, in [0, 1); None is b2.
    eps: Added to the square root of V, in units of the gradient.
    eps_root: Added inside the square root. Set it > 0 if the update itself is
      differentiated.
    one_sided: True: only the shorter side of each matrix gets a factor; of
      equal sides, the second. False: both sides get one, which is not MOSO.
    max_update_rms: A matrix whose update has a larger root mean square is
      scaled down to this number. None: no limit.
    refresh: "qr" (one power iteration, orthonormalised by Householder),
      "cholesky" (the same by matrix products), or "eigh" (eigenvectors anew).
    turn_squares: True turns V with its basis, as `optim.soap` does. False keeps
      V by column, as NVIDIA's code does.
  """

  _: dataclasses.KW_ONLY
  precondition_frequency: int = 1
  one_sided: bool = True
  max_update_rms: float | None = None
  refresh: RefreshMethod = "qr"
  turn_squares: bool = False

  def __post_init__(self):
    """Raises for any argument out of range."""
    super().__post_init__()
    checks.choice("refresh", self.refresh, get_args(RefreshMethod))
    if self.max_update_rms is not None:
      checks.positive("max_update_rms", self.max_update_rms)


@takes(MosoOptions)
@on_any_mesh
def scale_by_moso(o: MosoOptions) -> optax.GradientTransformationExtraArgs:
  r"""Divides the momentum by root mean squares in the basis of its short side.

  For a matrix G [I, O] with I < O (else with M^T M on the other side):

      M  = b1 M + (1 - b1) G
      P  = beta P + (1 - beta) M M^T
      Q <- orthonormalise(P Q)     once in `precondition_frequency` calls
      M' = Q^T M,    V = b2 V + (1 - b2) M'^2
      U  = Q (M' / (sqrt(V) + eps))

  The first Q are eigenvectors, of all matrices at once. M and V are not
  bias-corrected: at the first call U has a root mean square of
  1 / sqrt(1 - b2), 4.5 for 0.95, unless `max_update_rms` limits it.
  Leaves without a matrix, and matrices without a factor, get Adam with b1, b2
  and eps.

  What M' holds as round-off only is replaced by 0, as in `scale_by_soap`. A
  matrix whose gradient has a NaN or an infinity is replaced by zeros and
  counted in `kronecker[...].rejections`. If a refresh fails, the matrix keeps
  its old basis, and `kronecker[...].failures` counts the refresh.

  Returns:
    A transform whose updates are a direction of ascent, like gradients.

  Raises:
    ValueError: For an argument out of range. At `init`, for a leaf of unknown
      layout or type.

  References:
    NVIDIA, Emerging-Optimizers, 2026, class MOSO,
    https://github.com/NVIDIA-NeMo/Emerging-Optimizers
    Vyas et al., "SOAP", 2024, https://arxiv.org/abs/2409.11321
  """
  adam = elementwise.scale_by_split_adam(
    o.b1, o.b2, o.eps, o.eps_root, storage=o.storage
  )

  def init_fn(params):
    plan = o.plan(params)
    split = plan.split(params)
    adam_state: Any = adam.init(Split(Stacks(), split.rest))
    return MosoState(
      jnp.zeros((), jnp.int32),
      marked(zeros(split.stacks, o.storage.mu), Momentum),
      marked(zeros(split.stacks, o.storage.nu), Squares),
      factors.init(plan, o.storage),
      adam_state,
    )

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    plan = o.plan(updates)
    if plan.empty:
      return updates, state
    seen, momentum, kept = _observe(o, plan, updates, state)
    kept = eigenbasis.first_bases(kept, state.count == 0)
    grain = grains(plan, updates)
    make = eigenbasis.make_basis(
      o.refresh, "skip", state.count, o.precision, o.precondition_frequency
    )
    turn = eigenbasis.turner(o.precision, grain, squares=o.turn_squares)
    squares, kept = eigenbasis.refresh(
      make_schedule(plan, o), state.count, state.squares, kept, make, turn
    )
    directions, squares = _divide(o, plan, seen, squares, kept, grain)
    stepped: Any = adam.update(Split(Stacks(), seen.rest), state.adam)
    rest, adam_state = stepped
    directions = directions._replace(rest=rest.rest)
    updates = from_stacks(directions, plan, updates, o.placement)
    count: Any = optax.safe_increment(state.count)
    return updates, MosoState(count, momentum, squares, kept, adam_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(scale_by_moso)
def moso(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.01,
  mask: Any | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """MOSO with decoupled weight decay; see `scale_by_moso`.

  Args:
    learning_rate: Number, array or schedule; about Adam's.
    weight_decay: weight_decay * params is added to the direction; number,
      schedule or `Decay`.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays, biases and gains of
      norms as well; `lambda params: jax.tree.map(lambda x: x.ndim > 1, params)`
      leaves biases and gains out.
    **direction: The arguments of `scale_by_moso`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_moso`.
  """
  return descend(scale_by_moso(**direction), learning_rate, weight_decay, mask)


def _observe(
  o: MosoOptions, plan: Plan, updates: Any, state: MosoState
) -> tuple[Split, Momentum, Stacks]:
  """M beside the gradients of other leaves, M as stored, and the factors.

  As `factors.observe`, but the factors average Gram matrices of M.
  """
  split = to_stacks(updates, plan, o.placement)
  stacks, momentum, kept = Stacks(), Momentum(), Stacks()
  for bucket in plan.buckets:
    name, old = bucket.name, state.momentum[bucket.name]
    g, ok_S = factors.finite_or_zero(split.stacks[name])
    m = o.b1 * old.astype(g.dtype) + (1 - o.b1) * g
    node = state.kronecker[name]
    node = node._replace(rejections=node.rejections + ~ok_S)
    node = factors.average_grams(node, m, o.beta, o.precision.statistics)
    axis = 0 if bucket.shard_axis == 0 else None
    kept[name] = jax.tree.map(
      lambda x, axis=axis: constrain(x, axis, o.placement.stack_axes), node
    )
    stacks[name], momentum[name] = m, m.astype(old.dtype)
  rest = jax.tree.map(factors.screen_leaf, split.rest)
  return Split(stacks, rest), momentum, kept


def _divide(
  o: MosoOptions,
  plan: Plan,
  seen: Split,
  old: Squares,
  kept: Stacks,
  grain: dict[str, float],
) -> tuple[Split, Squares]:
  """U, and V."""
  rotated = eigenbasis.rotate(seen, kept, o.precision, transpose=True)
  rotated = silence(rotated, kept, o.precision, grain)
  squares = Squares()

  def divide(name, m):
    v = o.b2 * old[name].astype(work_dtype(m)) + (1 - o.b2) * jnp.square(m)
    squares[name] = v.astype(old[name].dtype)
    rooted = isinstance(o.eps_root, jax.Array) or o.eps_root != 0
    root = (jnp.sqrt(v + o.eps_root) if rooted else jnp.sqrt(v)) + o.eps
    return jnp.where(root > 0, m / jnp.where(root > 0, root, 1), 0)

  divided = rotated.map(divide)
  back = eigenbasis.rotate(divided, kept, o.precision, transpose=False)
  return sized(back, plan, None, o.max_update_rms), squares
