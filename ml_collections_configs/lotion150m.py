r"""LOTION to INT4 on the 150M-parameter OLMo-style model, C4.

    python -m lm.main --config=ml_collections_configs/lotion150m.py \
        --workdir=runs/lotion150m

The paper's strength, learning rate and block size were not found in its text.
The values here are this project's choices, to be swept.
"""

import ml_collections

from ml_collections_configs import olmo150m


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = olmo150m.get_config()
  c.quant.method = "lotion"
  c.quant.strength = 100.0
  c.schedule.end_factor = 0.0
  return c
