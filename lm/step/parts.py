"""What a run is made of, all built, nothing started."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh

from ..config import ramp
from ..config.schema import Config
from ..model import params as param_table
from ..model.transformer import Transformer
from ..objectives.view import Batch
from ..weights import table as weights
from . import state


class Parts(NamedTuple):
  """What a run is made of.

  Attributes:
    config: Resolved.
    mesh: The devices, or an abstract one (`build`).
    model: The Flax module.
    specs: Tree of `ParamSpec`, like the weights that the model sees.
    quantizers: How each weight is rounded, None for those that are not; None if
      `config.quant` has no method.
    make_tx: (seen) -> the transform of a model with the weights seen(params),
      for methods that differentiate the model themselves; None: params.
    tx: `make_tx(None)`.
    abstract_state: Shapes of the training state.
    shardings: Of its leaves.
    weight_shardings: Of the weights that the model sees.
    batch_sharding: Of the buffer's tokens [n, B, L + 1] and index [n, B].
  """

  config: Config
  mesh: Mesh
  model: Transformer
  specs: Any
  quantizers: Any
  make_tx: Callable[..., optax.GradientTransformationExtraArgs]
  tx: optax.GradientTransformationExtraArgs
  abstract_state: state.TrainState
  shardings: state.TrainState
  weight_shardings: Any
  batch_sharding: Batch

  @property
  def buffer_shape(self) -> tuple[int, int, int]:
    """[microbatches at most, rows of each, L + 1]."""
    rows = self.config.microbatch_size
    most = max(phase.rows for phase in ramp.of_config(self.config))
    count = most // rows
    return count, rows, self.config.data.seq_length + 1

  @property
  def abstract_weights(self) -> Any:
    """Shapes of the weights that the model sees."""
    return param_table.abstract(self.specs)

  def seen(self, params: Any, now: state.TrainState, mode: str) -> Any:
    """The weights that the model sees, inside a compiled function.

    Args:
      params: What is trained, or an average of it.
      now: The state; its `frozen` and `step` are read.
      mode: train | eval | export.
    """
    return weights.seen(
      self.config, self.specs, params, now.frozen, now.step, mode
    )
