"""Scoring during a run: the eval sets, one compiled step for all of them."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ..data import layout
from ..data.rows import Rows
from ..data.stream import eval_batches
from ..model import mesh as meshes
from ..objectives import table as objectives
from ..objectives.view import EVALUATION
from ..step import points, seen
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
    self._rows = objectives.Batch(
      meshes.batch_sharding(parts.mesh),
      meshes.batch_sharding(parts.mesh, trailing=0),
    )
    self._step: Any = None
    self._points: dict[str | None, Any] = {}
    self._seen: list[Any] = []  # One function; a list can be shared.

  def of(self, parts: Parts) -> "Evaluator":
    """The same splits for a model that differs in its products alone."""
    other = copy.copy(self)  # The points and what is seen are shared.
    other._parts, other._step = parts, None
    return other

  def compile(self) -> None:
    """Compiles the step; may run in a thread beside other compilations."""
    parts = self._parts
    objective = objectives.chosen(parts.config)
    rows = objectives.Batch(
      jax.ShapeDtypeStruct(self._shape, jnp.int32),
      jax.ShapeDtypeStruct(self._shape[:1], jnp.int32),
    )

    def losses(params, rows):
      sums = objective.row_sums(parts.model, params, rows, EVALUATION)
      return sums.loss, objective.count(parts.model.cfg, rows.tokens)

    score = jax.jit(
      losses,
      in_shardings=(parts.weight_shardings, self._rows),
      out_shardings=NamedSharding(parts.mesh, PartitionSpec()),
    )
    with jax.set_mesh(
      parts.mesh
    ):  # The mesh of this thread, which may be a helper.
      self._step = score.lower(parts.abstract_weights, rows).compile()

  def compile_points(self) -> None:
    """Compiles `point` for all names; may run in a thread as well."""
    with jax.set_mesh(self._parts.mesh):
      self._seen[:] = [seen.compiled(self._parts, "eval")]
      for name in (None, *self.averages):
        self._points[name] = points.compiled(self._parts, name)

  @property
  def averages(self) -> tuple[str, ...]:
    """Names of the averages of the weights."""
    return points.names(self._parts)

  def point(self, train_state: TrainState, name: str | None = None) -> Any:
    """Weights to evaluate: the method's own, or an average by its name.

    The weights are as the model sees them.
    """
    if name not in self._points:
      self.compile_points()
    return self._seen[0](self._points[name](train_state), train_state)

  def run(self, params: Any, max_batches: int) -> dict[str, EvalResult]:
    """Scores every set.

    Args:
      params: Weights as the model sees them; not donated.
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
    """Summed loss and count of each row that is not padding."""
    first, end = meshes.row_range(self._rows.tokens, self._shape)
    pending = []
    size = self._parts.config.eval.batch_size
    for i, batch in enumerate(
      eval_batches(rows, size, max_batches, self._ways)
    ):
      # Numbers in the split, so that draws are the same at each evaluation.
      index = np.arange(i * size + first, i * size + end, dtype=np.int32)
      put = objectives.Batch(
        meshes.put_rows(
          self._rows.tokens, batch.tokens[first:end], self._shape
        ),
        meshes.put_rows(self._rows.index, index, self._shape[:1]),
      )
      pending.append((self._step(params, put), batch.rows))
    losses = [np.asarray(loss)[:n] for (loss, _), n in pending]
    weights = [np.asarray(weight)[:n] for (_, weight), n in pending]
    return np.concatenate(losses), np.concatenate(weights)
