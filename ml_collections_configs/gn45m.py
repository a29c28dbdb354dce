r"""45M parameters of the Gauss-Newton study, AdamW baseline, 0.9B tokens of C4.

    python -m lm.main --config=ml_collections_configs/gn45m.py \
        --workdir=runs/gn45m
"""

import ml_collections

from ml_collections_configs import families


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = families.gauss_newton(D=512, N=4, H=8, F=2048)
  c.train.num_tokens = 907_000_000
  return c
