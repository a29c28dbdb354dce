"""Sophia-G: an optimiser by name, with an estimate of the curvature.

The estimate is `optim.gauss_newton_bartlett_diagonal` on the first microbatch
of an update, with labels drawn from the model. It is made at the updates that
`optim.kwargs` of `optim.sophia_g` asks for (`estimate_every`), and costs one
more gradient of the microbatch there.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

import optim

from ..config.schema import Config
from ..model.transformer import Transformer
from ..objectives import table as objectives
from . import drawn, plain

NAME = "sophia_g"


def problems(config: Config) -> list[str]:
  """What is wrong with `config.optim`, or does not go with drawn labels."""
  found = objectives.without_view(config, f"config.optim.name={NAME!r}")
  if config.quant.method == "lotion":
    found.append(
      f"config.quant.method='lotion' is not for config.optim.name={NAME!r}, "
      "whose estimate is of the weights as they are; take 'qat' or 'rat'."
    )
  return plain.problems(config) + found


def metrics(opt_state: Any) -> dict[str, jax.Array]:
  """The share of entries whose step is shorter than the learning rate."""
  return {"optim/unclipped": optax.tree.get(opt_state, "unclipped")}


def estimate(
  config: Config, model: Transformer
) -> Callable[[Any, objectives.Batch, jax.Array], dict[str, Any]]:
  """Extra arguments of the optimiser.

  Returns:
    (params, `Batch` [B], step) -> {"estimate": function without arguments}.
  """
  labels = drawn.labels(config, model)

  def extra(params, rows, step):
    def diagonal():
      return optim.gauss_newton_bartlett_diagonal(
        labels.logits, params, rows, labels.key(step),
        weights=labels.weights(rows),
      )  # fmt: skip

    return {"estimate": diagonal}

  return extra
