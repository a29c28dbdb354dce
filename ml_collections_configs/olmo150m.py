r"""151M body parameters, 3.3B tokens of C4: the 150M model of the SOAP line.

    python -m lm.main --config=ml_collections_configs/olmo150m.py \
        --workdir=runs/olmo150m
"""

import ml_collections

from ml_collections_configs import families


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = families.olmo(D=1024, N=12, H=16, F=4096)
  c.optim.learning_rate = 1e-3
  return c
