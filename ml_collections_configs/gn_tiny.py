r"""Gauss-Newton on the demo's corpus, with the study's small model.

    python -m lm.data.prepare --config=ml_collections_configs/gn_tiny.py
    python -m lm.main --config=ml_collections_configs/gn_tiny.py \
        --workdir=runs/gn_tiny

An outer step solves on 16 microbatches of 2048 tokens and searches along the
displacement on 4 more. Its variants: `--config.gauss_newton.mode=prox_linear`
or `nonlinear`, the control; and `--config.gauss_newton.scope=layerwise` with
`--config.model.layers=unroll`.
"""

import ml_collections

from ml_collections_configs import study1m


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = study1m.get_config()
  c.optim.name = "gauss_newton"
  c.optim.kwargs = dict(beta=0.95, consistent_rms=0.2)
  c.optim.learning_rate = 1e-2
  c.data.batch_size, c.train.microbatch_size = 20 * 8, 8
  c.train.num_tokens, c.train.num_steps = 0, 60
  c.schedule.warmup = 0.0
  c.eval.every = 5
  c.checkpoint.every = 10
  return c
