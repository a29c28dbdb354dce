"""Muon on the matrix engine: stacked Newton-Schulz iterations.

Differs from `optax.contrib.muon`: the momentum is the plain average of the
authors' code (no bias correction), and matrices of one shape are multiplied
in one batch. Embeddings and heads are not told apart from other matrices: give
them None in `dimension_numbers` to leave them to Adam.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import adam, arguments, blocks, kronecker, linear_algebra, sharding
from .descent import descend


class MuonState(NamedTuple):
  """State of `scale_by_muon`."""

  momentum: dict[str, jax.Array]  # By bucket, [S, I, O].
  adam: Any  # Of the leaves that are no matrices, on a `Split`.


def muon(  # noqa: D417
  learning_rate: optax.ScalarOrSchedule,
  *,
  decay: float = 0.95,
  nesterov: bool = True,
  weight_decay: float = 0.0,
  mask: Any | None = None,
  adam_learning_rate: optax.ScalarOrSchedule | None = None,
  adam_b1: float = 0.9,
  adam_b2: float = 0.95,
  adam_eps: float = 1e-10,
  dimension_numbers: blocks.DimensionTree = None,
  coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
  num_steps: int = 5,
  consistent_rms: float | None = None,
  mu_dtype: Any | None = None,
  product_dtype: Any | None = None,
  stack_axes: Any | None = None,
  stack_shards: int = 1,
  param_specs: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Muon for matrices and Adam for the rest; see `scale_by_muon`.

  Args:
    learning_rate: Of the matrices; about 0.02, or Adam's with
      `consistent_rms=0.2`. Number, array or schedule.
    weight_decay: Added to the direction as weight_decay * params.
    mask: Tree of bools like params, or a function of params that makes one:
      True decays. None: everything does.
    adam_learning_rate: Of the other leaves; None is `learning_rate`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As `scale_by_muon`.
  """
  direction = scale_by_muon(
    decay,
    nesterov=nesterov,
    adam_b1=adam_b1,
    adam_b2=adam_b2,
    adam_eps=adam_eps,
    dimension_numbers=dimension_numbers,
    coefficients=coefficients,
    num_steps=num_steps,
    consistent_rms=consistent_rms,
    mu_dtype=mu_dtype,
    product_dtype=product_dtype,
    stack_axes=stack_axes,
    stack_shards=stack_shards,
    param_specs=param_specs,
  )
  if adam_learning_rate is None:
    return descend(direction, learning_rate, weight_decay, mask)
  arguments.check_learning_rate(adam_learning_rate)

  def labels(params):
    rest = blocks.make_plan(params, dimension_numbers).split(params).rest
    is_masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(
      lambda x: "matrix" if is_masked(x) else "rest", rest, is_leaf=is_masked
    )

  step = optax.partition(
    {
      "matrix": optax.scale_by_learning_rate(learning_rate),
      "rest": optax.scale_by_learning_rate(adam_learning_rate),
    },
    labels,
  )
  return descend(direction, learning_rate, weight_decay, mask, step=step)


def scale_by_muon(
  decay: float = 0.95,
  *,
  nesterov: bool = True,
  adam_b1: float = 0.9,
  adam_b2: float = 0.95,
  adam_eps: float = 1e-10,
  dimension_numbers: blocks.DimensionTree = None,
  coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
  num_steps: int = 5,
  consistent_rms: float | None = None,
  mu_dtype: Any | None = None,
  product_dtype: Any | None = None,
  stack_axes: Any | None = None,
  stack_shards: int = 1,
  param_specs: Any | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the momentum of each matrix by about its nearest orthogonal one.

      M = b M + (1 - b) G,    N = b M + (1 - b) G  (Nesterov; else M)
      U = newton_schulz(N) * sqrt(max(1, O / I))

  with I inputs and O outputs. Leaves without a matrix get Adam.

  Args:
    decay: b, in [0, 1).
    nesterov: Look one step ahead.
    adam_b1: Of Adam, for leaves that are no matrices.
    adam_b2: Likewise.
    adam_eps: Likewise.
    dimension_numbers: Which axes are stack, input and output; see
      `DimensionNumbers`. None takes 2-D leaves as matrices.
    coefficients: a, b, c of the iteration X <- a X + (b A + c A^2) X.
    num_steps: Iterations, >= 1.
    consistent_rms: Scale by this times sqrt(max(I, O)) instead: updates of
      about this root mean square (0.2 is Adam's).
    mu_dtype: Storage of the momentum; None is float32.
    product_dtype: Of the Newton-Schulz products; None is float32, and
      bfloat16 is the authors' choice on accelerators.
    stack_axes: Mesh axis, or tuple of axes, over which each stack is spread
      (under `jax.set_mesh`).
    stack_shards: Number of devices along them.
    param_specs: Tree of `PartitionSpec`s like params: the updates go there
      before weight decay is added. None leaves it to the compiler, which may
      move the parameters instead.

  Returns:
    A transform whose updates are a direction of ascent, like gradients.

  Raises:
    ValueError: For an argument out of range, or, at `init`, for a leaf of
      unknown layout or type, or one with other than two sides.

  References:
    Jordan et al., "Muon", 2024, https://kellerjordan.github.io/posts/muon/
    Liu et al., "Muon is scalable for LLM training", 2025,
    https://arxiv.org/abs/2502.16982 (consistent_rms)
  """
  for name, value in (
    ("decay", decay),
    ("adam_b1", adam_b1),
    ("adam_b2", adam_b2),
  ):
    arguments.check_decay(name, value)
  arguments.check_positive("adam_eps", adam_eps, zero_too=True)
  arguments.check_count("num_steps", num_steps)
  arguments.check_count("stack_shards", stack_shards)
  adam_rule = adam.scale_by_split_adam(adam_b1, adam_b2, adam_eps)

  def plan_of(tree):
    plan = blocks.make_plan(
      tree,
      dimension_numbers,
      max_precond_dim=2**31,
      stack_shards=stack_shards,
    )
    blocks.check_two_sides(plan, "Muon")
    return plan

  def init_fn(params):
    plan = plan_of(params)
    split = plan.split(params)
    momentum = jax.tree.map(
      lambda x: jnp.zeros(x.shape, mu_dtype or x.dtype), split.stacks
    )
    return MuonState(momentum, adam_rule.init(blocks.Split({}, split.rest)))

  def scale(shape):
    inputs, outputs = shape[-2:]
    if consistent_rms is not None:
      return consistent_rms * max(inputs, outputs) ** 0.5
    return max(1.0, outputs / inputs) ** 0.5

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    plan = plan_of(updates)
    if plan.empty:
      return updates, state
    split = sharding.split(updates, plan, stack_axes, param_specs)
    momentum, directions = {}, {}
    for name, g in split.stacks.items():
      g, _ = kronecker.finite_or_zero(g)
      m = decay * state.momentum[name].astype(g.dtype) + (1 - decay) * g
      momentum[name] = m.astype(state.momentum[name].dtype)
      ahead = decay * m + (1 - decay) * g if nesterov else m
      orthogonal = linear_algebra.newton_schulz(
        ahead, coefficients, num_steps=num_steps, dtype=product_dtype or g.dtype
      )
      directions[name] = orthogonal * scale(g.shape)
    rest = jax.tree.map(kronecker.screen_leaf, split.rest)
    stepped: Any = adam_rule.update(blocks.Split({}, rest), state.adam)
    rest, adam_state = stepped
    split = blocks.Split(directions, rest.rest)
    updates = sharding.merge(split, plan, updates, stack_axes, param_specs)
    return updates, MuonState(momentum, adam_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
