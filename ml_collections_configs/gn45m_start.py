r"""Where the 45M Gauss-Newton runs start: AdamW on 5 % of the tokens.

    python -m lm.main --config=ml_collections_configs/gn45m_start.py \
        --workdir=runs/gn45m_start
"""

import ml_collections

from ml_collections_configs import families, gn45m


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = families.gauss_newton_start(gn45m.get_config(), 1000, 1e-2)
  return c
