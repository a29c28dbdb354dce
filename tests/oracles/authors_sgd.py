"""SGD, Adam and their relatives for the authors' settings; see `authors.py`."""

import optax
from oracles.authors_built import Built, Setup


def _adamw(setup: Setup) -> Built:
  """torch's AdamW, whose decay by (1 - eta lambda) is optax's."""
  options = setup.pick("b1", "b2", "eps", "weight_decay")
  return Built(optax.adamw(setup.learning_rate, **options))


METHODS = {"torch_adamw": _adamw}
LAYOUTS = {}
