"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Differs from the authors' PyTorch code: the momentum is turned only when its
basis changes (three two-sided products a step instead of five), bases keep the
order of their columns (so the second moment is never permuted), refreshes are
spread over the steps, and eps is Adam's (not divided by the bias correction).
`stagger=False, first_step="skip", decay_order="official", refresh="qr"` gives
the authors' trajectories.

Dimension key: see `optim/blocks.py`.
"""

import types
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import adam, arguments, bases, blocks, kronecker, sharding
from .descent import descend

Refresh = Literal["qr", "cholesky", "eigh"]
FirstStep = Literal["skip", "identity", "use_current"]


class SoapState(NamedTuple):
  """State of `scale_by_soap`; stacks are laid out as `optim.make_plan` says."""

  count: jax.Array  # int32 []: calls.
  inner: Any  # Of the element-wise rule, on a `Split` in rotated coordinates.
  kronecker: dict[str, kronecker.Kronecker]  # By bucket; derived = bases Q.


def soap(  # noqa: D417
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: float = 0.95,
  b2: float = 0.95,
  shampoo_beta: float | None = None,
  eps: float = 1e-8,
  weight_decay: float = 0.01,
  mask: Any | None = None,
  decay_order: Literal["optax", "official"] = "optax",
  precondition_frequency: int = 10,
  max_precond_dim: int = 10_000,
  dimension_numbers: blocks.DimensionTree = None,
  one_sided: bool = False,
  factorized: bool = False,
  block_size: int | None = None,
  normalize: bool = False,
  bias_correction: bool = True,
  inner: optax.GradientTransformation | None = None,
  momentum_fields: tuple[str, ...] = ("mu", "trace", "m1", "m2", "m"),
  refresh: Refresh = "qr",
  first_step: FirstStep = "skip",
  stagger: bool = True,
  mu_dtype: Any | None = None,
  nu_dtype: Any | None = None,
  factor_dtype: Any | None = None,
  basis_dtype: Any | None = None,
  precision: tuple[str, str, str] = kronecker.Precision(),
  stack_axes: Any | None = None,
  stack_shards: int = 1,
  param_specs: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
  """SOAP with decoupled weight decay; see `scale_by_soap` for all arguments.

  Args:
    learning_rate: Number, array or schedule; about Adam's. A schedule counts
      calls, the skipped first one included.
    weight_decay: lambda; 0 turns it off. Nothing decays at a skipped call.
    mask: Tree of bools like params, or a function of params that makes one:
      True decays. None: everything does.
    decay_order: "optax", w - eta (u + lambda w); "official", (w - eta u)
      (1 - eta lambda), as the authors' code does.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As `scale_by_soap`.
  """
  direction = scale_by_soap(
    b1,
    b2,
    shampoo_beta,
    eps,
    precondition_frequency=precondition_frequency,
    max_precond_dim=max_precond_dim,
    dimension_numbers=dimension_numbers,
    one_sided=one_sided,
    factorized=factorized,
    block_size=block_size,
    normalize=normalize,
    bias_correction=bias_correction,
    inner=inner,
    momentum_fields=momentum_fields,
    refresh=refresh,
    first_step=first_step,
    stagger=stagger,
    mu_dtype=mu_dtype,
    nu_dtype=nu_dtype,
    factor_dtype=factor_dtype,
    basis_dtype=basis_dtype,
    precision=precision,
    stack_axes=stack_axes,
    stack_shards=stack_shards,
    param_specs=param_specs,
  )
  return descend(
    direction,
    learning_rate,
    weight_decay,
    mask,
    order=decay_order,
    skip_first=first_step == "skip",
  )


def scale_by_soap(
  b1: float = 0.95,
  b2: float = 0.95,
  shampoo_beta: float | None = None,
  eps: float = 1e-8,
  *,
  precondition_frequency: int = 10,
  max_precond_dim: int = 10_000,
  dimension_numbers: blocks.DimensionTree = None,
  one_sided: bool = False,
  factorized: bool = False,
  block_size: int | None = None,
  normalize: bool = False,
  bias_correction: bool = True,
  inner: optax.GradientTransformation | None = None,
  momentum_fields: tuple[str, ...] = ("mu", "trace", "m1", "m2", "m"),
  refresh: Refresh = "qr",
  first_step: FirstStep = "skip",
  stagger: bool = True,
  mu_dtype: Any | None = None,
  nu_dtype: Any | None = None,
  factor_dtype: Any | None = None,
  basis_dtype: Any | None = None,
  precision: tuple[str, str, str] = kronecker.Precision(),
  stack_axes: Any | None = None,
  stack_shards: int = 1,
  param_specs: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Runs Adam, or another element-wise rule, in a slowly turning eigenbasis.

  For a matrix G [I, O] with bases Q_L and Q_R, at each call:

      G' = Q_L^T G Q_R                      into the basis
      M' = b1 M' + (1 - b1) G',   V' = b2 V' + (1 - b2) G'^2
      U  = Q_L (M' / (sqrt(V') + eps)) Q_R^T          both bias-corrected
      L  = beta L + (1 - beta) G G^T,   R = beta R + (1 - beta) G^T G

  and once in `precondition_frequency` calls Q <- orthonormalise(P Q) for L and
  R each, M' being turned from the old basis into the new. The first bases are
  the eigenvectors of the first gradient's L and R. Leaves without a matrix,
  and matrices without a factor, get the element-wise rule as they are.

  A matrix whose gradient has a NaN or infinity is taken to have had gradient
  zero, and counted in `kronecker[...].rejections`; a refresh that fails keeps
  the old basis of that matrix, and is counted in `.failures`.

  Args:
    b1: Decay of the first moment, in [0, 1).
    b2: Decay of the second moment, in [0, 1).
    shampoo_beta: Decay beta of L and R; None is b2.
    eps: Of Adam, in units of the rotated gradient.
    precondition_frequency: Calls between two refreshes of a matrix, >= 1.
    max_precond_dim: Sides longer than this get no factor: identity there.
    dimension_numbers: Which axes are stack, input and output; see
      `DimensionNumbers`. None takes 2-D leaves as matrices.
    one_sided: Only the shorter side of each matrix is rotated.
    factorized: Keep V' as row and column averages (rank 1), as Adafactor.
    block_size: Sides longer than this are cut into blocks of their own.
    normalize: Scale each matrix's U to root mean square 1.
    bias_correction: False leaves Adam's corrections out.
    inner: Replaces Adam (b1, b2, eps, factorized and the moments' types are
      then its own affair). Gets no params.
    momentum_fields: Names of the fields of the state of `inner` that are sums
      of gradients and have to be turned with the basis.
    refresh: "qr" (one power iteration, orthonormalised by Householder),
      "cholesky" (the same by matrix products), or "eigh" (eigenvectors anew).
    first_step: At the first call, "skip" only takes the bases from the
      gradient; "use_current" takes them and makes the step as well; "identity"
      makes Adam's step, and each matrix gets its first eigenvectors at its
      first refresh.
    stagger: Spread the refreshes evenly over the calls; False does all of
      them at once, every `precondition_frequency`-th call.
    mu_dtype: Storage of the first moment; None is float32.
    nu_dtype: Storage of the second moment; None is float32.
    factor_dtype: Storage of L and R; None is float32.
    basis_dtype: Storage of Q_L and Q_R; None is float32.
    precision: Of the products for statistics, rotation and refresh; see
      `kronecker.Precision`.
    stack_axes: Mesh axis, or tuple of axes, over which each stack is spread
      (under `jax.set_mesh`); None leaves it to the compiler.
    stack_shards: Number of devices along them: stacks are padded to a multiple
      of it, and a refresh takes equally many matrices of each.
    param_specs: Tree of `PartitionSpec`s like params: the updates go there
      before weight decay is added. None leaves it to the compiler, which may
      move the parameters instead.

  Returns:
    A transform whose updates are a direction of ascent, like gradients. Its
    `update` takes L and R from `statistics`, a tree like the gradients, where
    that is passed.

  Raises:
    ValueError: For an argument out of range, or, at `init`, for a leaf of
      unknown layout or type.

  References:
    Vyas et al., "SOAP: Improving and stabilizing Shampoo using Adam", 2024,
    https://arxiv.org/abs/2409.11321
  """
  options = types.SimpleNamespace(**locals())
  _check(options)
  return _transform(options)


