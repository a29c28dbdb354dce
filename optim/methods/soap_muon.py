"""SOAP in front of Muon: the momentum is whitened, then orthogonalised.

The momentum is divided by its root mean squares in the eigenbasis of Shampoo's
factors, as in SOAP. What comes out has no units and a flatter spectrum. The
Newton-Schulz iteration then replaces it by the nearest orthogonal matrix, as
in Muon.

Differs from the code of the speed run's record: bases keep the order of their
columns (so the second moment is never permuted), products are in float32, the
round-off of a rotation is replaced by 0, and refreshes may be staggered. The
record's control of the norms is not a part of the direction.

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
from ..matrices.newton_schulz import Coefficients, newton_schulz, triples_of
from ..matrices.options import MatrixOptions
from ..matrices.placement import from_stacks
from ..matrices.plan import Plan, check_two_sides
from ..matrices.refresh import make_schedule
from ..matrices.round_off import grains, silence
from ..matrices.stacks import Momentum, Split, Squares, Stacks, marked
from .decay import Decay, descend

RefreshMethod = Literal["qr", "cholesky", "eigh"]


class SoapMuonState(NamedTuple):
  """State of `scale_by_soap_muon`; by bucket, as `optim.make_plan` says."""

  count: jax.Array  # int32 []: calls.
  momentum: Momentum  # M [S, I, O], in no basis.
  squares: Squares  # V [S, I, O], in the bases.
  kronecker: Stacks  # A `Kronecker` for each bucket; derived = bases Q.
  adam: elementwise.AdamState  # Of the other leaves, on a `Split`.


@dataclasses.dataclass(frozen=True, eq=False)
class SoapMuonOptions(MatrixOptions):
  """Options of `scale_by_soap_muon`.

  Attributes:
    b1: Decay of the momentum M, in [0, 1).
    b2: Decay of V, in [0, 1).
    eps: Floor of the square root of V, in units of the rotated gradient.
    eps_root: Added inside the square root of Adam's direction. Set it > 0 if
      the update itself is differentiated.
    refresh: "qr" (one power iteration, orthonormalised by Householder),
      "cholesky" (the same by matrix products), or "eigh" (eigenvectors anew).
    turn_squares: True turns V with its basis, as `optim.soap` does. False keeps
      V by column, as the record's code does.
    ns_coeffs: Coefficients of the Newton-Schulz iteration: a name such as
      "record", "keller" or "polar_express", one triple a, b, c, or a triple for
      each step.
    ns_steps: Iterations; None is the length of the list.
    ns_dtype: Type of the products of the iteration; None is float32. bfloat16
      is faster on accelerators; singular values are then right to about 1 %.
    adam_b1: Decay of the first moment of Adam, for leaves that are no matrices.
    adam_b2: Decay of the second moment of Adam, for leaves that are no
      matrices.
    adam_eps: eps of Adam, added to the square root.
  """

  b1: float = 0.95
  b2: float = 0.9
  _: dataclasses.KW_ONLY
  precondition_frequency: int = 1
  refresh: RefreshMethod = "qr"
  turn_squares: bool = False
  ns_coeffs: Coefficients = "record"
  ns_steps: int | None = None
  ns_dtype: Any | None = None
  adam_b1: float = 0.9
  adam_b2: float = 0.95
  adam_eps: float = 1e-10

  def __post_init__(self):
    """Raises for any argument out of range."""
    super().__post_init__()
    for name in ("adam_b1", "adam_b2"):
      checks.decay(name, getattr(self, name))
    checks.positive("adam_eps", self.adam_eps, zero_too=True)
    checks.choice("refresh", self.refresh, get_args(RefreshMethod))
    if self.ns_steps is not None:
      checks.count("ns_steps", self.ns_steps)
    triples_of(self.ns_coeffs, self.ns_steps)

  def plan(self, tree: Any) -> Plan:
    """`make_plan` with these options; every bucket holds matrices."""
    plan = super().plan(tree)
    check_two_sides(plan, "SOAP-Muon")
    return plan


@takes(SoapMuonOptions)
@on_any_mesh
def scale_by_soap_muon(
  o: SoapMuonOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Orthogonalises the momentum after whitening it in SOAP's bases.

  For a matrix G [I, O] with bases Q_L and Q_R, at each call:

      M  = b1 M + (1 - b1) G,      N = b1 M + (1 - b1) G
      N' = Q_L^T N Q_R,            V = b2 V + (1 - b2) N'^2
      X  = Q_L (N' / max(sqrt(V), eps)) Q_R^T
      U  = newton_schulz(X) * sqrt(max(1, O / I))
      L  = beta L + (1 - beta) G G^T,   R = beta R + (1 - beta) G^T G

  and once in `precondition_frequency` calls Q <- orthonormalise(P Q) for L and
  R each. At the first call there is no basis: X = N, V stays 0, and the first
  bases are the eigenvectors of L and R, of all matrices at once. Nothing is
  bias-corrected: the length of X does not matter.

  With the default coefficients all singular values of U are sqrt(max(1, O/I)),
  except of directions in which X is smaller than about 1/1000 of its norm.
  Blocks of a cut matrix are matrices of their own, I and O their lengths.
  Leaves without a matrix, and matrices without a factor, get Adam.

  What N' holds as round-off only is replaced by 0, as in `scale_by_soap`. A
  matrix whose gradient has a NaN or an infinity is replaced by zeros and
  counted in `kronecker[...].rejections`. If a refresh fails, the matrix keeps
  its old basis, and `kronecker[...].failures` counts the refresh.

  Returns:
    A transform whose updates are a direction of ascent, like gradients. If
    `update` is given `statistics`, a tree like the gradients, L and R average
    the statistics instead of the gradients.

  Raises:
    ValueError: For an argument out of range. At `init`, for a leaf of unknown
      layout or type, or for a leaf that has not two sides.

  References:
    Jordan et al., modded-nanogpt, 2026, record of the optimiser track,
    https://github.com/KellerJordan/modded-nanogpt
    Vyas et al., "SOAP", 2024, https://arxiv.org/abs/2409.11321
  """
  adam = elementwise.scale_by_split_adam(
    o.adam_b1, o.adam_b2, o.adam_eps, o.eps_root, storage=o.storage
  )

  def init_fn(params):
    plan = o.plan(params)
    split = plan.split(params)
    adam_state: Any = adam.init(Split(Stacks(), split.rest))
    return SoapMuonState(
      jnp.zeros((), jnp.int32),
      marked(zeros(split.stacks, o.storage.mu), Momentum),
      marked(zeros(split.stacks, o.storage.nu), Squares),
      factors.init(plan, o.storage),
      adam_state,
    )

  def update_fn(updates, state, params=None, *, statistics=None, **extra_args):
    del params, extra_args
    plan, first = o.plan(updates), state.count == 0
    if plan.empty:
      return updates, state
    grads, kept = factors.observe(
      plan, updates, state.kronecker, o.beta, o, statistics
    )
    momentum, ahead = _nesterov(o, grads, state.momentum)
    grain = grains(plan, updates)
    whitened, squares = _whiten(o, ahead, state.squares, kept, first, grain)
    directions = whitened.map(lambda name, x: _orthogonal(o, x))
    kept = eigenbasis.first_bases(kept, first)
    make = eigenbasis.make_basis(
      o.refresh, "skip", state.count, o.precision, o.precondition_frequency
    )
    turn = eigenbasis.turner(o.precision, grain, squares=o.turn_squares)
    schedule = make_schedule(plan, o)
    squares, kept = eigenbasis.refresh(
      schedule, state.count, squares, kept, make, turn
    )
    stepped: Any = adam.update(Split(Stacks(), grads.rest), state.adam)
    rest, adam_state = stepped
    directions = directions._replace(rest=rest.rest)
    updates = from_stacks(directions, plan, updates, o.placement)
    count: Any = optax.safe_increment(state.count)
    return updates, SoapMuonState(count, momentum, squares, kept, adam_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(scale_by_soap_muon)
def soap_muon(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.0,
  mask: Any | None = None,
  adam_learning_rate: optax.ScalarOrSchedule | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """SOAP-Muon for matrices and Adam for the rest; see `scale_by_soap_muon`.

  Args:
    learning_rate: The learning rate of the matrices; about Muon's, 0.02.
      Number, array or schedule.
    weight_decay: weight_decay * params is added to the direction; number,
      schedule or `Decay`.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays, biases and gains of
      norms as well; `lambda params: jax.tree.map(lambda x: x.ndim > 1, params)`
      leaves biases and gains out.
    adam_learning_rate: The learning rate of the other leaves; None is
      `learning_rate`.
    **direction: The arguments of `scale_by_soap_muon`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_soap_muon`.
  """
  step = None
  if adam_learning_rate is not None:
    checks.scalar_or_schedule("adam_learning_rate", adam_learning_rate)
    plan = SoapMuonOptions(**direction).plan
    step = elementwise.two_rates(learning_rate, adam_learning_rate, plan)
  return descend(
    scale_by_soap_muon(**direction),
    learning_rate,
    weight_decay,
    mask,
    step=step,
  )


def _nesterov(
  o: SoapMuonOptions, grads: Split, old: Momentum
) -> tuple[Momentum, Split]:
  """M, and N one step ahead of M."""
  momentum = Momentum()

  def ahead(name, g):
    m = o.b1 * old[name].astype(g.dtype) + (1 - o.b1) * g
    momentum[name] = m.astype(old[name].dtype)
    return o.b1 * m + (1 - o.b1) * g

  return momentum, grads.map(ahead)


def _whiten(
  o: SoapMuonOptions,
  ahead: Split,
  old: Squares,
  kept: Stacks,
  first: jax.Array,
  grain: dict[str, float],
) -> tuple[Split, Squares]:
  """X, and V; at the first call X = N."""
  rotated = eigenbasis.rotate(ahead, kept, o.precision, transpose=True)
  rotated = silence(rotated, kept, o.precision, grain)
  squares = Squares()

  def whiten(name, x):
    v = old[name].astype(work_dtype(x))
    v = jnp.where(first, v, o.b2 * v + (1 - o.b2) * jnp.square(x))
    squares[name] = v.astype(old[name].dtype)
    floor = jnp.maximum(v, o.eps**2)
    white = x / jnp.sqrt(jnp.where(floor > 0, floor, 1))  # 0 / 0 with eps 0.
    return jnp.where(first, x, white)

  whitened = rotated.map(whiten)
  back = eigenbasis.rotate(whitened, kept, o.precision, transpose=False)
  return back, squares


def _orthogonal(o: SoapMuonOptions, x: jax.Array) -> jax.Array:
  inputs, outputs = x.shape[-2:]
  x = newton_schulz(
    x,
    o.ns_coeffs,
    num_steps=o.ns_steps,
    norm="schatten4",
    dtype=o.ns_dtype or x.dtype,
  )
  return x * max(1.0, outputs / inputs) ** 0.5
