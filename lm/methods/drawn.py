"""Labels drawn from the model, for methods that estimate a curvature."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ..config.schema import Config
from ..model.transformer import Transformer
from ..objectives import sums
from ..objectives import table as objectives
from ..weights import rounded


class Labels(NamedTuple):
  """What an estimate with drawn labels is made from.

  Attributes:
    logits: (params, `Batch` [B]) -> logits [B, L, V].
    weights: (`Batch` [B]) -> [B, L], of the targets in the loss.
    key: (update) -> the random key of the labels.
  """

  logits: Callable[[Any, objectives.Batch], Any]
  weights: Callable[[objectives.Batch], jax.Array]
  key: Callable[[jax.Array], jax.Array]


def labels(config: Config, model: Transformer) -> Labels:
  """Of an objective that has a view."""
  objective = objectives.chosen(config)

  def view(rows):
    return objective.view(model.cfg, rows, objectives.TRAINING)

  return Labels(
    lambda params, rows: sums.view_logits(model, params, view(rows)),
    lambda rows: view(rows).weights_BL,
    lambda step: rounded.key_of(config, step, "labels"),
  )
