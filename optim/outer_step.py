"""Gauss-Newton as three pure functions: init, inner step, outer step.

An outer step makes a local model of the loss at the parameters theta_t, and a
displacement d by an inner optimiser on fresh batches of that model; then it
goes alpha d, with alpha from a line search on further batches.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import (
  arguments,
  conjugate_gradient,
  curvature,
  dampings,
  gauss_newton_state,
  layerwise,
  local_model,
  losses,
  searches,
)
from .gauss_newton_state import GNInfo, GNState
from .searches import LineSearch


class GaussNewton(NamedTuple):
  """Pure functions, to be jitted by whoever drives the loop.

  Attributes:
    init: params -> GNState.
    inner: (state, params, batch) -> (state, GNInfo), one batch of the inner
      loop; with `CG`, all batches along a leading axis. params stay theta_t.
    outer: (state, params, ls_batches=None, ls_losses=None) -> (updates, state,
      GNInfo): line search, on batches along a leading axis or on the losses at
      the candidates, if they are known.
  """

  init: Callable[[Any], GNState]
  inner: Callable[[GNState, Any, Any], tuple[GNState, GNInfo]]
  outer: Callable[..., tuple[Any, GNState, GNInfo]]


def gauss_newton_solver(  # noqa: D417
  model_fn: Callable[[Any, Any], Any],
  loss_fn: Callable[[Any, Any], jax.Array],
  inner_optimizer: optax.GradientTransformation,
  *,
  inner_steps: int,
  mode: local_model.Mode = "quadratic",
  scope: layerwise.Scope = "full",
  line_search: searches.AnyLineSearch | Literal["quadratic"] = searches.DEFAULT,
  damping: dampings.Damping = 0.0,
  warm_start: float = 1.0,
  reset_inner_state: bool = False,
  learning_rate: Any = 1.0,
  clip_norm: float | None = None,
  steps_per_batch: int = 1,
  splits: int = 1,
  solver: Literal["first_order"] | conjugate_gradient.CG = "first_order",
  linearization: Literal["joint", "reuse"] = "joint",
  group_axis: str | None = None,
  accumulate_dtype: Any | None = None,
  matmul_precision: str | None = None,
) -> GaussNewton:
  """The parts of `gauss_newton`, for loops of one's own.

  Args:
    model_fn: As for `gauss_newton`, like all other arguments.

  Returns:
    See `GaussNewton`.

  Raises:
    ValueError: As `gauss_newton`.
  """
  options = types.SimpleNamespace(**locals())
  return make_solver(check(options))


def make_solver(o: types.SimpleNamespace) -> GaussNewton:
  """The solver of checked options."""
  init = functools.partial(gauss_newton_state.init, o)
  step = _inner if o.solver == "first_order" else _conjugate
  return GaussNewton(
    init,
    _with_precision(o, functools.partial(step, o)),
    _with_precision(o, functools.partial(_outer, o)),
  )


def check(o: types.SimpleNamespace) -> types.SimpleNamespace:
  """Raises for any argument out of range; resolves the line search."""
  gauss_newton_state.check_shared(o)
  arguments.check_choice("mode", o.mode, local_model.MODES)
  arguments.check_choice("linearization", o.linearization, ("joint", "reuse"))
  arguments.check_count("steps_per_batch", o.steps_per_batch)
  arguments.check_count("splits", o.splits)
  o.line_search = searches.check(o.line_search)
  adapted = isinstance(o.damping, dampings.LevenbergMarquardt)
  clashes = []
  if isinstance(o.solver, conjugate_gradient.CG):
    conjugate_gradient.check(o.solver, o.damping, o.inner_steps)
    clashes += [
      (o.mode != "quadratic", f"mode={o.mode!r}", "mode='quadratic'"),
      (o.scope != "full", "a layerwise scope", "scope='full'"),
      (o.steps_per_batch > 1, "steps_per_batch > 1", "steps_per_batch=1"),
      (o.splits > 1, "splits > 1", "more and smaller batches"),
      (o.linearization != "joint", "'reuse'", "linearization='joint'"),
    ]
    clashes = [(bad, f"solver=CG with {a}", b) for bad, a, b in clashes]
  else:
    arguments.check_choice("solver", o.solver, ("first_order",))
  reuse = o.linearization == "reuse"
  clashes += [
    (
      adapted and o.mode == "nonlinear",
      "LevenbergMarquardt with mode='nonlinear', which is its own model,",
      "a number",
    ),
    (
      adapted and o.line_search is None,
      "LevenbergMarquardt without a line search, whose data it needs,",
      "line_search=LineSearch()",
    ),
    (
      reuse and (o.mode == "nonlinear" or o.scope != "full" or o.splits > 1),
      "linearization='reuse' with mode='nonlinear', a layerwise scope or "
      "splits > 1",
      "linearization='joint'",
    ),
    (
      o.group_axis is not None and o.scope == "full",
      f"group_axis={o.group_axis!r} with scope='full', which has no groups,",
      "group_axis=None",
    ),
  ]
  for bad, what, way_out in clashes:
    if bad:
      raise ValueError(f"{what} does not go together; take {way_out}.")
  return o


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
  """Inner updates on one batch: `steps_per_batch` of them."""
  state = gauss_newton_state.begin(state)
  local = _local_model(o, params, batch)

  def update(state, _):
    value, grad, weight = local(state.delta)
    if not dampings.is_zero(o.damping):
      value, grad = curvature.add_damping(
        value, grad, state.delta, gauss_newton_state.current_damping(o, state)
      )
    grad = jax.tree.map(lambda g, d: g.astype(d.dtype), grad, state.delta)
    return gauss_newton_state.descend(o, state, params, value, grad), weight

  if o.steps_per_batch == 1:
    state, weight = update(state, None)
  else:
    state, weights = jax.lax.scan(update, state, None, length=o.steps_per_batch)
    weight = weights[0]
  return _count_solve_tokens(state, weight)


def _count_solve_tokens(state, weight):
  tokens = state.info.solve_tokens + weight.astype(jnp.float32)
  state = state._replace(info=state.info._replace(solve_tokens=tokens))
  return state, state.info


def _local_model(o, params, batch):
  """delta -> (mean value, mean gradient, weight) on one batch."""
  if o.linearization == "reuse":
    _, _, _, linear = curvature.linear_sums(
      o.model_fn, o.loss_fn, params, batch
    )

  def sums(delta, batch):
    if o.linearization == "reuse":
      return linear(delta, local_model.RULES[o.mode])
    return layerwise.scoped_sums(
      o.model_fn,
      o.loss_fn,
      params,
      delta,
      batch,
      o.mode,
      o.scope,
      o.group_axis,
    )

  def local(delta):
    parts = _split(batch, o.splits)
    total = searches.over_batches(lambda part: sums(delta, part), parts)
    weight = losses.safe(total.weight)
    grad = jax.tree.map(lambda g: g / weight, total.grad)
    return total.values[0] / weight, grad, total.weight

  return local


def _split(batch, splits):
  """[splits, rows / splits, ...]: every splits-th row, so shards stay put."""
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
  state = gauss_newton_state.begin(state)
  damping = gauss_newton_state.current_damping(o, state)
  some = batches
  if o.solver.curvature_batches is not None:
    some = jax.tree.map(lambda x: x[: o.solver.curvature_batches], batches)

  def mean(batches, v, rule):
    total = searches.over_batches(
      lambda b: local_model.sums(o.model_fn, o.loss_fn, params, v, b, rule),
      batches,
    )
    weight = losses.safe(total.weight)
    grad = jax.tree.map(
      lambda g, d: (g / weight).astype(d.dtype), total.grad, state.delta
    )
    return total.values[0] / weight, grad, total.weight

  def product(v):
    _, image, _ = mean(some, v, local_model.curvature_rule)
    return jax.tree.map(lambda a, x: a + damping.astype(x.dtype) * x, image, v)

  value, grad, weight = mean(batches, None, local_model.value_rule)
  precond = o.solver.precond and o.solver.precond(params, batches)
  solution = conjugate_gradient.solve(
    product, grad, state.delta, precond, o.solver
  )
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
  return _count_solve_tokens(state, weight)


def _outer(o, state, params, ls_batches=None, ls_losses=None):
  """Line search, damping and the end of an outer step."""
  alphas = searches.candidates(
    o.line_search, layerwise.num_groups(o.scope, params)
  )
  if o.line_search is None:
    alpha = jnp.ones((), jnp.float32)
  elif ls_losses is not None:
    alpha, state = _search_known(o, state, alphas, ls_losses)
  else:
    _check_search_batches(o, ls_batches)
    alpha, state = _search(o, state, params, alphas, ls_batches)
  updates, state = gauss_newton_state.finish(o, state, params, alpha)
  return updates, state, state.info


def _search_known(o, state, alphas, ls_losses):
  """Line search on losses that somebody else computed."""
  ls_losses = jnp.asarray(ls_losses, jnp.float32)
  adapted = isinstance(o.damping, dampings.LevenbergMarquardt)
  if adapted or not isinstance(o.line_search, LineSearch):
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
  damping = gauss_newton_state.current_damping(o, state)
  length = local_model.dot(state.delta, state.delta)
  adapted = isinstance(o.damping, dampings.LevenbergMarquardt)
  passes = 0
  values = state.info.losses
  if isinstance(o.line_search, LineSearch):
    values, weight = along(alphas, batches)
    alpha, passes = searches.choose(alphas, values), len(alphas)
  else:
    (_, slope, curve), weight = model(local_model.taylor_rule)
    alpha = -slope / (curve + damping * length)
    alpha = jnp.clip(alpha, 0.0, o.line_search.max_alpha)
    passes += 1
    if adapted:
      values, _ = along(alphas, batches)
      passes += 1
  rho, new = state.info.rho, state.damping
  if adapted:
    (before, after), _ = model(local_model.change_rule(o.mode))
    predicted = after - before + damping / 2 * length
    # The first candidate is 1: the whole displacement is what is judged.
    rho, new = dampings.adapt(
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
  wanted = searches.num_batches(o.line_search, o.inner_steps)
  if ls_batches is None:
    raise ValueError(
      f"line_search={o.line_search} compares losses on fresh data: pass "
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
