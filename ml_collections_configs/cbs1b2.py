r"""Critical batch size, 1.2b body parameters.

Pairs of batch and steps are in `sweeps.py`.

    python -m lm.main --config=ml_collections_configs/cbs1b2.py \
        --workdir=runs/cbs1b2
"""

import ml_collections

from ml_collections_configs import families


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  return families.critical_batch(D=2048, N=24, H=32, F=8192)
