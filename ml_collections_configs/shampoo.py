r"""tiny.py with Shampoo: exponent 1/2 a factor, grafted onto Adam.

    python -m lm.data.prepare --config=ml_collections_configs/shampoo.py
    python -m lm.main --config=ml_collections_configs/shampoo.py \
        --workdir=runs/shampoo

Matrices inside the blocks get both factors; embedding and head stay with Adam,
which is better for them than a factor (docs/optimizer_study.md).
"""

import ml_collections

from ml_collections_configs import tiny


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = tiny.get_config()
  c.optim.name = "shampoo"
  c.optim.kwargs = dict(
    b1=0.95, b2=0.95, weight_decay=0.1, precondition_frequency=10
  )
  return c
