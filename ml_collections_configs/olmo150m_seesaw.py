r"""150M parameters with Seesaw: a growing batch in place of the cosine's decay.

    python -m lm.main --config=ml_collections_configs/olmo150m_seesaw.py \
        --workdir=runs/olmo150m_seesaw

3.3B tokens of C4 in 7,828 updates; a cosine needs 12,589. (With batches of any
size, as in the paper, 7,756 updates.)
"""

import ml_collections

from ml_collections_configs import olmo150m


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = olmo150m.get_config()
  c.schedule.name = "seesaw"
  c.train.num_steps, c.train.num_tokens = 0, 3_300_000_000
  c.train.microbatch_size = 16  # Batches are multiples of it.
  return c
