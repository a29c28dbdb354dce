r"""Full Gauss-Newton at 150M: 54 outer steps of 240M tokens of C4, streamed.

    python -m lm.main --config=ml_collections_configs/gn150m_full.py \
        --workdir=runs/gn150m_full \
        --config.train.init_from=runs/gn150m_start

An update is one microbatch of 128 rows, 1831 to solve on and 457 for the line
search, so that a run can be stopped and saved between any two.
"""

import ml_collections

from ml_collections_configs import families, gn150m


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = families.gauss_newton_solve(
    gn150m.get_config(), 1831, 128, streaming=True
  )
  c.train.num_tokens, c.train.num_steps = 0, 54 * (1831 + 457)
  c.optim.learning_rate = 3e-3
  c.gauss_newton.inner_schedule = "constant"
  c.gauss_newton.num_alphas = 10
  return c
