"""Shampoo with Adam grafting, on the matrix engine.

Differs from the original paper: factors are bias-corrected moving averages,
the exponent is free (1/2 for each side by default, as in the study of Shampoo
by Morwani et al.), and inverse roots are refreshed a part at each step.

Dimension key: see `optim/blocks.py`.
"""

import types
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import adam, arguments, blocks, kronecker, linear_algebra, sharding
from .descent import descend


class ShampooState(NamedTuple):
  """State of `scale_by_shampoo`."""

  count: jax.Array  # int32 []: calls.
  grafting: adam.AdamState  # On a `Split`, in the leaves' own coordinates.
  kronecker: dict[str, kronecker.Kronecker]  # derived = inverse roots.


def shampoo(  # noqa: D417
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: float = 0.9,
  b2: float = 0.95,
  shampoo_beta: float | None = None,
  eps: float = 1e-8,
  weight_decay: float = 0.01,
  mask: Any | None = None,
  exponent: float = 0.5,
  matrix_eps: float = 1e-12,
  grafting: Literal["adam", "none"] = "adam",
  start_preconditioning_step: int | None = None,
  precondition_frequency: int = 10,
  max_precond_dim: int = 10_000,
  dimension_numbers: blocks.DimensionTree = None,
  one_sided: bool = False,
  block_size: int | None = None,
  stagger: bool = True,
  mu_dtype: Any | None = None,
  nu_dtype: Any | None = None,
  factor_dtype: Any | None = None,
  root_dtype: Any | None = None,
  precision: tuple[str, str, str] = kronecker.Precision(),
  stack_axes: Any | None = None,
  stack_shards: int = 1,
  param_specs: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Shampoo with decoupled weight decay; see `scale_by_shampoo` for the rest.

  Args:
    learning_rate: Number, array or schedule; about Adam's when grafted.
    weight_decay: Added to the direction as weight_decay * params.
    mask: Tree of bools like params, or a function of params that makes one:
      True decays. None: everything does.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As `scale_by_shampoo`.
  """
  direction = scale_by_shampoo(
    b1,
    b2,
    shampoo_beta,
    eps,
    exponent=exponent,
    matrix_eps=matrix_eps,
    grafting=grafting,
    start_preconditioning_step=start_preconditioning_step,
    precondition_frequency=precondition_frequency,
    max_precond_dim=max_precond_dim,
    dimension_numbers=dimension_numbers,
    one_sided=one_sided,
    block_size=block_size,
    stagger=stagger,
    mu_dtype=mu_dtype,
    nu_dtype=nu_dtype,
    factor_dtype=factor_dtype,
    root_dtype=root_dtype,
    precision=precision,
    stack_axes=stack_axes,
    stack_shards=stack_shards,
    param_specs=param_specs,
  )
  return descend(direction, learning_rate, weight_decay, mask)


def scale_by_shampoo(
  b1: float = 0.9,
  b2: float = 0.95,
  shampoo_beta: float | None = None,
  eps: float = 1e-8,
  *,
  exponent: float = 0.5,
  matrix_eps: float = 1e-12,
  grafting: Literal["adam", "none"] = "adam",
  start_preconditioning_step: int | None = None,
  precondition_frequency: int = 10,
  max_precond_dim: int = 10_000,
  dimension_numbers: blocks.DimensionTree = None,
  one_sided: bool = False,
  block_size: int | None = None,
  stagger: bool = True,
  mu_dtype: Any | None = None,
  nu_dtype: Any | None = None,
  factor_dtype: Any | None = None,
  root_dtype: Any | None = None,
  precision: tuple[str, str, str] = kronecker.Precision(),
  stack_axes: Any | None = None,
  stack_shards: int = 1,
  param_specs: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Multiplies the momentum of each matrix by inverse roots of its factors.

  For a matrix G [I, O], with t = 1, 2, ... and bias-corrected averages M of G
  (b1), V of G^2 (b2), L of G G^T and R of G^T G (beta):

      P = (L + eps)^(-exponent) M (R + eps)^(-exponent)
      A = M / (sqrt(V) + eps)                               Adam's direction
      U = P ||A||_F / ||P||_F                        its length, from step s on

  and U = A before step s = `start_preconditioning_step`. The roots are
  computed once in `precondition_frequency` steps. Leaves without a matrix get
  A. Not grafted, U = Tr(L)^(k exponent - 1/2) P with k factored sides, which
  does not depend on the scale of the gradients: for 1/4 on two sides the
  original Shampoo, for 1/2 the square root of (L x R) / Tr(L).

  A matrix whose gradient has a NaN or infinity is taken to have had gradient
  zero, and counted in `kronecker[...].rejections`; a root that is not finite
  leaves the old one in place, and is counted in `.failures`.

  Args:
    b1: Decay of M, in [0, 1).
    b2: Decay of V, in [0, 1).
    shampoo_beta: Decay beta of L and R; None is b2.
    eps: Of Adam's direction.
    exponent: Of each factor: 1/2, or 1/4 for the original.
    matrix_eps: Added to the eigenvalues of L and R, in gradient^2.
    grafting: "adam", or "none".
    start_preconditioning_step: s, counted from 1; None is
      `precondition_frequency`, by which each root has been computed.
    precondition_frequency: Steps between two refreshes of a root, >= 1.
    max_precond_dim: Sides longer than this get no factor.
    dimension_numbers: Which axes are stack, input and output; see
      `DimensionNumbers`. None takes 2-D leaves as matrices.
    one_sided: Only the shorter side of each matrix gets a factor.
    block_size: Sides longer than this are cut into blocks of their own.
    stagger: Spread the refreshes evenly over the steps; False does all of
      them at every `precondition_frequency`-th step.
    mu_dtype: Storage of M; None is float32.
    nu_dtype: Storage of V; None is float32.
    factor_dtype: Storage of L and R; None is float32.
    root_dtype: Storage of the inverse roots; None is float32.
    precision: Of the products for statistics, preconditioning and refresh.
    stack_axes: Mesh axis, or tuple of axes, over which each stack is spread
      (under `jax.set_mesh`).
    stack_shards: Number of devices along them.
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
    Gupta et al., "Shampoo", 2018, https://arxiv.org/abs/1802.09568
    Anil et al., 2020, https://arxiv.org/abs/2002.09018 (grafting)
    Morwani et al., "A New Perspective on Shampoo's Preconditioner", 2024,
    https://arxiv.org/abs/2406.17748 (exponent and trace)
  """
  options = types.SimpleNamespace(**locals())
  _check(options)
  return _transform(options)


def _transform(
  o: types.SimpleNamespace,
) -> optax.GradientTransformationExtraArgs:
  """`scale_by_shampoo` of checked arguments, o."""
  beta = o.b2 if o.shampoo_beta is None else o.shampoo_beta
  precision = kronecker.Precision(*o.precision)
  start = o.start_preconditioning_step or o.precondition_frequency
  adam_rule = adam.scale_by_split_adam(
    o.b1, o.b2, o.eps, mu_dtype=o.mu_dtype, nu_dtype=o.nu_dtype
  )
  plan_of = blocks.planner(o)

  def init_fn(params):
    plan = plan_of(params)
    state = kronecker.init(plan, o.factor_dtype, o.root_dtype)
    count = jnp.zeros((), jnp.int32)
    graft_state: Any = adam_rule.init(plan.split(params))
    return ShampooState(count, graft_state, state)

  def update_fn(updates, state, params=None, *, statistics=None, **extra_args):
    del params, extra_args
    plan = plan_of(updates)
    if plan.empty:
      return updates, state
    count: Any = optax.safe_increment(state.count)
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

    def root(factor, old):
      del old
      return linear_algebra.inverse_root(
        factor / (1 - beta**count), o.exponent, o.matrix_eps
      )

    schedule = kronecker.make_schedule(
      plan,
      o.precondition_frequency,
      stagger=o.stagger,
      stack_shards=o.stack_shards,
    )
    for (name, side), refresh in schedule.items():
      factors[name], _ = kronecker.refresh_side(
        refresh, count, True, root, factors[name], side
      )
    grafted: Any = adam_rule.update(grads, state.grafting)
    directions, graft_state = grafted
    stacks = {}
    for name, adam_S in directions.stacks.items():
      momentum = graft_state.mu.stacks[name].astype(adam_S.dtype) / (
        1 - o.b1**count
      )
      plain = adam_S if o.grafting == "adam" else momentum
      turned = kronecker.rotate(
        momentum,
        factors[name].derived,
        transpose=False,
        precision=precision.rotation,
      )
      if o.grafting == "adam":
        scale = _norm(adam_S) / jnp.maximum(_norm(turned), 1e-30)
      else:
        scale = _trace_scale(factors[name], o.exponent, 1 - beta**count)
      stacks[name] = jnp.where(count >= start, scale * turned, plain)
    directions = directions._replace(stacks=stacks)
    updates = sharding.merge(
      directions, plan, updates, o.stack_axes, o.param_specs
    )
    return updates, ShampooState(count, graft_state, factors)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _norm(x):
  """Frobenius norm of each matrix, [S, 1, 1]."""
  axes = tuple(range(1, x.ndim))
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))


