"""The Gauss-Newton family as an optax transform.

Differs from the authors' code: the displacement is carried instead of the
iterate, the line search uses a quarter of the data and rejects losses that are
not finite, learning rates are functions of (outer, inner) step that no reset
restarts, damping has the sign it should, clipping is global, groups are told
apart by whole path components, and an outer step is one compiled function.
"""

import types
from typing import Any, Literal

import jax
import optax

from . import (
  conjugate_gradient,
  dampings,
  layerwise,
  local_model,
  outer_step,
  searches,
)
from .curvature import LossFn, ModelFn


def gauss_newton(
  model_fn: ModelFn,
  loss_fn: LossFn,
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
) -> optax.GradientTransformationExtraArgs:
  r"""Minimises a local model of the loss on N batches, then goes part of it.

  With theta_t the parameters, d the displacement and B_1, ..., B_N fresh
  batches, an update is

      for i = 1..N:   d <- d + rate(t, i) inner(grad q_i(d) + damping d)
      alpha = argmin_a  mean loss(theta_t + a d)    on further batches
      theta_{t+1} = theta_t + alpha d,      d <- (1 - alpha) d

  with q_i the local model on B_i, at theta_t: of `mode`, see
  `local_value_and_grad`. Its gradient is unbiased for the whole batch's; the
  learning rate must fall within the outer step for the noise to average out
  (`inner_schedule`).

  `update(updates, state, params, *, batches, ls_batches)` ignores `updates`
  (None will do) and takes its data as trees with N, or M, batches along a
  leading axis; spread their second axis over devices, never the first. Batches
  must be fresh, and those of the line search not among those of the solve.

  Args:
    model_fn: (params, batch) -> outputs, or a `chunked_lm_head`.
    loss_fn: (outputs, batch) -> scalar; best `softmax_cross_entropy` or
      `squared_error`, which know their curvature.
    inner_optimizer: Makes the inner updates; build it with learning rate 1,
      e.g. `optax.adamw(1.0)`. Its weight decay acts on params + d.
    inner_steps: N, batches of an update, >= 1.
    mode: "quadratic" (Gauss-Newton), "prox_linear", or "nonlinear", the
      control: the loss itself, by plain gradients.
    scope: "full", or a function of params that labels each leaf (or its tree):
      each group of leaves gets a model of its own with all others fixed, the
      diagonal blocks of G, and an inner state of its own.
    line_search: `LineSearch`, `QuadraticLineSearch` or "quadratic", or None
      for alpha = 1.
    damping: Number, function of the outer step, or `LevenbergMarquardt`; in
      units of G. Adds damping / 2 |d|^2 to the model.
    warm_start: What the next d starts from: 1 keeps the iterate, (1 - alpha)
      d; xi < 1 takes xi d, Martens' decay; 0 starts anew.
    reset_inner_state: Whether the inner state starts anew as well.
    learning_rate: Multiplies the inner updates: a number, or a function of
      (outer step, inner update), e.g. from `inner_schedule`; there are N
      times `steps_per_batch` inner updates.
    clip_norm: Bound on the norm of the inner gradient, over all groups; None
      or 0 for none.
    steps_per_batch: Inner updates on each batch.
    splits: Parts that each batch's rows are cut into to save memory; their
      gradients are added, weighted by what counts in them.
    solver: "first_order", or `CG` on all N batches at once.
    linearization: "joint", or "reuse" to linearise each batch once for its
      `steps_per_batch` updates (cheaper without rematerialisation only).
    group_axis: Mesh axis over which the groups are shared out.
    accumulate_dtype: Of d and of the inner state, None is float32; wider
      parameters widen it.
    matmul_precision: Of the products of model and loss, as of
      `jax.default_matmul_precision`; None leaves it as it is.

  Returns:
    A transform whose updates are alpha d, like params, and whose state is a
    `GNState`.

  Raises:
    ValueError: For an argument out of range or a combination without meaning;
      at `init`, for labels that are no partition; at `update`, for batches of
      the wrong number, or a model without forward-mode derivative.

  References:
    Abreu et al., "The potential of second-order optimization for LLMs: a study
    with full Gauss-Newton", 2025, https://arxiv.org/abs/2510.09378
    Martens, "Deep learning via Hessian-free optimization", 2010 (CG, damping)
  """
  o = outer_step.check(types.SimpleNamespace(**locals()))
  solver_fns = outer_step.make_solver(o)
  init_fn: Any = solver_fns.init

  def update_fn(
    updates, state, params=None, *, batches=None, ls_batches=None, **extra_args
  ):
    del updates, extra_args
    _check_update(o, params, batches)
    if isinstance(o.solver, conjugate_gradient.CG):
      state, _ = solver_fns.inner(state, params, batches)
    elif o.inner_steps == 1:
      first = jax.tree.map(lambda x: x[0], batches)
      state, _ = solver_fns.inner(state, params, first)
    else:
      state = jax.lax.scan(
        lambda s, b: (solver_fns.inner(s, params, b)[0], None), state, batches
      )[0]
    updates, state, _ = solver_fns.outer(state, params, ls_batches)
    return updates, state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_update(o, params, batches):
  if params is None:
    raise ValueError(
      "gauss_newton makes its model at the parameters, so pass them: "
      "tx.update(None, opt_state, params, batches=..., ls_batches=...)."
    )
  if batches is None:
    raise ValueError(
      f"gauss_newton takes its data itself: pass batches, {o.inner_steps} of "
      "them along a leading axis, to tx.update(None, opt_state, params, "
      "batches=..., ls_batches=...)."
    )
  outer_step.check_leading("batches", batches, o.inner_steps, "inner_steps")
