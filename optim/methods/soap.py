"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Differs from the authors' PyTorch code: both moments turn when their basis does,
the update keeps its length, bases keep the order of their columns, the first
steps are Adam's, refreshes are spread over the steps, round-off of a rotation
is replaced by 0, and eps is Adam's. `docs/soap.md` has the options that give
the trajectories of the authors' and of NVIDIA's programs.

Dimension key: see `matrices/plan.py`.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.options import also_takes, takes
from ..matrices import eigenbasis, elementwise, factors, kl_factors
from ..matrices.any_mesh import on_any_mesh
from ..matrices.basis_options import BasisOptions
from ..matrices.placement import from_stacks
from ..matrices.plan import Plan, check_two_sides
from ..matrices.round_off import damp_noise, grains
from ..matrices.stacks import Split, Stacks
from ..matrices.update_size import sized, unit
from .decay import Decay, Order, descend
from .spheres import SphereOptions, for_sphere, on_sphere

RefreshOrder = Literal["after", "before"]
FactorKind = Literal["gram", "kl"]
FirstStep = Literal["skip", "identity", "use_current"]


class SoapState(NamedTuple):
  """State of `scale_by_soap`; stacks are laid out as `optim.make_plan` says."""

  count: jax.Array  # int32 []: calls.
  inner: Any  # Of the element-wise rule, on a `Split` in rotated coordinates.
  kronecker: Stacks  # A `Kronecker` for each bucket; derived = bases Q.


@dataclasses.dataclass(frozen=True, eq=False)
class SoapOptions(BasisOptions):
  """Options of `scale_by_soap`.

  Attributes:
    eps: Added to the square root, in units of the rotated gradient.
    factorized: True keeps V' as row and column averages (rank 1), as Adafactor.
    normalize: Scale each matrix's U to root mean square 1, times Adam's bias
      corrections sqrt(1 - b2^t) / (1 - b1^t) as in the authors' code: with
      b1 = b2 = 0.95 the product is 4.5 at first, 1.5 at step 11, 1 in the end.
      With `bias_correction=False` the root mean square is 1 at every step.
    bias_correction: False leaves Adam's corrections out.
    inner: Replaces Adam (b1, b2, eps, factorized and the moments' types are
      then its own affair). Gets no params.
    momentum_fields: Names of the fields of the state of `inner` that are sums
      of gradients and have to be turned with the basis.
    square_fields: Names of the fields of the state of `inner` that are averages
      of squares; they turn with the basis as diagonals do, scaled so that a
      refresh leaves the length of the update as it is, and so does Adam's V'.
      () leaves V' behind, as the authors' code does: after one gradient that is
      much too large, M' then meets a V' that is not its own.
    refresh_order: "after" refreshes when the step is made, as the authors' code
      does. "before" refreshes between the averages and the step: a matrix whose
      turn it is rotates its gradient into bases that know this gradient.
    factors: "gram" averages G G^T and G^T G. "kl" averages Gram matrices of the
      gradient whitened by the other sides; see `matrices/kl_factors.py`.
    nesterov: True steps along b1 M' / (1 - b1^(t+1)) + (1 - b1) G' / (1 - b1^t)
      in place of M' / (1 - b1^t).
    first_step: "identity" makes Adam's steps until each matrix's first
      refresh, which computes eigenvectors. "skip" only takes the bases from the
      first gradient, as the authors' code does, and "use_current" makes the
      step as well. A gradient is diagonal in its own bases, and float32 knows
      these bases to its epsilon times the squared condition number only: a
      second gradient that equals the first (full batches) leaves numbers beside
      the diagonal that become full steps. In the first step itself, entries of
      G' below 1e-6 of the largest are damped: they step as if they were divided
      by 1e-6 max|G'|.
  """

  _: dataclasses.KW_ONLY
  factorized: bool = False
  normalize: bool = False
  bias_correction: bool = True
  inner: optax.GradientTransformation | None = None
  momentum_fields: tuple[str, ...] = ("mu", "trace", "m1", "m2", "m")
  square_fields: tuple[str, ...] = ("nu", "nu_max")
  refresh_order: RefreshOrder = "after"
  factors: FactorKind = "gram"
  nesterov: bool = False
  first_step: FirstStep = "identity"

  def __post_init__(self):
    """Raises for any argument out of range."""
    super().__post_init__()
    checks.choice("first_step", self.first_step, get_args(FirstStep))
    checks.choice("refresh_order", self.refresh_order, get_args(RefreshOrder))
    checks.choice("factors", self.factors, get_args(FactorKind))
    if self.normalize and self.update_rms is not None:
      raise ValueError(
        f"normalize=True and update_rms={self.update_rms} both set the size of "
        "an update; take one of the two."
      )
    if self.inner is not None and self.nesterov:
      raise ValueError(
        "nesterov=True is Adam's, but inner replaces Adam; give inner its own "
        "Nesterov momentum, e.g. optax.scale_by_adam(nesterov=True)."
      )


