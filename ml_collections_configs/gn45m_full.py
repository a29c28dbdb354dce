r"""Full Gauss-Newton at 45M parameters: 227 outer steps of 4M tokens of C4.

    python -m lm.main --config=ml_collections_configs/gn45m_full.py \
        --workdir=runs/gn45m_full \
        --config.train.init_from=runs/gn45m_start
"""

import ml_collections

from ml_collections_configs import families, gn45m


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = families.gauss_newton_solve(gn45m.get_config(), 122, 32, streaming=False)
  c.train.num_tokens, c.train.num_steps = 0, 227
  c.optim.learning_rate = 1e-2
  c.optim.averages = ("ema:0.999",)
  return c
