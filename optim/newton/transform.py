"""The Gauss-Newton family as an optax transform.

Differs from the authors' code:

- The state carries the displacement instead of the iterate.
- The line search uses a quarter of the data, and rejects losses that are not
  finite.
- Learning rates are functions of (outer, inner) step. No reset restarts them.
- Damping pulls towards the parameters in all modes.
- Clipping is over all groups.
- Groups are told apart by whole path components.
- An outer step is one compiled function.
"""

from typing import Any

import jax
import optax

from ..common.options import takes
from . import solver
from .cg import CG
from .options import SolverOptions


@takes(SolverOptions)
def gauss_newton(o: SolverOptions) -> optax.GradientTransformationExtraArgs:
  r"""Minimises a local model of the loss on N batches, then does a line search.

  With theta_t the parameters, d the displacement and B_1, ..., B_N fresh
  batches, an update is

      for i = 1..N:   d <- d + rate(t, i) inner(grad q_i(d) + damping d)
      alpha = argmin_a  mean loss(theta_t + a d)    on further batches
      theta_{t+1} = theta_t + alpha d,      d <- (1 - alpha) d

  where q_i is the local model on B_i at theta_t. `mode` says which model; see
  `local_value_and_grad`. The gradient of q_i is an unbiased estimate of the
  gradient of the model of all data. The learning rate must fall within the
  outer step, so that the noise averages out (`inner_schedule`).

  `update(updates, state, params, *, batches, ls_batches)` ignores `updates`,
  which may be None. `batches` is a tree with N batches along a leading axis,
  and `ls_batches` is a tree with the batches of the line search along a leading
  axis. On a mesh, spread the second axis over devices, never the first. Batches
  must be fresh. The batches of the line search must not be among the batches of
  the solve.

  Returns:
    A transform whose updates are alpha d, like params, and whose state is a
    `GNState`.

  Raises:
    ValueError: For an argument out of range or for options that clash. At
      `init`, for labels that are not a partition. At `update`, for a wrong
      number of batches, or for a model without a forward-mode derivative.

  References:
    Abreu et al., "The potential of second-order optimization for LLMs: a study
    with full Gauss-Newton", 2025, https://arxiv.org/abs/2510.09378
    Martens, "Deep learning via Hessian-free optimization", 2010 (CG, damping)
  """
  solver_fns = solver.make_solver(o)
  init_fn: Any = solver_fns.init

  def update_fn(
    updates, state, params=None, *, batches=None, ls_batches=None, **extra_args
  ):
    del updates, extra_args
    _check_update(o, params, batches)
    if isinstance(o.solver, CG):
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
  solver.check_leading("batches", batches, o.inner_steps, "inner_steps")
