r"""tiny.py with LOTION: weights that survive rounding to INT4.

    python -m lm.data.prepare --config=ml_collections_configs/lotion_int4.py
    python -m lm.main --config=ml_collections_configs/lotion_int4.py \
        --workdir=runs/lotion_int4

The baselines are `--config.quant.method=ptq`, `qat` and `rat`, the last two
with and without `--config.quant.scale_gradient`.
"""

import ml_collections

from ml_collections_configs import tiny


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = tiny.get_config()
  c.quant.method = "lotion"
  c.quant.grid = "int4"
  c.quant.strength = 100.0
  c.schedule.end_factor = 0.0  # Or the weights hop around the grid to the end.
  return c
