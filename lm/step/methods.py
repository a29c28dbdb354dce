"""The methods of training: from a configuration to a transform and its update.

A new method is one entry of `METHODS`. `config.optim.name` chooses the entry of
that name. If there is none, the entry is "lotion" with `config.quant.method`
"lotion", and "optax" otherwise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import optim

from ..config.schema import Config
from ..methods import lotion, newton, optimizer, plain, schedule, sophia
from ..model import products
from ..objectives import table as objectives
from ..weights import table as weights
from . import newton_update, update
from .parts import Parts
from .state import TrainState

TrainStep = Callable[
  [TrainState, objectives.Batch, jax.Array], tuple[TrainState, update.Metrics]
]


class Method(NamedTuple):
  """One method of training.

  Attributes:
    problems: (config) -> messages on what is wrong with its keys, before a
      device is touched.
    make: (config, model, specs, placement, quantizers) -> transform. `specs` is
      the table of what is trained, `placement` says where matrix methods keep
      their stacks, and `quantizers` how each weight is rounded, None unless
      `config.quant` has a method. A method that differentiates the model itself
      takes the keyword `seen` as well, see `Parts.make_tx`.
    make_update: (parts, probing) -> update (state, buffer, n) -> (state,
      metrics), to be jitted; the metrics hold what `probing` measures.
    metrics: (state of the transform) -> more metrics.
    updates_per_step: (config) -> updates of the trainer for one of the method.
    copies_of_logits: That are alive at once in the backward pass.
    sums_passes: Whether gradients of several passes are added up.
    has_updated: (state of the transform) -> whether the last update of the
      trainer ended an update of the method; None: each one does.
    shows: What probes can see of an update (`lm/probes/table.py`).
  """

  problems: Callable[[Config], list[str]]
  make: Callable[..., Any]
  make_update: Callable[[Parts, update.Probing], TrainStep]
  metrics: Callable[[Any], update.Metrics] = optimizer.metrics
  updates_per_step: Callable[[Config], int] = lambda config: 1
  copies_of_logits: int = 1
  sums_passes: bool = True
  has_updated: Callable[[Any], jax.Array] | None = None
  shows: tuple[str, ...] = ("state", "rows", "grads", "updates", "micro")


def of(config: Config) -> Method:
  """The method of a configuration."""
  name = "lotion" if config.quant.method == "lotion" else "optax"
  return METHODS.get(config.optim.name, METHODS[name])


def plain_update(
  parts: Parts,
  probing: update.Probing,
  extra_args: Callable[..., dict[str, Any]] = lambda *_: {},
) -> TrainStep:
  """The update of any transform that takes gradients, see `make_update`.

  Args:
    parts: Of the run.
    probing: What to measure besides.
    extra_args: As in `update.make_train_step`.
  """
  config, model = parts.config, parts.model
  objective = objectives.chosen(config)
  places = jax.tree.map(lambda lie: lie.spec, parts.weight_shardings)

  def constrain(tree):
    return jax.lax.with_sharding_constraint(tree, places)

  return update.make_train_step(
    update.Loss(
      lambda params, rows: objective.loss_sums(model, params, rows),
      lambda tokens: objective.count(model.cfg, tokens),
      config.model.z_loss,
      products.draws(config.model),
    ),
    parts.tx,
    schedule.learning_rate(config),
    config.optim.clip_norm,
    constrain if parts.mesh.size > 1 else lambda tree: tree,
    lambda params, now: parts.seen(params, now, weights.TRAIN),
    extra_args,
    probing,
  )


def _lotion_update(parts: Parts, probing: update.Probing) -> TrainStep:
  sampled = lotion.sampled_curvature(parts.config, parts.model)
  return plain_update(parts, probing, sampled)


def _sophia_update(parts: Parts, probing: update.Probing) -> TrainStep:
  return plain_update(
    parts, probing, sophia.estimate(parts.config, parts.model)
  )


METHODS: dict[str, Method] = {
  "optax": Method(plain.problems, plain.make, plain_update),
  "lotion": Method(lotion.problems, lotion.make, _lotion_update),
  sophia.NAME: Method(
    sophia.problems, plain.make, _sophia_update, sophia.metrics
  ),
  newton.OUTER: Method(
    newton.problems,
    newton.make,
    newton_update.make_outer_step,
    newton.metrics,
    copies_of_logits=3,
    sums_passes=False,
    shows=("state", "rows", "updates"),
  ),
  newton.MICRO: Method(
    newton.problems,
    newton.make,
    newton_update.make_micro_step,
    newton.metrics,
    newton.updates_per_outer_step,
    copies_of_logits=3,
    has_updated=optim.has_updated,
    shows=("state", "rows", "updates"),
  ),
}
