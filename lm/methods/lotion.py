"""LOTION: an optimiser by name, with a penalty for rounding before it.

The method of `config.quant.method` "lotion". The penalty is weighted by a
curvature: squared gradients, labels that are drawn, or the optimiser's own
Kronecker factors.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax

import optim

from ..config import ramp
from ..config.schema import Config
from ..model.transformer import Transformer
from ..objectives import table as objectives
from . import drawn, factories, optimizer, plain


def problems(config: Config) -> list[str]:
  """What is wrong with `config.optim`, or does not go with the curvature."""
  found = plain.problems(config)
  if config.quant.curvature == "sampled":
    found += objectives.without_view(config, "config.quant.curvature='sampled'")
  if found or config.quant.curvature != "factors":
    return found
  name = config.optim.name
  if config.optim.by_role:
    found.append(
      "config.quant.curvature='factors' needs one optimiser for all matrices, "
      "not config.optim.by_role; take 'empirical' or 'sampled'."
    )
  if not factories.takes(name, optimizer.FACTORS):
    found.append(
      "config.quant.curvature='factors' needs a method with Kronecker factors "
      f"(soap, shampoo), not {name}; take 'empirical' or 'sampled'."
    )
  return found


def make(
  config: Config,
  model: Transformer,
  specs: Any,
  placement: optim.Placement,
  quantizers: Any,
) -> optax.GradientTransformationExtraArgs:
  """The transform; see `Method.make` for the arguments."""
  tx = plain.make(config, model, specs, placement)
  q = config.quant
  if not q.strength:
    return tx
  strength = optax.linear_schedule(
    0.0, q.strength, max(1, round(q.warmup * ramp.num_steps(config)))
  )
  options = {
    "curvature_decay": q.curvature_decay,
    "scale_gradient": q.scale_gradient,
  }
  if q.curvature == "factors":
    choice = optimizer.of_config(config)
    factors = _factors(optimizer.arguments(config, choice, specs, placement))
    return optim.with_rounding_penalty(
      tx, quantizers, strength, factors, **options
    )
  penalty = optim.add_rounding_penalty(quantizers, strength, **options)
  return optax.chain(penalty, tx)


def sampled_curvature(
  config: Config, model: Transformer
) -> Callable[[Any, objectives.Batch, jax.Array], dict[str, Any]]:
  """Extra arguments of the optimiser: the Fisher diagonal by drawn labels.

  Args:
    config: Of the run.
    model: Its model.

  Returns:
    (params, `Batch` [B], step) -> {"curvature": tree}, from the first
    `quant.fisher_rows` rows; {} unless `quant.curvature` is "sampled".
  """
  q = config.quant
  if q.curvature != "sampled":
    return lambda *_: {}
  labels = drawn.labels(config, model)

  def extra(params, rows, step):
    rows = jax.tree.map(lambda x: x[: q.fisher_rows], rows)
    fisher = optim.sampled_fisher_diagonal(
      labels.logits, params, rows, labels.key(step),
      weights=labels.weights(rows),
    )  # fmt: skip
    return {"curvature": fisher}

  return extra


def _factors(kwargs: dict[str, Any]) -> Callable[[Any, Any], Any]:
  """`optim.factor_diagonal` with the options its optimiser was made with."""
  shared = inspect.signature(optim.factor_diagonal).parameters
  options = {k: v for k, v in kwargs.items() if k in shared}
  options["decay"] = kwargs.get("shampoo_beta") or kwargs.get("b2", 0.95)
  return functools.partial(optim.factor_diagonal, **options)
