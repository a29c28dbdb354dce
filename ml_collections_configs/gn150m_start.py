r"""Where the 150M Gauss-Newton runs start: AdamW on 5 % of the tokens.

    python -m lm.main --config=ml_collections_configs/gn150m_start.py \
        --workdir=runs/gn150m_start
"""

import ml_collections

from ml_collections_configs import families, gn150m


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = families.gauss_newton_start(gn150m.get_config(), 4578, 3e-3)
  return c
