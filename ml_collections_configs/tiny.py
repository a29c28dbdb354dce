r"""The demo: 4.2M parameters on presidential addresses, minutes on two cores.

    make demo

or, step by step:

    python -m lm.data.prepare --config=ml_collections_configs/tiny.py
    python -m lm.main --config=ml_collections_configs/tiny.py \
        --workdir=runs/tiny
"""

import ml_collections

from ml_collections_configs import base


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring; every default of base.py, at a tuned rate."""
  c = base.get_config()
  c.optim.learning_rate = 2e-3
  return c
