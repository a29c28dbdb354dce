"""Rows of tokens with their numbers, and what a model is asked on them.

The key of a row is a function of the seed, the stream and the number of the row
in the stream:

    key = fold_in(fold_in(key(seed), stream), index)

So a draw for a row does not depend on the mesh, the processes, the microbatches
or the growth of the batch, and two evaluations draw the same for the same row.

Dimension key: see `lm/model/transformer.py`.
"""

from typing import Any, NamedTuple

import jax

from ..model import attention
from ..model.draws import Draws

# The second number of a key. 1 and 2 are draws about weights and labels
# (`lm/weights/rounded.py`).
TRAINING, EVALUATION = 3, 4
_LAYERS, _PRODUCTS = 5, 6


class Batch(NamedTuple):
  """Rows and their numbers; trees of this shape also hold shardings."""

  tokens: Any  # int32 [..., B, L + 1].
  index: Any  # int32 [..., B]: of the row, in its stream or split.
  update: Any = None  # int32: of the update, where weights are drawn for it.


class View(NamedTuple):
  """What the model is asked on some rows."""

  inputs_BL: jax.Array  # Token ids that the model reads.
  targets_BL: jax.Array  # Token ids that it is to predict, at each position.
  weights_BL: jax.Array  # float32; 0 for the targets that do not count.
  # What each position sees. None: what stands before it in its document, as the
  # inputs tell.
  places: attention.Reach | None = None
  draws: Draws | None = None  # For what the model draws inside its layers.


def row_keys(seed: int, stream: int, index_B: jax.Array) -> jax.Array:
  """A key for each row; see the module docstring.

  Args:
    seed: `config.seed`.
    stream: TRAINING or EVALUATION.
    index_B: Numbers of the rows.
  """
  key = jax.random.fold_in(jax.random.key(seed), stream)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index_B)


def layer_draws(seed: int, batch: Batch) -> Draws:
  """Keys of what a model draws inside its layers while it is trained.

  Args:
    seed: `config.seed`.
    batch: Rows [B]; without `update`, all updates draw alike about weights.
  """
  key = jax.random.fold_in(jax.random.key(seed), _PRODUCTS)
  step = 0 if batch.update is None else batch.update
  rows = row_keys(seed, _LAYERS, batch.index)
  return Draws(rows, jax.random.fold_in(key, step))
