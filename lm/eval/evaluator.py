"""Scoring during a run: the eval sets, one compiled step for all of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ..data import layout
from ..data.rows import Rows
from ..data.stream import eval_batches
from ..model import mesh as meshes
from ..objectives.next_token import row_losses
from ..step import points
from ..step.parts import Parts
from ..step.state import TrainState
from .score import EvalResult, summarize


class Evaluator:
  """Loss of given weights on the validation split of each eval set."""

  def __init__(self, parts: Parts, data: dict[str, layout.Prepared]):
    """Opens the splits; compiles nothing yet.

    Args:
      parts: Of the run.
      data: Prepared corpora by name; `config.eval.sets` are among them.
    """
    config = parts.config
    self._parts = parts
    self._splits = {
      name: Rows(data[name], "validation") for name in config.eval.sets
    }
    # Rows of padding, which weigh nothing, make them divide over the mesh.
    self._ways = parts.mesh.shape["data"] * parts.mesh.shape["fsdp"]
    padded = -(-config.eval.batch_size // self._ways) * self._ways
    self._shape = (padded, config.data.seq_length + 1)
    self._rows = meshes.batch_sharding(parts.mesh)
    self._step: Any = None
    self._points: dict[str | None, Any] = {}

  def compile(self) -> None:
    """Compiles the step; may run in a thread beside other compilations."""
    parts = self._parts
    abstract = parts.abstract_state
    rows = jax.ShapeDtypeStruct(self._shape, jnp.int32)
    score = jax.jit(
      lambda params, tokens: row_losses(parts.model, params, tokens),
      in_shardings=(parts.shardings.params, self._rows),
      out_shardings=NamedSharding(parts.mesh, PartitionSpec()),
    )
    with jax.set_mesh(parts.mesh):  # Of this thread, which may be a helper.
      self._step = score.lower(abstract.params, rows).compile()

  def compile_points(self) -> None:
    """Compiles `point` for all names; may run in a thread as well."""
    with jax.set_mesh(self._parts.mesh):
      for name in (None, *self.averages):
        self._points[name] = points.compiled(self._parts, name)

  @property
  def averages(self) -> tuple[str, ...]:
    """Names of the averages of the weights."""
    return points.names(self._parts)

  def point(self, train_state: TrainState, name: str | None = None) -> Any:
    """Weights to evaluate: the method's own, or an average by its name."""
    if name not in self._points:
      self.compile_points()
    return self._points[name](train_state)

  def run(self, params: Any, max_batches: int) -> dict[str, EvalResult]:
    """Scores every set.

    Args:
      params: Weights; not donated.
      max_batches: Per set; 0 for whole splits.

    Returns:
      Result by the name of the set.
    """
    if self._step is None:
      self.compile()
    return {
      name: summarize(*self._losses(params, rows, max_batches), rows)
      for name, rows in self._splits.items()
    }

  def _losses(
    self, params: Any, rows: Rows, max_batches: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Summed loss and number of targets of each row that is not padding."""
    first, end = meshes.row_range(self._rows, self._shape)
    pending = []
    size = self._parts.config.eval.batch_size
    for batch in eval_batches(rows, size, max_batches, self._ways):
      tokens = meshes.put_rows(self._rows, batch.tokens[first:end], self._shape)
      pending.append((self._step(params, tokens), batch.rows))
    losses = [np.asarray(loss)[:n] for (loss, _), n in pending]
    weights = [np.asarray(weight)[:n] for (_, weight), n in pending]
    return np.concatenate(losses), np.concatenate(weights)
