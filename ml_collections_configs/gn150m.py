r"""150M parameters of the Gauss-Newton study, AdamW baseline, 3B tokens of C4.

    python -m lm.main --config=ml_collections_configs/gn150m.py \
        --workdir=runs/gn150m
"""

import ml_collections

from ml_collections_configs import families


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = families.gauss_newton(D=768, N=12, H=16, F=3072)
  c.train.num_tokens = 3_000_000_000
  return c
