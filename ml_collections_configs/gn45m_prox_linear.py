r"""Prox-linear Gauss-Newton: `gn45m_full`, the loss itself kept.

    python -m lm.main --config=ml_collections_configs/gn45m_prox_linear.py \
        --workdir=runs/gn45m_prox_linear \
        --config.train.init_from=runs/gn45m_start
"""

import ml_collections

from ml_collections_configs import gn45m_full


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = gn45m_full.get_config()
  c.gauss_newton.mode = "prox_linear"
  return c
