"""One update, as a pure function of state and tokens.

The buffer holds up to n_max microbatches of one shape, of which the first n
count: n is data, so a batch-size ramp compiles nothing. Losses are summed over
tokens and divided by the weight of the whole batch, so microbatches of unequal
weight are averaged as one big batch would be.

The step does not know which method runs: it calls `tx.update`. A non-finite
loss or gradient leaves the state as it was and sets `halted`, so the host need
not look at each step to keep a good state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from .state import TrainState

Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, jax.Array], Any]  # (params, tokens) -> LossSums


class StepConfig(NamedTuple):
  """The numbers that a step is compiled with.

  Attributes:
    clip_norm: Bound on the global gradient norm; 0 for none.
    z_loss: Coefficient of the squared log-normaliser.
    pad_id: Targets that weigh nothing.
    details: Whether to return the norm of the update and statistics of each
      leaf as well: they read arrays that are not kept otherwise.
  """

  clip_norm: float
  z_loss: float
  pad_id: int
  details: bool = False


def make_train_step(
  loss_fn: LossFn,
  tx: optax.GradientTransformationExtraArgs,
  learning_rate: optax.Schedule,
  config: StepConfig,
  constrain_like_params: Callable[[Any], Any] = lambda tree: tree,
  seen_weights: Callable[[Any, jax.Array], Any] | None = None,
  extra_args: Callable[..., dict[str, Any]] = lambda *_: {},
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, Metrics]]:
  """Builds `train_step(state, buffer, n) -> (state, metrics)`, to be jitted.

  Args:
    loss_fn: (params, tokens [B, L + 1]) -> sums `loss`, `z_loss`, `weight`
      and `correct` over the targets.
    tx: The optimiser, its learning rate included.
    learning_rate: The same schedule, for the metrics.
    config: See `StepConfig`.
    constrain_like_params: Puts a gradient-sized tree where the parameters are.
    seen_weights: (params, step) -> the weights that the loss is of, e.g.
      rounded; differentiable, computed once an update. None: params.
    extra_args: (params, first microbatch, step) -> more arguments of
      `tx.update`.

  Returns:
    A function of the state, the buffer [n_max, B, L + 1] and the number n of
    its microbatches that count (int32, 1 <= n <= n_max; ignored if n_max = 1).
  """

  def objective(params, tokens, total_weight):
    sums = loss_fn(params, tokens)
    value = sums.loss + config.z_loss * sums.z_loss
    return value / total_weight, sums

  accumulate = _accumulator(objective, config.pad_id, constrain_like_params)

  def gradients(state, buffer, n):
    if seen_weights is None:
      return accumulate(state.params, buffer, n)
    weights, pull = jax.vjp(
      lambda params: seen_weights(params, state.step), state.params
    )
    grads, sums, total = accumulate(weights, buffer, n)
    return *pull(grads), sums, total

  def train_step(state, buffer, n):
    grads, sums, total = gradients(state, buffer, n)
    grad_norm = optax.tree.norm(grads)
    scale = jnp.float32(1)
    if config.clip_norm:
      scale = jnp.minimum(1.0, config.clip_norm / (grad_norm + 1e-12))
      grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
    loss = sums.loss / total
    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & ~state.halted

    def apply(state):
      more = extra_args(state.params, buffer[0], state.step)
      updates, opt_state = tx.update(
        grads, state.opt_state, state.params, value=loss, **more
      )
      params = optax.apply_updates(state.params, updates)
      new = TrainState(state.step + 1, params, opt_state, state.halted)
      details = {}
      if config.details:
        details["train/update_norm"] = optax.tree.norm(updates)
        details |= leaf_statistics(grads=grads, params=params, updates=updates)
      return new, details

    def keep(state):
      _, details = jax.eval_shape(apply, state)
      nan = lambda a: jnp.full(a.shape, jnp.nan, a.dtype)  # noqa: E731
      return state._replace(halted=~good), jax.tree.map(nan, details)

    # Only the branch that is taken runs, in the donated buffers.
    new, details = jax.lax.cond(good, apply, keep, state)
    metrics = {
      "train/loss": loss,
      "train/z_loss": sums.z_loss / total,
      "train/accuracy": sums.correct / total,
      "train/learning_rate": learning_rate(state.step),
      "train/grad_norm": grad_norm,
      "train/clip_fraction": (scale < 1).astype(jnp.float32),
      "train/param_norm": optax.tree.norm(new.params),
      "halted": new.halted,
      "step": new.step,
    }
    return new, metrics | details

  return train_step


def _accumulator(
  objective: Callable[..., Any],
  pad_id: int,
  constrain_like_params: Callable[[Any], Any],
) -> Callable[..., Any]:
  """Makes (params, buffer, n) -> (gradients, sums, total weight)."""
  value_and_grad = jax.grad(objective, has_aux=True)

  def add_up(params, buffer, n, total):
    def body(i, carry):
      grads, sums = value_and_grad(params, buffer[i], total)
      added = jax.tree.map(jnp.add, carry, (grads, sums))
      return constrain_like_params(added[0]), added[1]

    like = jax.eval_shape(value_and_grad, params, buffer[0], total)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    zeros = constrain_like_params(zeros[0]), zeros[1]
    return jax.lax.fori_loop(0, n, body, zeros)

  def accumulate(params, buffer, n):
    weights = jnp.sum(buffer[:, :, 1:] != pad_id, axis=(1, 2))
    counted = jnp.arange(buffer.shape[0]) < n
    total = jnp.maximum(jnp.sum(weights * counted), 1).astype(jnp.float32)
    if buffer.shape[0] == 1:
      grads, sums = value_and_grad(params, buffer[0], total)
      return constrain_like_params(grads), sums, total
    return *_reduced_once(add_up)(params, buffer, n, total), total

  return accumulate


def _reduced_once(add_up: Callable[..., Any]) -> Callable[..., Any]:
  """Makes replicas add up by themselves, and reduces their sums at the end.

  Left to the compiler, gradients are reduced over `data` in every pass.

  Args:
    add_up: (params, buffer [n, B, L + 1], n, total) -> tree of sums over rows.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.shape["data"] == 1:
    return add_up

  def alone(*args):
    return jax.lax.psum(add_up(*args), "data")

  rows, same = PartitionSpec(None, "data"), PartitionSpec()
  return jax.shard_map(
    alone,
    in_specs=(same, rows, same, same),
    out_specs=same,
    axis_names={"data"},
    check_vma=False,
  )


def leaf_statistics(**trees: Any) -> Metrics:
  """Root mean square, mean and deviation of each leaf of each tree.

  Args:
    **trees: Trees of arrays, by the name they get in the keys
      `leaf/NAME/PATH/{rms,mean,std}`.
  """
  found = {}
  for name, tree in trees.items():
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      key = (
        f"leaf/{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
      )
      leaf = leaf.astype(jnp.float32)
      mean, square = jnp.mean(leaf), jnp.mean(jnp.square(leaf))
      found[f"{key}/rms"] = jnp.sqrt(square)
      found[f"{key}/mean"] = mean
      found[f"{key}/std"] = jnp.std(leaf)
  return found