@takes(SoapOptions)
@on_any_mesh
def scale_by_soap(o: SoapOptions) -> optax.GradientTransformationExtraArgs:
  r"""Runs Adam, or another element-wise rule, in a slowly turning eigenbasis.

  For a matrix G [I, O] with bases Q_L and Q_R, at each call:

      G' = Q_L^T G Q_R                      into the basis
      M' = b1 M' + (1 - b1) G',   V' = b2 V' + (1 - b2) G'^2
      U  = Q_L (M' / (sqrt(V') + eps)) Q_R^T          both bias-corrected
      L  = beta L + (1 - beta) G G^T,   R = beta R + (1 - beta) G^T G

  and once in `precondition_frequency` calls Q <- orthonormalise(P Q) for L and
  R each. M' and V' then turn from the old basis into the new: M' as a matrix,
  V' as a diagonal. V' is then scaled by one number for each matrix, so that the
  norm of M' / sqrt(V') stays what it was; where one side only has a factor, by
  one number for each row or column that turns. The first bases are the
  identity; see `first_step`. Leaves without a matrix, and matrices without a
  factor, get the element-wise rule as they are.

  What G' holds as round-off only is replaced by 0: see `matrices/round_off.py`.
  Divided by its own root mean square, the entry would be a full step along a
  direction without gradient.

  A matrix whose gradient has a NaN or an infinity is replaced by zeros and
  counted in `kronecker[...].rejections`. If a refresh fails, the matrix keeps
  its old basis, and `kronecker[...].failures` counts the refresh.

  Returns:
    A transform whose updates are a direction of ascent, like gradients. If
    `update` is given `statistics`, a tree like the gradients, L and R average
    the statistics instead of the gradients.

  Raises:
    ValueError: For an argument out of range. At `init`, for a leaf of unknown
      layout or type.

  References:
    Vyas et al., "SOAP: Improving and stabilizing Shampoo using Adam", 2024,
    https://arxiv.org/abs/2409.11321
  """
  rule, whiten = _rule(o), _whiten(o)
  inward = kl_factors.inward(o.precision) if whiten else o.precision

  def init_fn(params):
    plan = o.plan(params)
    if o.factorized:
      check_two_sides(plan, "factorized=True")
    kept = factors.init(plan, o.storage)
    if whiten is not None:
      kept = kl_factors.with_eigenvalues(plan, kept)
    inner = rule.init(plan.split(params))
    return SoapState(jnp.zeros((), jnp.int32), inner, kept)

  def update_fn(updates, state, params=None, *, statistics=None, **extra_args):
    del params  # The element-wise rule sees no rotated parameters.
    plan, first = o.plan(updates), state.count == 0
    if plan.empty:
      return updates, state
    inner, grain = state.inner, grains(plan, updates)
    grads, kept = factors.observe(
      plan, updates, state.kronecker, o.beta, o, statistics, whiten
    )
    if o.first_step != "identity":
      kept = eigenbasis.first_bases(kept, first)
    if o.refresh_order == "before":
      inner, kept = _refresh(o, plan, state.count, grain, inner, kept)
    rotated = eigenbasis.into(grads, kept, inward, grain)
    if whiten is not None:
      kept = eigenbasis.average_eigenvalues(
        plan, o, rotated, state.kronecker, kept, grain, statistics
      )
    stepped: Any = rule.update(rotated, inner, None, **extra_args)
    directions, stepped_inner = stepped
    if o.first_step == "use_current":
      directions = damp_noise(directions, rotated, first)
    directions = _turned_back(o, plan, directions, kept, stepped_inner)
    if o.first_step == "skip":
      nothing = jax.tree.map(jnp.zeros_like, directions), inner
      made = directions, stepped_inner
      directions, stepped_inner = jax.tree.map(
        lambda x, y: jnp.where(first, x, y), nothing, made
      )
    inner = stepped_inner
    if o.refresh_order == "after":
      inner, kept = _refresh(o, plan, state.count, grain, inner, kept)
    updates = from_stacks(directions, plan, updates, o.placement)
    count: Any = optax.safe_increment(state.count)
    return updates, SoapState(count, inner, kept)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(scale_by_soap)
