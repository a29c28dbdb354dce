"""One update, as a pure function of state and rows.

The buffer holds up to n_max microbatches of one shape, of which the first n
count. n is data, so a batch that grows compiles nothing. Losses are summed over
tokens and divided by the count of the whole batch, so microbatches of unequal
weight are averaged like one big batch.

The step calls `tx.update` and does not know which method runs. A non-finite
loss or gradient leaves the state as it was and sets `halted`. So the state
stays good although the host looks at few updates only.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from ..objectives.sums import aux_losses
from ..objectives.view import Batch
from .state import TrainState

Metrics = dict[str, jax.Array]


class Loss(NamedTuple):
  """What is minimised: `sums` over `count`.

  Attributes:
    sums: (weights, Batch [B]) -> sums `loss`, `z_loss`, `weight` and `correct`
      over the targets, and `aux` over the tokens.
    count: tokens [B, L + 1] -> [B], what each row adds to the denominator.
    z_coefficient: Of `z_loss`, the squared log-normaliser.
    by_update: Whether rows are told the number of the update.
  """

  sums: Callable[[Any, Batch], Any]
  count: Callable[[jax.Array], jax.Array]
  z_coefficient: float = 0.0
  by_update: bool = False


class Context(NamedTuple):
  """What an update shows to a probe; None for what is not there.

  Attributes:
    state: After the update.
    rows: `Batch` [n_max, B] of the update; the first `count` of n_max count.
    count: n.
    grads: Of the trained leaves, clipped, as the optimiser got them.
    updates: What was added to the parameters.
    micro_grad_sq: Mean over the microbatches of the squared norm of a
      microbatch's own mean gradient, not clipped.
    parts: `Parts` of the run, for probes that run the model.
  """

  state: Any = None
  rows: Any = None
  count: Any = None
  grads: Any = None
  updates: Any = None
  micro_grad_sq: Any = None
  parts: Any = None


class Probing(NamedTuple):
  """Metrics that a step computes besides.

  Attributes:
    needs: Names of what `measure` reads. Only "micro", for `micro_grad_sq`,
      makes the update do more.
    measure: Context -> scalars by key.
  """

  needs: Collection[str] = ()
  measure: Callable[[Context], Metrics] = lambda context: {}


def make_train_step(
  loss: Loss,
  tx: optax.GradientTransformationExtraArgs,
  learning_rate: optax.Schedule,
  clip_norm: float = 0.0,
  constrain_like_weights: Callable[[Any], Any] = lambda tree: tree,
  seen_weights: Callable[[Any, TrainState], Any] = lambda params, state: params,
  extra_args: Callable[..., dict[str, Any]] = lambda *_: {},
  probing: Probing = Probing(),  # noqa: B008
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
  """Builds `train_step(state, buffer, n) -> (state, metrics)`, to be jitted.

  Args:
    loss: See `Loss`.
    tx: The optimiser, its learning rate included.
    learning_rate: The same schedule, for the metrics.
    clip_norm: Bound on the global gradient norm; 0 for none.
    constrain_like_weights: Puts a tree like the seen weights where they are.
    seen_weights: (params, state) -> the weights that the loss is of, e.g.
      rounded; differentiable in params, computed once an update.
    extra_args: (params, first microbatch, step) -> more arguments of
      `tx.update`.
    probing: What to measure besides.

  Returns:
    A function of the state, the buffer (a `Batch` [n_max, B]) and the number n
    of its microbatches that count (int32, 1 <= n <= n_max; ignored if n_max is
    1).
  """

  def objective(weights, rows, total):
    sums = loss.sums(weights, rows)
    value = sums.loss + loss.z_coefficient * sums.z_loss
    return sum(aux_losses(sums.aux), value) / total, sums

  def see(state):
    return jax.vjp(lambda p: seen_weights(p, state), state.params)

  accumulate = _accumulator(
    objective,
    loss.count,
    constrain_like_weights,
    see if "micro" in probing.needs else None,
    loss.by_update,
  )

  def train_step(state, buffer, n):
    weights, pull = see(state)
    grads, sums, total, micro = accumulate(weights, buffer, n, state)
    (grads,) = pull(grads)
    grad_norm = optax.tree.norm(grads)
    scale = jnp.float32(1)
    if clip_norm:
      scale = jnp.minimum(1.0, clip_norm / (grad_norm + 1e-12))
      grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
    value = sums.loss / total
    good = jnp.isfinite(value) & jnp.isfinite(grad_norm) & ~state.halted

    def apply(state):
      first = jax.tree.map(lambda x: x[0], buffer)
      more = extra_args(state.params, first, state.step)
      updates, opt_state = tx.update(
        grads, state.opt_state, state.params, value=value, **more
      )
      params = optax.apply_updates(state.params, updates)
      new = state._replace(
        step=state.step + 1, params=params, opt_state=opt_state
      )
      shown = Context(new, buffer, n, grads, updates, micro)
      return new, probing.measure(shown)

    def keep(state):
      _, probed = jax.eval_shape(apply, state)
      zero = lambda a: jnp.zeros(a.shape, a.dtype)  # noqa: E731
      return state._replace(halted=~good), jax.tree.map(zero, probed)

    # Only the branch that is taken runs, in the donated buffers.
    new, probed = jax.lax.cond(good, apply, keep, state)
    metrics = {
      "train/loss": value,
      "train/z_loss": sums.z_loss / total,
      "train/accuracy": sums.correct / total,
      "train/learning_rate": learning_rate(state.step),
      "train/grad_norm": grad_norm,
      "train/clip_fraction": (scale < 1).astype(jnp.float32),
      "train/param_norm": optax.tree.norm(new.params),
      "halted": new.halted,
      "step": new.step,
    }
    metrics |= _reported(sums.aux, total)
    return new, metrics | probed

  return train_step


def _reported(aux: dict[str, jax.Array], total: jax.Array) -> Metrics:
  """What the layers report, divided by the number of targets."""
  found = {}
  for key, sums in aux.items():
    if sums.ndim:
      found |= {f"train/{key}/{i}": x / total for i, x in enumerate(sums)}
    else:
      found[f"train/{key}"] = sums / total
  return found


def _accumulator(
  objective: Callable[..., Any],
  count_fn: Callable[[jax.Array], jax.Array],
  constrain_like_weights: Callable[[Any], Any],
  see: Callable[[TrainState], Any] | None,
  by_update: bool,
) -> Callable[..., Any]:
  """Makes (weights, buffer, n, state) -> (gradients, sums, total, micro).

  The last is `Context.micro_grad_sq`, or None without `see`: the function from
  a state to its weights, and to what pulls gradients back to what is trained.
  """
  value_and_grad = jax.grad(objective, has_aux=True)

  def square(grads, rows, total, pull, reduce):
    """|g|^2 of the mean gradient of a microbatch, and whether it has any."""
    own = reduce(jnp.sum(count_fn(rows.tokens))).astype(jnp.float32)
    (grads,) = pull(jax.tree.map(reduce, grads))
    norm = optax.tree.norm(grads, squared=True)
    scale = total / jnp.maximum(own, 1)
    return jnp.stack([norm * scale**2, (own > 0).astype(jnp.float32)])

  def add_up(weights, buffer, n, total, state, step, reduce=lambda x: x):
    pull = see(state)[1] if see else None  # Within `shard_map`, anew.

    def one(i):
      rows = jax.tree.map(lambda x: x[i], buffer)._replace(update=step)
      return rows, value_and_grad(weights, rows, total)

    def body(i, carry):
      rows, found = one(i)
      grads, sums = jax.tree.map(jnp.add, carry[0], found)
      squares = carry[1]
      if see:
        squares += square(found[0], rows, total, pull, reduce)
      return (constrain_like_weights(grads), sums), squares

    like = jax.eval_shape(one, 0)[1]
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    zeros = constrain_like_weights(zeros[0]), zeros[1]
    squares = jnp.zeros(2) if see else ()
    return jax.lax.fori_loop(0, n, body, (zeros, squares))

  def accumulate(weights, buffer, n, state):
    # Without probes of microbatches nothing is passed that is not used.
    shown: Any = state._replace(opt_state=()) if see else ()
    counts = jnp.sum(jax.vmap(count_fn)(buffer.tokens), axis=1)
    counted = jnp.arange(len(counts)) < n
    total = jnp.maximum(jnp.sum(counts * counted), 1).astype(jnp.float32)
    step = state.step if by_update else None
    if len(counts) == 1:
      rows = jax.tree.map(lambda x: x[0], buffer)._replace(update=step)
      grads, sums = value_and_grad(weights, rows, total)
      squares = ()
      if see:
        squares = square(grads, rows, total, see(shown)[1], lambda x: x)
      found = constrain_like_weights(grads), sums
    else:
      args = (weights, buffer, n, total, shown, step)
      found, squares = _reduced_once(add_up)(*args)
    grads, sums = found
    return grads, sums, total, jnp.divide(*squares) if see else None

  return accumulate


def _reduced_once(add_up: Callable[..., Any]) -> Callable[..., Any]:
  """Makes replicas add up by themselves, and reduces their sums at the end.

  The compiler alone would reduce gradients over `data` in every pass.

  Args:
    add_up: (weights, buffer, n, total, state, step, reduce) -> (tree of sums
      over rows, tree of what was reduced already).
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.shape["data"] == 1:
    return add_up

  def reduce(x):
    return jax.lax.psum(x, "data")

  def alone(*args):
    sums, whole = add_up(*args, reduce)
    return reduce(sums), whole

  rows, same = PartitionSpec(None, "data"), PartitionSpec()
  return jax.shard_map(
    alone,
    in_specs=(same, rows, same, same, same, same),
    out_specs=same,
    axis_names={"data"},
    check_vma=False,
  )
