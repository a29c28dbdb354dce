"""Updates of Gauss-Newton: whole outer steps, or one microbatch of them.

Both updates have the signature of `update.make_train_step`. The transform drops
a displacement that is not finite (`gn/rejected`), so the weights stay finite. A
loss that is not finite halts the run as usual.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optim

from ..config.schema import Config
from ..methods import newton
from ..objectives import table as objectives
from ..weights import table as weights
from .parts import Parts
from .state import TrainState
from .update import Context, Metrics, Probing

TrainStep = Callable[
  [TrainState, objectives.Batch, jax.Array], tuple[TrainState, Metrics]
]


def make_outer_step(parts: Parts, probing: Probing) -> TrainStep:
  """Builds the update of "gauss_newton"; see `Method.make_update`.

  `train/loss` is the loss after the update on the batches of the line search.
  If the line search computes no losses, `train/loss` is the local model's at
  its last inner step.
  """
  config, n = parts.config, parts.config.gauss_newton.inner_steps

  def train_step(state, buffer, count):
    def apply(state):
      tx: Any = parts.make_tx(_seen(parts, state))
      solved = jax.tree.map(lambda x: x[:n], buffer)
      searched = None
      if buffer.tokens.shape[0] > n:
        searched = jax.tree.map(lambda x: x[n:], buffer)
      # All of the buffer's microbatches, always.
      updates, opt_state = tx.update(
        None, state.opt_state, state.params,
        batches=solved, ls_batches=searched,
      )  # fmt: skip
      info = newton.own_state(opt_state).info
      losses = jnp.where(jnp.isfinite(info.losses), info.losses, jnp.inf)
      has_losses = config.gauss_newton.line_search == "grid"
      loss = jnp.min(losses) if has_losses else info.loss
      new, metrics = _finish(config, state, updates, opt_state, loss)
      shown = Context(new, buffer, count, updates=updates)
      return new, metrics | probing.measure(shown)

    return _guarded(state, apply)

  return train_step


def make_micro_step(parts: Parts, probing: Probing) -> TrainStep:
  """Builds the update of "gauss_newton_microsteps"; see `Method.make_update`.

  `train/loss` is the local model's while it is solved. In the line search it is
  the loss of the best candidate on its batch.
  """
  config = parts.config
  tx: Any = parts.tx
  g: Any = config.gauss_newton
  objective = objectives.chosen(config)
  loss_fn = newton.loss_fn(config)
  scope = newton.scope(config)

  def at(state):
    """Model, loss, point and displacement."""
    model_fn = newton.model_fn(parts.model, config, _seen(parts, state))
    delta = newton.own_state(state.opt_state).delta
    return model_fn, loss_fn, state.params, delta

  def solve(state, rows):
    loss, grads = optim.local_value_and_grad(
      *at(state), rows, mode=g.mode, scope=scope
    )
    updates, opt_state = tx.update(
      grads, state.opt_state, state.params,
      weight=jnp.sum(objective.count(config.model, rows.tokens)),
    )  # fmt: skip
    return updates, opt_state, loss

  def search(state, rows):
    losses, weight = optim.line_search_losses(
      *at(state), rows, newton.grid(config), scope
    )
    updates, opt_state = tx.update(
      None, state.opt_state, state.params, ls_losses=losses, ls_weight=weight
    )
    finite = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    return updates, opt_state, jnp.min(finite)

  def train_step(state, buffer, count):
    def apply(state):
      rows = jax.tree.map(lambda x: x[0], buffer)
      own = newton.own_state(state.opt_state)
      if g.line_search == "none":
        made = solve(state, rows)
      else:
        made = jax.lax.cond(
          optim.needs_line_search(own, g.inner_steps),
          search, solve, state, rows,
        )  # fmt: skip
      updates, opt_state, loss = made
      new, metrics = _finish(config, state, updates, opt_state, loss)
      shown = Context(new, buffer, count, updates=updates)
      return new, metrics | probing.measure(shown)

    return _guarded(state, apply)

  return train_step


def _seen(parts: Parts, state: TrainState) -> Callable[[Any], Any] | None:
  """params -> the weights of an update; None where the head can be cut."""
  if weights.name(parts.config) == "identity":
    return None
  return lambda params: parts.seen(params, state, weights.TRAIN)


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
  new = state._replace(
    step=state.step + good.astype(jnp.int32),
    params=params,
    opt_state=opt_state,
    halted=~good,
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
