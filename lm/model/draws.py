"""Keys of the random numbers that a model draws inside its layers."""

import zlib
from typing import Any, NamedTuple

import jax


class Draws(NamedTuple):
  """Keys of one pass over some rows.

  Attributes:
    rows: Keys [B], of each row's number in its stream: what rows draw does not
      depend on the mesh or the microbatches.
    update: Key of the update, for draws about weights.
  """

  rows: Any
  update: Any

  def at(self, name: str, layer: int | jax.Array | None) -> "Draws":
    """Keys of a part of the model by its name, in a layer or outside of all."""
    number = zlib.crc32(name.encode())

    def folded(key):
      key = jax.random.fold_in(key, number)
      return key if layer is None else jax.random.fold_in(key, layer)

    return Draws(jax.vmap(folded)(self.rows), folded(self.update))
