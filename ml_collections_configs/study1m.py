r"""A model small enough to compare methods on two cores: 0.8M body parameters.

The base of the studies in `studies/`. The rate is constant after the warm-up,
so that one run with averaged weights tells the steps to every loss; a decaying
rate would need a run for each number of steps.
"""

import ml_collections

from ml_collections_configs import tiny


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = tiny.get_config()
  c.model.D, c.model.N, c.model.F = 128, 4, 512
  c.model.H = c.model.G = 2
  c.schedule.name = "constant"
  c.log.samples = 0
  c.log.every = 10
  c.eval.batches = 4
  c.checkpoint.every = 100
  return c
