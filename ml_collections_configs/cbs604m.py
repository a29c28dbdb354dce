r"""Critical batch size, 604m body parameters.

Pairs of batch and steps are in `sweeps.py`.

    python -m lm.main --config=ml_collections_configs/cbs604m.py \
        --workdir=runs/cbs604m
"""

import ml_collections

from ml_collections_configs import families


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  return families.critical_batch(D=2048, N=12, H=16, F=8192)
