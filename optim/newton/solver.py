"""Gauss-Newton as three pure functions: init, inner step, outer step.

An outer step makes a local model of the loss at the parameters theta_t. An
inner optimiser makes a displacement d on fresh batches of this model. Then the
parameters move by alpha d, with alpha from a line search on further batches.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common.options import takes
from ..common.tree import dot, like
from ..curvature import groups, local_model
from ..curvature.losses import safe
from ..curvature.products import add_damping
from . import cg
from . import damping as damping_rules
from . import line_search as searches
from . import state as state_of
from .line_search import LineSearch
from .options import SolverOptions
from .state import GNInfo, GNState


class GaussNewton(NamedTuple):
  """Pure functions, to be jitted by the caller.

  Attributes:
    init: params -> GNState.
    inner: (state, params, batch) -> (state, GNInfo): one batch of the inner
      loop. With `CG`, `batch` is all batches along a leading axis. params stay
      theta_t.
    outer: (state, params, ls_batches=None, ls_losses=None) -> (updates, state,
      GNInfo): the line search. `ls_batches` are batches along a leading axis;
      `ls_losses` are the losses at the candidates, if they are known.
  """

  init: Callable[[Any], GNState]
  inner: Callable[[GNState, Any, Any], tuple[GNState, GNInfo]]
  outer: Callable[..., tuple[Any, GNState, GNInfo]]


@takes(SolverOptions)
def gauss_newton_solver(o: SolverOptions) -> GaussNewton:
  """Makes the parts of `gauss_newton`, for the user's own loop.

  Returns:
    Three pure functions, see `GaussNewton`.

  Raises:
    ValueError: As for `gauss_newton`.
  """
  return make_solver(o)


def make_solver(o: SolverOptions) -> GaussNewton:
  """Makes the solver from checked options."""
  init = functools.partial(state_of.init, o)
  step = _inner if o.solver == "first_order" else _conjugate
  return GaussNewton(
    init,
    _with_precision(o, functools.partial(step, o)),
    _with_precision(o, functools.partial(_outer, o)),
  )


def _with_precision(o, function):
  """Traces a function under the chosen precision of matrix products."""

  @functools.wraps(function)
  def traced(*args, **kwargs):
    if o.matmul_precision is None:
      return function(*args, **kwargs)
    with jax.default_matmul_precision(o.matmul_precision):
      return function(*args, **kwargs)

  return traced


def _inner(o, state, params, batch):
  """Makes `steps_per_batch` inner updates on one batch."""
  state = state_of.begin(state)
  local = _local_model(o, params, batch)

  def update(state, _):
    value, grad, weight = local(state.delta)
    if not damping_rules.is_zero(o.damping):
      value, grad = add_damping(
        value, grad, state.delta, state_of.current_damping(o, state)
      )
    grad = like(grad, state.delta)
    return state_of.descend(o, state, params, value, grad), weight

  if o.steps_per_batch == 1:
    state, weight = update(state, None)
  else:
    state, weights = jax.lax.scan(update, state, None, length=o.steps_per_batch)
    weight = weights[0]
  state = state_of.count_tokens(state, weight)
  return state, state.info


def _local_model(o, params, batch):
  """delta -> (mean value, mean gradient, weight) on one batch."""

  def local(delta):
    total = searches.over_batches(
      lambda part: groups.scoped_sums(
        o.model_fn, o.loss_fn, params, delta, part, o.mode, o.scope,
        o.group_axis,
      ),
      _split(batch, o.splits),
    )  # fmt: skip
    weight = safe(total.weight)
    grad = jax.tree.map(lambda g: g / weight, total.grad)
    return total.values[0] / weight, grad, total.weight

  return local


def _split(batch, splits):
  """[splits, rows / splits, ...]: every splits-th row, so that shards stay."""
  if splits == 1:
    return jax.tree.map(lambda x: jnp.asarray(x)[None], batch)

  def cut(path, x):
    if x.shape[0] % splits:
      raise ValueError(
        f"splits={splits} does not divide the {x.shape[0]} rows of "
        f"batch{jax.tree_util.keystr(path)}."
      )
    x = x.reshape(x.shape[0] // splits, splits, *x.shape[1:])
    return jnp.moveaxis(x, 1, 0)

  return jax.tree_util.tree_map_with_path(cut, batch)


def _conjugate(o, state, params, batches):
  """Conjugate gradients on all batches of an outer step."""
  state = state_of.begin(state)
  damping = state_of.current_damping(o, state)
  some = batches
  if o.solver.curvature_batches is not None:
    some = jax.tree.map(lambda x: x[: o.solver.curvature_batches], batches)

  def mean(batches, v, rule):
    total = searches.over_batches(
      lambda b: local_model.sums(o.model_fn, o.loss_fn, params, v, b, rule),
      batches,
    )
    weight = safe(total.weight)
    grad = jax.tree.map(
      lambda g, d: (g / weight).astype(d.dtype), total.grad, state.delta
    )
    return total.values[0] / weight, grad, total.weight

  def product(v):
    _, image, _ = mean(some, v, local_model.curvature_rule)
    return jax.tree.map(lambda a, x: a + damping.astype(x.dtype) * x, image, v)

  value, grad, weight = mean(batches, None, local_model.value_rule)
  precond = o.solver.precond and o.solver.precond(params, batches)
  solution = cg.solve(product, grad, state.delta, precond, o.solver)
  info = state.info._replace(
    loss=value.astype(jnp.float32),
    grad_norm=optax.tree.norm(grad).astype(jnp.float32),
    damping=damping,
    # The gradient, the product with the start, and those of the iterations.
    depth=state.info.depth + 2 + solution.iters,
  )
  state = state._replace(
    inner_count=state.inner_count + 1, delta=solution.d, info=info
  )
  state = state_of.count_tokens(state, weight)
  return state, state.info


def _outer(o, state, params, ls_batches=None, ls_losses=None):
  """Line search, damping and the end of an outer step."""
  alphas = searches.candidates(o.search, groups.num_groups(o.scope, params))
  if o.search is None:
    alpha = jnp.ones((), jnp.float32)
  elif ls_losses is not None:
    alpha, state = _search_known(o, state, alphas, ls_losses)
  else:
    _check_search_batches(o, ls_batches)
    alpha, state = _search(o, state, params, alphas, ls_batches)
  updates, state = state_of.finish(o, state, params, alpha)
  return updates, state, state.info


def _search_known(o, state, alphas, ls_losses):
  """Line search on losses that the caller has computed."""
  ls_losses = jnp.asarray(ls_losses, jnp.float32)
  adapted = o.adapts_damping
  if adapted or not isinstance(o.search, LineSearch):
    raise ValueError(
      "ls_losses answer a LineSearch with a damping that is a number or a "
      "schedule; QuadraticLineSearch and LevenbergMarquardt need ls_batches."
    )
  if ls_losses.shape != alphas.shape:
    raise ValueError(
      f"ls_losses has shape {ls_losses.shape}; there are {len(alphas)} "
      f"candidates: {alphas.tolist()}."
    )
  info = state.info._replace(losses=ls_losses)
  return searches.choose(alphas, ls_losses), state._replace(info=info)


def _search(o, state, params, alphas, batches):
  """(alpha, state with the losses, the adapted damping and the counts)."""
  along = functools.partial(
    searches.losses_along, o.model_fn, o.loss_fn, params, state.delta
  )
  model = functools.partial(
    searches.model_sums, o.model_fn, o.loss_fn, params, state.delta, batches
  )
  damping = state_of.current_damping(o, state)
  length = dot(state.delta, state.delta)
  adapted = o.adapts_damping
  passes = 0
  values = state.info.losses
  if isinstance(o.search, LineSearch):
    values, weight = along(alphas, batches)
    alpha, passes = searches.choose(alphas, values), len(alphas)
  else:
    (_, slope, curve), weight = model(local_model.taylor_rule)
    alpha = -slope / (curve + damping * length)
    alpha = jnp.clip(alpha, 0.0, o.search.max_alpha)
    passes += 1
    if adapted:
      values, _ = along(alphas, batches)
      passes += 1
  rho, new = state.info.rho, state.damping
  if adapted:
    (before, after), _ = model(local_model.change_rule(o.mode))
    predicted = after - before + damping / 2 * length
    # The first candidate is 1: the whole displacement is what is judged.
    rho, new = damping_rules.adapt(
      o.damping, state.damping, values[0] - before, predicted
    )
    passes += 1
  weight = weight.astype(jnp.float32)
  info = state.info._replace(
    losses=values.astype(jnp.float32),
    rho=rho,
    search_tokens=weight,
    eval_tokens=weight * passes,
    depth=state.info.depth + passes,
  )
  return alpha, state._replace(info=info, damping=new)


def _check_search_batches(o, ls_batches):
  wanted = searches.num_batches(o.search, o.inner_steps)
  if ls_batches is None:
    raise ValueError(
      f"line_search={o.search} compares losses on fresh data: pass "
      f"ls_batches, {wanted} batches along a leading axis; or set "
      "line_search=None."
    )
  check_leading("ls_batches", ls_batches, wanted, "line_search.num_batches")


def check_leading(name: str, batches: Any, wanted: int, argument: str) -> None:
  """Raises unless each leaf has the wanted number of batches in front."""
  leaves = jax.tree_util.tree_leaves_with_path(batches)
  if not leaves:
    raise ValueError(
      f"{name} has no arrays; pass {wanted} batches along a leading axis."
    )
  for path, x in leaves:
    if not jnp.ndim(x) or jnp.shape(x)[0] != wanted:
      raise ValueError(
        f"{name}{jax.tree_util.keystr(path)} has shape {jnp.shape(x)}; its "
        f"leading axis must be the {wanted} batches that {argument} asks for."
      )