def _trace_scale(state: kronecker.Kronecker, exponent, correction):
  """Tr(L)^(k exponent - 1/2), [S, 1, 1]: the trace is the same for any side."""
  factors = [factor for factor in state.factors if factor is not None]
  trace_S = jnp.trace(factors[0], axis1=-2, axis2=-1) / correction
  power = len(factors) * exponent - 0.5
  trace_S = jnp.maximum(trace_S, jnp.finfo(trace_S.dtype).tiny)
  return jnp.expand_dims(
    trace_S**power, tuple(range(1, len(state.factors) + 1))
  )


def _check(o: types.SimpleNamespace) -> None:
  """Raises for any argument of `scale_by_shampoo` that is out of range."""
  for name in ("b1", "b2", "shampoo_beta"):
    if getattr(o, name) is not None:
      arguments.check_decay(name, getattr(o, name))
  arguments.check_positive("eps", o.eps, zero_too=True)
  arguments.check_positive("matrix_eps", o.matrix_eps, zero_too=True)
  arguments.check_positive("exponent", o.exponent)
  for name in ("start_preconditioning_step", "block_size"):
    if getattr(o, name) is not None:
      arguments.check_count(name, getattr(o, name))
  for name in ("precondition_frequency", "max_precond_dim", "stack_shards"):
    arguments.check_count(name, getattr(o, name))
  arguments.check_choice("grafting", o.grafting, ("adam", "none"))
  kronecker.check_precision(o.precision)
