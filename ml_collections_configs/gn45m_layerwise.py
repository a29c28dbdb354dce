r"""Layerwise Gauss-Newton: `gn45m_full`, each block by itself.

    python -m lm.main --config=ml_collections_configs/gn45m_layerwise.py \
        --workdir=runs/gn45m_layerwise \
        --config.train.init_from=runs/gn45m_start
"""

import ml_collections

from ml_collections_configs import gn45m_full


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = gn45m_full.get_config()
  c.gauss_newton.scope = "layerwise"
  c.gauss_newton.num_alphas = 0  # Down to 1 / groups.
  c.model.layers = "unroll"
  return c