def soap(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.01,
  mask: Any | None = None,
  decay_order: Order = "optax",
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """SOAP with decoupled weight decay; see `scale_by_soap`.

  Args:
    learning_rate: Number, array or schedule. Adam's for language models; on
      small problems and few examples up to 3 times Adam's, see `docs/soap.md`.
      A schedule counts calls, a skipped first one included.
    weight_decay: lambda, number, schedule or `Decay`; 0 turns it off. Nothing
      decays at a skipped call.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays, biases and gains of
      norms as well; `lambda params: jax.tree.map(lambda x: x.ndim > 1, params)`
      leaves biases and gains out.
    decay_order: "optax", w - eta (u + lambda w); "official", (w - eta u)
      (1 - eta lambda), as the authors' code does.
    **direction: The arguments of `scale_by_soap`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_soap`.
  """
  first_step = direction.get("first_step", SoapOptions.first_step)
  return descend(
    scale_by_soap(**direction),
    learning_rate,
    weight_decay,
    mask,
    order=decay_order,
    skip_first=first_step == "skip",
  )


@also_takes(soap)
def kl_soap(
  learning_rate: optax.ScalarOrSchedule,
  *,
  factors: FactorKind = "kl",
  **others: Any,
) -> optax.GradientTransformationExtraArgs:
  """SOAP whose sides whiten each other: `soap` with `factors="kl"`.

  Args:
    learning_rate: As for `soap`.
    factors: As for `scale_by_soap`, with this default.
    **others: The other arguments of `soap`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `soap`.
  """
  return soap(learning_rate, factors=factors, **others)


@also_takes(SphereOptions, scale_by_soap)
def soap_h(
  learning_rate: optax.ScalarOrSchedule, **options: Any
) -> optax.GradientTransformationExtraArgs:
  """SOAP on spheres: `on_sphere(scale_by_soap(...), learning_rate, ...)`.

  Args:
    learning_rate: eta of the matrices, about the angle of a step; 0.018 in the
      speed run. Number, array or schedule.
    **options: The arguments of `on_sphere` and of `scale_by_soap`; with
      `factors="kl"` the method is KL-SOAP-H.

  Returns:
    A transform; its `update` needs `params`.

  Raises:
    ValueError: As for `on_sphere` and `scale_by_soap`.

  References:
    SOAPH and KLSOAPH: the optimisation track of modded-nanogpt, 2026.
  """
  sphere, direction = for_sphere(options)
  return on_sphere(scale_by_soap(**direction), learning_rate, **sphere)


def _rule(o: SoapOptions) -> optax.GradientTransformationExtraArgs:
  """The element-wise rule, whose state says what is momentum."""
  if o.inner is not None:
    return elementwise.with_marks(o.inner, o.momentum_fields, o.square_fields)
  adam = elementwise.scale_by_split_adam(
    o.b1,
    o.b2,
    o.eps,
    o.eps_root,
    bias_correction=o.bias_correction,
    nesterov=o.nesterov,
    factorized=o.factorized,
    storage=o.storage,
  )
  return optax.with_extra_args_support(adam)


def _whiten(o: SoapOptions) -> factors.Whiten | None:
  """What KL factors average; None for Gram factors."""
  if o.factors == "gram":
    return None
  return kl_factors.whitener(o.eigenvalues, o.precision.statistics)


def _turned_back(o, plan: Plan, directions: Split, kept, inner) -> Split:
  """Directions out of their bases, with the size that the options say."""
  split = eigenbasis.rotate(directions, kept, o.precision, transpose=False)
  if o.normalize:
    split = unit(split, _bias_scale(o, inner))
  return sized(split, plan, o.update_rms, o.max_update_rms)


def _refresh(o, plan: Plan, count, grain, inner, kept: Stacks):
  """Refreshes the bases whose turn it is, and what lives in them."""
  return eigenbasis.refresh_due(
    plan, o, count, grain, inner, kept,
    first_step=o.first_step, squares=bool(o.square_fields),
  )  # fmt: skip


def _bias_scale(o: SoapOptions, inner: Any) -> jax.Array | float:
  """What `normalize` multiplies its root mean square of 1 by."""
  if o.inner is not None or not o.bias_correction:
    return 1.0
  return elementwise.bias_scale(inner.count, o.b1, o.b2)
