"""The methods of training: from a configuration to a transform and its update.

A new method is one entry of `METHODS`. `config.optim.name` chooses the entry of
that name, else "lotion" if `config.quant.method` says so, else "optax".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import optim

from ..config.schema import Config
from ..methods import lotion, newton, optimizer, plain, schedule
from ..objectives.next_token import loss_sums
from ..weights import rounded
from . import newton_update, update
from .parts import Parts
from .state import TrainState

TrainStep = Callable[
  [TrainState, jax.Array, jax.Array], tuple[TrainState, update.Metrics]
]


class Method(NamedTuple):
  """One method of training.

  Attributes:
    problems: (config) -> messages on what is wrong with its keys, before a
      device is touched.
    make: (config, model, specs, placement, quantizers) -> transform. `specs` is
      the table of the parameters, `placement` says where matrix methods keep
      their stacks, and `quantizers` how each parameter is rounded, None unless
      `config.quant` has a method.
    make_update: (parts, details) -> update (state, buffer, n) -> (state,
      metrics), to be jitted. With `details` the metrics hold statistics of each
      leaf, if the method has some.
    metrics: (state of the transform) -> more metrics.
    updates_per_step: (config) -> updates of the trainer for one of the method.
    copies_of_logits: That are alive at once in the backward pass.
    sums_passes: Whether gradients of several passes are added up.
    has_updated: (state of the transform) -> whether the last update of the
      trainer ended one of the method; None: each does.
  """

  problems: Callable[[Config], list[str]]
  make: Callable[..., Any]
  make_update: Callable[[Parts, bool], TrainStep]
  metrics: Callable[[Any], update.Metrics] = optimizer.metrics
  updates_per_step: Callable[[Config], int] = lambda config: 1
  copies_of_logits: int = 1
  sums_passes: bool = True
  has_updated: Callable[[Any], jax.Array] | None = None


def of(config: Config) -> Method:
  """The method of a configuration."""
  name = "lotion" if config.quant.method == "lotion" else "optax"
  return METHODS.get(config.optim.name, METHODS[name])


def plain_update(
  parts: Parts,
  details: bool,
  extra_args: Callable[..., dict[str, Any]] = lambda *_: {},
) -> TrainStep:
  """The update of any transform that takes gradients, see `make_update`.

  Args:
    parts: Of the run.
    details: Whether to measure each leaf.
    extra_args: As in `update.make_train_step`.
  """
  config = parts.config
  places = jax.tree.map(lambda lie: lie.spec, parts.shardings.params)

  def constrain(tree):
    return jax.lax.with_sharding_constraint(tree, places)

  return update.make_train_step(
    lambda params, tokens: loss_sums(parts.model, params, tokens),
    parts.tx,
    schedule.learning_rate(config),
    update.StepConfig(
      clip_norm=config.optim.clip_norm,
      z_loss=config.model.z_loss,
      pad_id=config.model.pad_id,
      details=details,
    ),
    constrain if parts.mesh.size > 1 else lambda tree: tree,
    rounded.rounded_weights(config, parts.quantizers),
    extra_args,
  )


def _lotion_update(parts: Parts, details: bool) -> TrainStep:
  sampled = lotion.sampled_curvature(parts.config, parts.model)
  return plain_update(parts, details, sampled)


METHODS: dict[str, Method] = {
  "optax": Method(plain.problems, plain.make, plain_update),
  "lotion": Method(lotion.problems, lotion.make, _lotion_update),
  newton.OUTER: Method(
    newton.problems,
    newton.make,
    lambda parts, _: newton_update.make_outer_step(parts.config, parts.tx),
    newton.metrics,
    copies_of_logits=3,
    sums_passes=False,
  ),
  newton.MICRO: Method(
    newton.problems,
    newton.make,
    lambda parts, _: newton_update.make_micro_step(
      parts.config, parts.model, parts.tx
    ),
    newton.metrics,
    newton.updates_per_outer_step,
    copies_of_logits=3,
    has_updated=optim.has_updated,
  ),
}
