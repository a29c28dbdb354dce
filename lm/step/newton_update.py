"""Updates of Gauss-Newton: whole outer steps, or one microbatch of them.

Both have the signature of `step.make_train_step`. A displacement that is not
finite is dropped by the transform (`gn/rejected`), so the weights stay sound;
a loss that is not finite halts the run as usual.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim

from ..config.schema import Config
from ..methods import newton
from ..model.transformer import Transformer
from .state import TrainState
from .update import Metrics

Transform = Any  # `optax.GradientTransformationExtraArgs`, updates may be None.
TrainStep = Callable[
  [TrainState, jax.Array, jax.Array], tuple[TrainState, Metrics]
]


def make_outer_step(config: Config, tx: Transform) -> TrainStep:
  """Builds the update of "gauss_newton".

  `train/loss` is the loss after the update on the batches of the line search,
  or without losses from one, that of the local model at its last inner step.

  Args:
    config: Of the run.
    tx: From `gauss_newton.make`.
  """
  n = config.gauss_newton.inner_steps

  def train_step(state, buffer, count):
    del count  # All of the buffer's microbatches, always.

    def apply(state):
      searched = buffer[n:] if buffer.shape[0] > n else None
      updates, opt_state = tx.update(
        None, state.opt_state, state.params,
        batches=buffer[:n], ls_batches=searched,
      )  # fmt: skip
      info = newton.own_state(opt_state).info
      losses = jnp.where(jnp.isfinite(info.losses), info.losses, jnp.inf)
      has_losses = config.gauss_newton.line_search == "grid"
      loss = jnp.min(losses) if has_losses else info.loss
      return _finish(config, state, updates, opt_state, loss)

    return _guarded(state, apply)

  return train_step


def make_micro_step(
  config: Config,
  model: Transformer,
  tx: Transform,
) -> TrainStep:
  """Builds the update of "gauss_newton_microsteps".

  `train/loss` is that of the local model while it is solved, and of the best
  candidate on its batch in the line search.

  Args:
    config: Of the run.
    model: Its model.
    tx: From `gauss_newton.make`.
  """
  g: Any = config.gauss_newton
  model_fn = newton.model_fn(model, config)
  loss_fn = newton.loss_fn(config)
  scope = newton.scope(config)

  def solve(state, tokens):
    delta = newton.own_state(state.opt_state).delta
    loss, grads = optim.local_value_and_grad(
      model_fn, loss_fn, state.params, delta, tokens,
      mode=g.mode, scope=scope,
    )  # fmt: skip
    updates, opt_state = tx.update(
      grads, state.opt_state, state.params,
      weight=jnp.sum(tokens[:, 1:] != config.model.pad_id),
    )  # fmt: skip
    return updates, opt_state, loss

  def search(state, tokens):
    delta = newton.own_state(state.opt_state).delta
    losses, weight = optim.line_search_losses(
      model_fn, loss_fn, state.params, delta, tokens,
      newton.grid(config), scope,
    )  # fmt: skip
    updates, opt_state = tx.update(
      None, state.opt_state, state.params, ls_losses=losses, ls_weight=weight
    )
    finite = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    return updates, opt_state, jnp.min(finite)

  def train_step(state, buffer, count):
    del count

    def apply(state):
      own = newton.own_state(state.opt_state)
      if g.line_search == "none":
        made = solve(state, buffer[0])
      else:
        made = jax.lax.cond(
          optim.needs_line_search(own, g.inner_steps),
          search, solve, state, buffer[0],
        )  # fmt: skip
      updates, opt_state, loss = made
      return _finish(config, state, updates, opt_state, loss)

    return _guarded(state, apply)

  return train_step


def _guarded(
  state: TrainState, apply: Callable[[TrainState], tuple[TrainState, Metrics]]
) -> tuple[TrainState, Metrics]:
  """`apply`, unless the run has halted."""

  def keep(state):
    _, metrics = jax.eval_shape(apply, state)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), metrics)
    nan = jnp.full((), jnp.nan, jnp.float32)
    return state, zeros | {"train/loss": nan, "halted": jnp.asarray(True)}

  return jax.lax.cond(state.halted, keep, apply, state)


def _finish(
  config: Config,
  state: TrainState,
  updates: Any,
  opt_state: Any,
  loss: jax.Array,
) -> tuple[TrainState, Metrics]:
  """The state after an update, and what is logged of it."""
  params = optax.apply_updates(state.params, updates)
  good = jnp.isfinite(loss)
  new = TrainState(
    state.step + good.astype(jnp.int32), params, opt_state, ~good
  )
  own, before = map(newton.own_state, (opt_state, state.opt_state))
  solver = getattr(own, "solver", own)
  before = getattr(before, "solver", before)
  rate = newton.learning_rate(config)(before.count, before.inner_count)
  return new, {
    "train/loss": loss,
    "train/learning_rate": rate,  # Of the first inner step of this update.
    "train/grad_norm": solver.info.grad_norm,
    "train/param_norm": optax.tree.norm(params),
    "halted": new.halted,
    "step": new.step,
  }
