r"""302M body parameters, C4: the 150M model at twice its depth.

    python -m lm.main --config=ml_collections_configs/olmo300m.py \
        --workdir=runs/olmo300m
"""

import ml_collections

from ml_collections_configs import families


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = families.olmo(D=1024, N=24, H=16, F=4096)
  c.optim.learning_rate = 1e-3
  c.train.num_steps = 25_000
  return c
