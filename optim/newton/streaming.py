"""Gauss-Newton one batch at a time, for loops that accumulate gradients.

    grads = local_value_and_grad(model_fn, loss_fn, params, state.delta, batch)
    updates, state = tx.update(grads, state, params)

The parameters do not move until the last call of an outer step. So any trainer
that accumulates gradients can use this form, with another gradient function.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common.options import takes
from ..common.tree import like
from ..curvature import groups
from ..curvature.losses import safe
from ..curvature.products import add_damping
from . import damping as damping_rules
from . import line_search as searches
from . import state as state_of
from .options import OuterOptions
from .state import GNInfo, GNState


class MicrostepsState(NamedTuple):
  """State of `gauss_newton_microsteps`."""

  step: jax.Array  # int32 []: calls of this outer step that counted.
  losses: jax.Array  # float32 [num]: sums over the batches searched so far.
  weight: jax.Array  # float32 []: weight of these batches.
  ignored: jax.Array  # int32 []: calls so far of the wrong kind.
  solver: GNState  # As in `gauss_newton`.

  @property
  def delta(self) -> Any:
    """The displacement at which the next gradient is wanted."""
    return self.solver.delta

  @property
  def info(self) -> GNInfo:
    """Facts of the last outer step, or of the one under way."""
    return self.solver.info


@takes(OuterOptions)
def gauss_newton_microsteps(
  o: OuterOptions,
) -> optax.GradientTransformationExtraArgs:
  """`gauss_newton` that gets one batch at each call, from the caller.

  An outer step has two kinds of calls. The first N = `inner_steps` calls are
  `update(grads, state, params)`. grads is the gradient of the local model at
  `state.delta`, without damping, from `local_value_and_grad` with the same
  scope. The call returns zeros. `weight=` gives the tokens of the batch to the
  counts of `state.info`.

  The next M = `line_search.num_batches` calls are `update(None, state, params,
  ls_losses=..., ls_weight=...)`, with the result of `line_search_losses`.
  `needs_line_search(state, N)` is true for these calls. The last call returns
  alpha times the displacement. Two compiled functions are enough for any N, M.

  Pass `scope` to `local_value_and_grad` and to `line_search_losses` as well.
  `line_search` is a `LineSearch` or None. With None, the N-th call returns d.
  `damping` is a number or a function of the outer step. The transform adds the
  damping itself.

  A call of the wrong kind changes nothing and is counted in `state.ignored`.

  Returns:
    A transform whose state is a `MicrostepsState`; see `has_updated`.

  Raises:
    ValueError: As for `gauss_newton`.
  """
  _check_arguments(o)
  num_searches = searches.num_batches(o.search, o.inner_steps)

  def init_fn(params):
    solver = state_of.init(o, params)
    zeros = jnp.zeros_like(solver.info.losses)
    return MicrostepsState(
      jnp.zeros((), jnp.int32), zeros, jnp.zeros((), jnp.float32),
      jnp.zeros((), jnp.int32), solver,
    )  # fmt: skip

  def update_fn(
    updates,
    state,
    params=None,
    *,
    weight=1.0,
    ls_losses=None,
    ls_weight=1.0,
    **extra_args,
  ):
    del extra_args
    _check_call(updates, params, ls_losses)
    nothing = optax.tree.zeros_like(params)

    def advance(state):
      if ls_losses is None:
        new = _solve(o, state, params, updates, weight)
        if num_searches:  # No step ends here.
          return nothing, new._replace(step=state.step + 1)
      else:
        new = _search(state, ls_losses, ls_weight)
      new = new._replace(step=state.step + 1)
      return jax.lax.cond(
        new.step == o.inner_steps + num_searches,
        lambda new: _end(o, new, params),
        lambda new: (nothing, new),
        new,
      )

    def ignore(state):
      return nothing, state._replace(ignored=state.ignored + 1)

    # Branches, not selections: the states are large.
    searching = needs_line_search(state, o.inner_steps)
    right_kind = searching if ls_losses is not None else ~searching
    return jax.lax.cond(right_kind, advance, ignore, state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def has_updated(state: MicrostepsState) -> jax.Array:
  """Whether the last call ended an outer step; bool [].

  Args:
    state: State of `gauss_newton_microsteps`.
  """
  return (state.step == 0) & (state.solver.count > 0)


def needs_line_search(state: MicrostepsState, inner_steps: int) -> jax.Array:
  """Whether the next call needs `ls_losses`; bool [].

  Args:
    state: State of `gauss_newton_microsteps`.
    inner_steps: The same as the transform's.
  """
  return state.step >= inner_steps


def _check_arguments(o):
  if isinstance(o.search, searches.QuadraticLineSearch) or isinstance(
    o.damping, damping_rules.LevenbergMarquardt
  ):
    raise ValueError(
      "gauss_newton_microsteps sees losses at the candidates only, which "
      "QuadraticLineSearch and LevenbergMarquardt cannot use; take "
      "optim.LineSearch() or None, and a number or a schedule for damping."
    )


def _check_call(updates, params, ls_losses):
  if params is None:
    raise ValueError(
      "gauss_newton_microsteps displaces the parameters, so pass them: "
      "tx.update(grads, opt_state, params)."
    )
  if ls_losses is None and updates is None:
    raise ValueError(
      "gauss_newton_microsteps got neither gradients nor ls_losses: call "
      "tx.update(grads, state, params) while needs_line_search(state) is "
      "false, and with ls_losses when it is true."
    )


def _solve(o, state, params, grads, weight):
  """Makes one inner update."""
  solver = state_of.begin(state.solver)
  grads = like(grads, solver.delta)
  if not damping_rules.is_zero(o.damping):
    damping = state_of.current_damping(o, solver)
    _, grads = add_damping(jnp.zeros(()), grads, solver.delta, damping)
    grads = like(grads, solver.delta)
  # The caller has the value of the model, we have not.
  nothing = jnp.full((), jnp.nan)
  solver = state_of.descend(o, solver, params, nothing, grads)
  return state._replace(solver=state_of.count_tokens(solver, weight))


def _search(state, ls_losses, ls_weight):
  """Adds the losses of one batch."""
  ls_losses = jnp.asarray(ls_losses, jnp.float32)
  if ls_losses.shape != state.losses.shape:
    raise ValueError(
      f"ls_losses has shape {ls_losses.shape}; there are "
      f"{state.losses.shape[0]} candidates: see optim.line_search_losses."
    )
  weight = jnp.asarray(ls_weight, jnp.float32)
  info = state.solver.info
  passes = len(ls_losses)
  info = info._replace(
    search_tokens=info.search_tokens + weight,
    eval_tokens=info.eval_tokens + passes * weight,
    depth=info.depth + passes,
  )
  return state._replace(
    losses=state.losses + weight * ls_losses,
    weight=state.weight + weight,
    solver=state.solver._replace(info=info),
  )


def _end(o, state, params):
  """(updates, state at the start of the next outer step)."""
  solver = state.solver
  alpha = jnp.ones((), jnp.float32)
  if o.search is not None:
    alphas = searches.candidates(o.search, groups.num_groups(o.scope, params))
    values = state.losses / safe(state.weight)
    alpha = searches.choose(alphas, values)
    solver = solver._replace(info=solver.info._replace(losses=values))
  updates, solver = state_of.finish(o, solver, params, alpha)
  return updates, state._replace(
    step=jnp.zeros_like(state.step),
    losses=jnp.zeros_like(state.losses),
    weight=jnp.zeros_like(state.weight),
    solver=solver,
  )
