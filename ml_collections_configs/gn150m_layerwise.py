r"""Layerwise Gauss-Newton: `gn150m_full`, each block by itself.

    python -m lm.main --config=ml_collections_configs/gn150m_layerwise.py \
        --workdir=runs/gn150m_layerwise \
        --config.train.init_from=runs/gn150m_start

Not streamed: an update holds its 2288 microbatches, 1.2 GB of tokens.
"""

import ml_collections

from ml_collections_configs import families, gn150m, gn150m_full


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = gn150m.get_config()
  c = families.gauss_newton_solve(c, 1831, 128, streaming=False)
  c.optim.learning_rate = gn150m_full.get_config().optim.learning_rate
  c.gauss_newton.inner_schedule = "constant"
  c.gauss_newton.scope = "layerwise"
  c.model.layers = "unroll"
  c.train.num_tokens, c.train.num_steps = 0, 54
  return c
