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

# The second number of a key. 1 and 2 are draws about weights and labels
# (`lm/weights/rounded.py`).
TRAINING, EVALUATION = 3, 4


class Batch(NamedTuple):
  """Rows and their numbers; trees of this shape also hold shardings."""

  tokens: Any  # int32 [..., B, L + 1].
  index: Any  # int32 [..., B]: of the row, in its stream or split.


class View(NamedTuple):
  """What the model is asked on some rows."""

  inputs_BL: jax.Array  # Token ids that the model reads.
  targets_BL: jax.Array  # Token ids that it is to predict, at each position.
  weights_BL: jax.Array  # float32; 0 for the targets that do not count.
  # What each position sees. None: what stands before it in its document, as the
  # inputs tell.
  places: attention.Reach | None = None


def row_keys(seed: int, stream: int, index_B: jax.Array) -> jax.Array:
  """A key for each row; see the module docstring.

  Args:
    seed: `config.seed`.
    stream: TRAINING or EVALUATION.
    index_B: Numbers of the rows.
  """
  key = jax.random.fold_in(jax.random.key(seed), stream)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index_B)