def _transform(
  o: types.SimpleNamespace,
) -> optax.GradientTransformationExtraArgs:
  """`scale_by_soap` of checked arguments, o."""
  beta = o.b2 if o.shampoo_beta is None else o.shampoo_beta
  precision = kronecker.Precision(*o.precision)
  rule = optax.with_extra_args_support(o.inner or _adam(o))
  plan_of = blocks.planner(o)

  def init_fn(params):
    plan = plan_of(params)
    if o.factorized:
      blocks.check_two_sides(plan, "factorized=True")
    state = kronecker.init(plan, o.factor_dtype, o.basis_dtype)
    return SoapState(
      jnp.zeros((), jnp.int32), rule.init(plan.split(params)), state
    )

  def update_fn(updates, state, params=None, *, statistics=None, **extra_args):
    del params  # The element-wise rule sees no rotated parameters.
    plan = plan_of(updates)
    if plan.empty:
      return updates, state
    first = state.count == 0
    grads, factors = kronecker.observe(
      plan,
      updates,
      state.kronecker,
      beta,
      precision,
      o.stack_axes,
      statistics,
      o.param_specs,
    )
    if o.first_step != "identity":
      factors = bases.first_bases(factors, first)
    rotated = bases.rotate(grads, factors, precision, transpose=True)
    stepped: Any = rule.update(rotated, state.inner, None, **extra_args)
    directions, inner_state = stepped
    directions = bases.rotate(directions, factors, precision, transpose=False)
    if o.normalize:
      scale = 1.0
      if o.inner is None and o.bias_correction:
        scale = adam.bias_scale(inner_state.count, o.b1, o.b2)
      directions = _normalize(directions, scale)
    if o.first_step == "skip":
      nothing = jax.tree.map(jnp.zeros_like, directions)
      directions = _choose(first, nothing, directions)
      inner_state = _choose(first, state.inner, inner_state)
    schedule = kronecker.make_schedule(
      plan,
      o.precondition_frequency,
      stagger=o.stagger,
      stack_shards=o.stack_shards,
    )
    make = bases.make_basis(
      o.refresh, o.first_step, state.count, precision, o.precondition_frequency
    )
    inner_state, factors = bases.refresh(
      schedule,
      state.count,
      inner_state,
      factors,
      make,
      o.momentum_fields,
      precision,
    )
    updates = sharding.merge(
      directions, plan, updates, o.stack_axes, o.param_specs
    )
    count: Any = optax.safe_increment(state.count)
    return updates, SoapState(count, inner_state, factors)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _adam(o: types.SimpleNamespace) -> optax.GradientTransformation:
  return adam.scale_by_split_adam(
    o.b1,
    o.b2,
    o.eps,
    bias_correction=o.bias_correction,
    factorized=o.factorized,
    mu_dtype=o.mu_dtype,
    nu_dtype=o.nu_dtype,
  )


def _choose(condition, a, b):
  return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _normalize(split, scale):
  """Root mean square `scale` for each matrix, and for each other leaf."""

  def unit(x, axes):
    rms = jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True))
    return scale * x / (1e-30 + rms)

  stacks = {
    name: unit(x, tuple(range(1, x.ndim))) for name, x in split.stacks.items()
  }
  return blocks.Split(stacks, jax.tree.map(lambda x: unit(x, None), split.rest))


def _check(o: types.SimpleNamespace) -> None:
  """Raises for any argument of `scale_by_soap` that is out of range."""
  for name in ("b1", "b2", "shampoo_beta"):
    if getattr(o, name) is not None:
      arguments.check_decay(name, getattr(o, name))
  arguments.check_positive("eps", o.eps, zero_too=True)
  counts = ["precondition_frequency", "max_precond_dim", "stack_shards"]
  if o.block_size is not None:
    counts.append("block_size")
  for name in counts:
    arguments.check_count(name, getattr(o, name))
  arguments.check_choice("refresh", o.refresh, ("qr", "cholesky", "eigh"))
  arguments.check_choice(
    "first_step", o.first_step, ("skip", "identity", "use_current")
  )
  kronecker.check_precision(o.precision)
