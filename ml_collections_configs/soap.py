r"""tiny.py with SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    python -m lm.data.prepare --config=ml_collections_configs/soap.py
    python -m lm.main --config=ml_collections_configs/soap.py \
        --workdir=runs/soap

Matrices inside the blocks get both factors, embedding and head one on the side
of the width: better than Adam for them (docs/optimizer_study.md).
"""

import ml_collections

from ml_collections_configs import tiny


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = tiny.get_config()
  c.optim.name = "soap"
  c.optim.embeddings = "one_sided"
  c.optim.kwargs = dict(
    b1=0.95, b2=0.95, weight_decay=0.1, precondition_frequency=10
  )
  return c
