"""The state of Gauss-Newton, and the end of an outer step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..curvature import groups
from . import damping as damping_rules
from . import line_search as searches
from .options import OuterOptions


class GNInfo(NamedTuple):
  """What happened in the last outer step, for logs; scalars except `losses`.

  Tokens are the weights of the loss. For a `MeanLoss` they are the positions
  with their weights; for a plain function each batch has the weight 1.
  """

  losses: jax.Array  # float32 [num]: at the candidates; NaN if not evaluated.
  rho: jax.Array  # float32: actual over predicted decrease; NaN if not used.
  damping: jax.Array  # float32: the damping of this outer step.
  loss: jax.Array  # float32: of the local model, at the last inner step.
  grad_norm: jax.Array  # float32: of the last inner gradient, before clipping.
  solve_tokens: jax.Array  # float32: fresh tokens that made the displacement.
  search_tokens: jax.Array  # float32: fresh tokens of the line search.
  eval_tokens: jax.Array  # float32: search_tokens times the passes over them.
  depth: jax.Array  # int32: sequential passes: inner steps and evaluations.
  rejected: jax.Array  # int32: outer steps so far that moved nothing.


class GNState(NamedTuple):
  """State of `gauss_newton`; params stay theta_t during an outer step."""

  count: jax.Array  # int32 []: outer steps made.
  inner_count: jax.Array  # int32 []: inner updates made in this outer step.
  delta: Any  # Like params, float32: displacement from theta_t.
  inner_state: Any  # State of the inner optimiser; layerwise, one a group.
  alpha: jax.Array  # float32 []: last step length.
  damping: jax.Array  # float32 []: of the next outer step.
  info: GNInfo  # Of the last outer step, or of the one under way.


def work_params(o: OuterOptions, params: Any) -> Any:
  """Casts params to the type in which the displacement is kept."""
  dtype = o.accumulate_dtype or jnp.float32
  return jax.tree.map(
    lambda p: p.astype(jnp.promote_types(p.dtype, dtype)), params
  )


def inner_rule(
  o: OuterOptions, params: Any
) -> optax.GradientTransformationExtraArgs:
  """The inner optimiser; layerwise, one for each group of leaves."""
  labels = groups.label_tree(o.scope, params)
  if labels is None:
    return optax.with_extra_args_support(o.inner_optimizer)
  found: Any = groups.find_groups(labels)
  rules = dict.fromkeys(found, o.inner_optimizer)
  # A function: optax would call a tree that has a `__call__`.
  return optax.partition(rules, lambda _: labels)


def init(o: OuterOptions, params: Any) -> GNState:
  """The state before the first outer step."""
  work = work_params(o, params)
  num_groups = groups.num_groups(o.scope, params)
  num = len(searches.candidates(o.search, num_groups))

  def zero(dtype=jnp.float32):
    return jnp.zeros((), dtype)

  info = GNInfo(
    losses=jnp.full(num, jnp.nan, jnp.float32),
    rho=jnp.full((), jnp.nan, jnp.float32),
    damping=damping_rules.initial(o.damping),
    loss=zero(),
    grad_norm=zero(),
    solve_tokens=zero(),
    search_tokens=zero(),
    eval_tokens=zero(),
    depth=zero(jnp.int32),
    rejected=zero(jnp.int32),
  )
  return GNState(
    zero(jnp.int32),
    zero(jnp.int32),
    optax.tree.zeros_like(work),
    inner_rule(o, work).init(work),
    zero(),
    damping_rules.initial(o.damping),
    info,
  )


def current_damping(o: OuterOptions, state: GNState) -> jax.Array:
  """The damping of this outer step."""
  return damping_rules.at(o.damping, state.count, state.damping)


def begin(state: GNState) -> GNState:
  """Sets the counts of an outer step to 0 at its first inner update."""
  first = state.inner_count == 0
  info = state.info
  fresh = info._replace(
    solve_tokens=jnp.zeros_like(info.solve_tokens),
    search_tokens=jnp.zeros_like(info.search_tokens),
    eval_tokens=jnp.zeros_like(info.eval_tokens),
    depth=jnp.zeros_like(info.depth),
  )
  info = jax.tree.map(lambda a, b: jnp.where(first, a, b), fresh, info)
  return state._replace(info=info)


def count_tokens(state: GNState, weight: Any) -> GNState:
  """Counts the weight of one batch of the solve."""
  tokens = state.info.solve_tokens + jnp.asarray(weight, jnp.float32)
  return state._replace(info=state.info._replace(solve_tokens=tokens))


def descend(
  o: OuterOptions,
  state: GNState,
  params: Any,
  value: jax.Array,
  grad: Any,
) -> GNState:
  """Makes one update of the displacement by the inner optimiser.

  The inner optimiser gets params + delta as its parameters, so that decoupled
  decay acts on the iterate and not on the displacement.
  """
  work = work_params(o, params)
  norm = optax.tree.norm(grad)
  if o.clip_norm:
    scale = jnp.minimum(1.0, o.clip_norm / (norm + 1e-12))
    grad = jax.tree.map(lambda g: (scale * g).astype(g.dtype), grad)
  point = jax.tree.map(jnp.add, work, state.delta)
  updates, inner_state = inner_rule(o, work).update(
    grad, state.inner_state, point
  )
  rate = o.learning_rate
  if callable(rate):
    rate = rate(state.count, state.inner_count)
  delta = jax.tree.map(
    lambda d, u: (d + rate * u).astype(d.dtype), state.delta, updates
  )
  info = state.info._replace(
    loss=value.astype(jnp.float32),
    grad_norm=norm.astype(jnp.float32),
    damping=current_damping(o, state),
    depth=state.info.depth + 1,
  )
  return state._replace(
    inner_count=state.inner_count + 1,
    delta=delta,
    inner_state=inner_state,
    info=info,
  )


def finish(
  o: OuterOptions, state: GNState, params: Any, alpha: jax.Array
) -> tuple[Any, GNState]:
  """Moves by alpha times the displacement, and keeps the rest of it.

  A displacement that is not finite is dropped together with its inner state. If
  alpha is 0, nothing moves.
  """
  work = work_params(o, params)
  healthy = jnp.asarray(True)
  for leaf in jax.tree.leaves(state.delta):
    healthy &= jnp.all(jnp.isfinite(leaf))
  alpha = jnp.where(healthy & jnp.isfinite(alpha), alpha, 0.0)
  alpha = alpha.astype(jnp.float32)
  updates = jax.tree.map(
    lambda p, d: jnp.where(alpha > 0, alpha * d, 0).astype(p.dtype),
    params,
    state.delta,
  )

  # Kept, the iterate stays where it is: theta_t + d = theta_{t+1} + (1 - a) d.
  def remainder(d):
    kept = 1 - alpha.astype(d.dtype)
    left = jnp.where(jnp.asarray(o.warm_start) == 1, kept, o.warm_start)
    return jnp.where(healthy, left * d, 0).astype(d.dtype)

  delta = jax.tree.map(remainder, state.delta)
  # A branch, not a selection: the states are large.
  inner_state = jax.lax.cond(
    healthy & jnp.logical_not(o.reset_inner_state),
    lambda kept: kept,
    lambda _: inner_rule(o, work).init(work),
    state.inner_state,
  )
  rejected = state.info.rejected + (alpha == 0).astype(jnp.int32)
  count: Any = optax.safe_increment(state.count)
  state = state._replace(
    count=count,
    inner_count=jnp.zeros_like(state.inner_count),
    delta=delta,
    inner_state=inner_state,
    alpha=alpha,
    damping=damping_rules.at(o.damping, count, state.damping),
    info=state.info._replace(rejected=rejected),
  )
  return updates, state
