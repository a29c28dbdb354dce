r"""tiny.py for two passes over its corpus.

    python -m lm.data.prepare --config=ml_collections_configs/small.py
    python -m lm.main --config=ml_collections_configs/small.py \
        --workdir=runs/small

Measured curves and bits per byte: docs/runs.md.
"""

import ml_collections

from ml_collections_configs import tiny


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = tiny.get_config()
  c.data.batch_size = 8
  c.train.num_tokens = 5_200_000
  return c
