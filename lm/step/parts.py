"""What a run is made of, all built, nothing started."""

from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh, NamedSharding

from ..config import ramp
from ..config.schema import Config
from ..model.transformer import Transformer
from . import state


class Parts(NamedTuple):
  """What a run is made of.

  Attributes:
    config: Resolved.
    mesh: The devices, or an abstract one (`build`).
    model: The Flax module.
    specs: Tree of `ParamSpec`, like the parameters.
    quantizers: How each parameter is rounded, None for those that are not;
      None if `config.quant` has no method.
    tx: The optimiser.
    abstract_state: Shapes of the training state.
    shardings: Of its leaves.
    batch_sharding: Of the buffer [n, B, L + 1].
  """

  config: Config
  mesh: Mesh
  model: Transformer
  specs: Any
  quantizers: Any
  tx: optax.GradientTransformationExtraArgs
  abstract_state: state.TrainState
  shardings: state.TrainState
  batch_sharding: NamedSharding

  @property
  def buffer_shape(self) -> tuple[int, int, int]:
    """[microbatches at most, rows of each, L + 1]."""
    rows = self.config.microbatch_size
    most = max(phase.rows for phase in ramp.of_config(self.config))
    count = most // rows
    return count, rows, self.config.data.seq_length + 1
