r"""Critical batch size, 85m body parameters.

Pairs of batch and steps are in `sweeps.py`.

    python -m lm.main --config=ml_collections_configs/cbs85m.py \
        --workdir=runs/cbs85m
"""

import ml_collections

from ml_collections_configs import families


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  return families.critical_batch(D=768, N=12, H=12, F=3072)
