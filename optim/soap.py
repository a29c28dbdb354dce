"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

Differs from the authors' PyTorch code: the momentum is turned only when its
basis changes (three two-sided products a step instead of five), bases keep the
order of their columns (so the second moment is never permuted), refreshes are
spread over the steps, and eps is Adam's (not divided by the bias correction).
`stagger=False, first_step="skip", decay_order="official", refresh="qr"` gives
the authors' trajectories.

Dimension key: see `optim/blocks.py`.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import adam, arguments, blocks, kronecker, linear_algebra
from .descent import descend

Refresh = Literal["qr", "cholesky", "eigh"]
FirstStep = Literal["skip", "identity", "use_current"]


class SoapState(NamedTuple):
  """State of `scale_by_soap`; stacks are laid out as `optim.make_plan` says."""

  count: jax.Array  # int32 []: calls.
  inner: Any  # Of the element-wise rule, on a `Split` in rotated coordinates.
  kronecker: dict[str, kronecker.Kronecker]  # By bucket; derived = bases Q.


def soap(
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

  Returns:
    A transform whose updates are a direction of ascent, like gradients.

  Raises:
    ValueError: For an argument out of range, or, at `init`, for a leaf of
      unknown layout or type.

  References:
    Vyas et al., "SOAP: Improving and stabilizing Shampoo using Adam", 2024,
    https://arxiv.org/abs/2409.11321
  """
  _check(locals())
  beta = b2 if shampoo_beta is None else shampoo_beta
  precision = kronecker.Precision(*precision)
  rule = inner
  if rule is None:
    rule = adam.scale_by_split_adam(
      b1,
      b2,
      eps,
      bias_correction=bias_correction,
      factorized=factorized,
      mu_dtype=mu_dtype,
      nu_dtype=nu_dtype,
    )
  rule = optax.with_extra_args_support(rule)

  def plan_of(tree):
    return blocks.make_plan(
      tree,
      dimension_numbers,
      max_precond_dim=max_precond_dim,
      one_sided=one_sided,
      block_size=block_size,
      stack_shards=stack_shards,
    )

  def init_fn(params):
    plan = plan_of(params)
    if factorized:
      _check_two_sides(plan)
    state = kronecker.init(plan, factor_dtype, basis_dtype)
    return SoapState(
      jnp.zeros((), jnp.int32), rule.init(plan.split(params)), state
    )

  def update_fn(updates, state, params=None, **extra_args):
    del params  # The element-wise rule sees no rotated parameters.
    plan = plan_of(updates)
    if plan.empty:
      return updates, state
    first = state.count == 0
    grads, factors = _observe(
      plan, updates, state.kronecker, beta, precision, stack_axes
    )
    if first_step != "identity":
      factors = _first_bases(factors, first)
    rotated = _rotate(grads, factors, precision, transpose=True)
    directions, inner_state = rule.update(
      rotated, state.inner, None, **extra_args
    )
    directions = _rotate(directions, factors, precision, transpose=False)
    if normalize:
      scale = 1.0
      if inner is None and bias_correction:
        scale = adam.bias_scale(inner_state.count, b1, b2)
      directions = _normalize(directions, scale)
    if first_step == "skip":
      directions = jax.tree.map(lambda u: jnp.where(first, 0, u), directions)
      inner_state = jax.tree.map(
        lambda old, new: jnp.where(first, old, new), state.inner, inner_state
      )
    schedule = kronecker.make_schedule(
      plan, precondition_frequency, stagger=stagger, stack_shards=stack_shards
    )
    inner_state, factors = _refresh(
      schedule,
      state.count,
      inner_state,
      factors,
      _make_basis(refresh, first_step, state.count, schedule, precision),
      momentum_fields,
      precision,
    )
    updates = plan.merge(directions, like=updates)
    count = optax.safe_increment(state.count)
    return updates, SoapState(count, inner_state, factors)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _observe(plan, updates, state, beta, precision, stack_axes):
  """Stacks and screens the gradients, and averages their Gram matrices."""
  split, factors = plan.split(updates), {}
  stacks = {}
  for name, x in split.stacks.items():
    x = kronecker.constrain(x, stack_axes)
    x, bucket = kronecker.screen(x, state[name])
    stacks[name] = x
    factors[name] = kronecker.average_grams(
      bucket, x, beta, precision.statistics
    )
  rest = jax.tree.map(_screen_leaf, split.rest)
  return blocks.Split(stacks, rest), factors


def _screen_leaf(g: jax.Array) -> jax.Array:
  """As `kronecker.screen`, for a leaf without a matrix."""
  square = jnp.square(g.astype(jnp.promote_types(g.dtype, jnp.float32)))
  return jnp.where(jnp.isfinite(jnp.sum(square)), g, 0)


def _first_bases(factors, first):
  """Eigenvectors of the factors at the first call; one branch a side."""
  result = {}
  for name, bucket in factors.items():
    bases, failures = list(bucket.derived), bucket.failures
    for side, factor in enumerate(bucket.factors):
      if factor is not None:
        bases[side], failures = jax.lax.cond(
          first,
          _eigenbasis_or_old,
          lambda factor, old, failures: (old, failures),
          factor,
          bases[side],
          failures,
        )
    result[name] = bucket._replace(derived=tuple(bases), failures=failures)
  return result


def _eigenbasis_or_old(factor, old, failures):
  work = factor.astype(jnp.promote_types(factor.dtype, jnp.float32))
  new = linear_algebra.eigenbasis(work)
  ok_S = jnp.all(jnp.isfinite(new), axis=(-2, -1))
  new = jnp.where(ok_S[:, None, None], new, old.astype(new.dtype))
  return new.astype(old.dtype), failures + ~ok_S


def _rotate(split, factors, precision, *, transpose):
  stacks = {
    name: kronecker.rotate(
      x,
      factors[name].derived,
      transpose=transpose,
      precision=precision.rotation,
    )
    for name, x in split.stacks.items()
  }
  return blocks.Split(stacks, split.rest)


def _normalize(split, scale):
  """Root mean square `scale` for each matrix, and for each other leaf."""

  def unit(x, axes):
    rms = jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True))
    return scale * x / (1e-30 + rms)

  stacks = {
    name: unit(x, tuple(range(1, x.ndim))) for name, x in split.stacks.items()
  }
  return blocks.Split(stacks, jax.tree.map(lambda x: unit(x, None), split.rest))


def _make_basis(refresh, first_step, count, schedule, precision):
  """The (factor, old basis) -> (basis, ok) of a refresh."""

  def anew(factor, old):
    del old
    basis = linear_algebra.eigenbasis(factor)
    return basis, jnp.all(jnp.isfinite(basis), axis=(-2, -1))

  def step(factor, old):
    return linear_algebra.power_step(
      factor, old, method=refresh, precision=precision.refresh
    )

  if refresh == "eigh":
    return anew
  if first_step != "identity":
    return step
  # A power iteration from the identity would need many steps.
  frequency = max((len(r.slot_of_phase) for r in schedule.values()), default=1)
  return lambda factor, old: jax.lax.cond(
    count <= frequency, anew, step, factor, old
  )


def _refresh(schedule, count, inner_state, factors, make, fields, precision):
  """Refreshes the sides whose turn it is, and turns the momenta with them."""
  leaves, treedef = jax.tree_util.tree_flatten_with_path(inner_state)
  paths, leaves = [path for path, _ in leaves], [leaf for _, leaf in leaves]
  for (name, side), refresh in schedule.items():
    where = [i for i, path in enumerate(paths) if _is_momentum(path, name, fields)]

    def carry(x, old, new, side=side):
      work = x.astype(jnp.promote_types(x.dtype, jnp.float32))
      for matrix, transpose in ((old, False), (new, True)):
        work = kronecker.mode_product(
          work,
          matrix,
          side,
          transpose=transpose,
          precision=precision.refresh,
        )
      return work.astype(x.dtype)

    factors[name], moved = kronecker.refresh_side(
      refresh,
      count % len(refresh.slot_of_phase),
      count > 0,
      make,
      factors[name],
      side,
      tuple(leaves[i] for i in where),
      carry,
    )
    for i, leaf in zip(where, moved, strict=True):
      leaves[i] = leaf
  return jax.tree.unflatten(treedef, leaves), factors


def _is_momentum(path, name: str, fields: tuple[str, ...]) -> bool:
  """Whether a leaf of the inner state is a bucket's stack in such a field."""
  names = [getattr(key, "name", getattr(key, "key", None)) for key in path]
  return names[-2:] == ["stacks", name] and any(f in names for f in fields)


def _check_two_sides(plan: blocks.Plan) -> None:
  for bucket in plan.buckets:
    if len(bucket.shape) != 2:
      raise ValueError(
        f"factorized=True needs matrices, but leaf {bucket.pieces[0].path} of "
        f"shape {bucket.pieces[0].shape} has {len(bucket.shape)} sides. Merge "
        "them into two in its DimensionNumbers, or set factorized=False."
      )


def _check(args: dict[str, Any]) -> None:
  """Raises for any argument of `scale_by_soap` that is out of range."""
  for name in ("b1", "b2", "shampoo_beta"):
    if args[name] is not None:
      arguments.check_decay(name, args[name])
  arguments.check_positive("eps", args["eps"], zero_too=True)
  counts = ["precondition_frequency", "max_precond_dim", "stack_shards"]
  if args["block_size"] is not None:
    counts.append("block_size")
  for name in counts:
    arguments.check_count(name, args[name])
  arguments.check_choice("refresh", args["refresh"], ("qr", "cholesky", "eigh"))
  arguments.check_choice(
    "first_step", args["first_step"], ("skip", "identity", "use_current")
  )
  kronecker.check_precision(args["precision"])
