r"""Five domains, 70 MB: addresses, encyclopedia, manuals, law, dictionary.

    python -m lm.data.prepare --config=ml_collections_configs/mix.py
    python -m lm.main --config=ml_collections_configs/mix.py \
        --workdir=runs/mix

Each domain is drawn in proportion to its size and scored by itself.
"""

import ml_collections

from ml_collections_configs import tiny

# Megabytes of clean text.
_DOMAINS = (
  ("sotu", 12.2),
  ("wiki", 5.0),
  ("awsdocs", 26.4),
  ("legal", 10.2),
  ("gcide", 16.4),
)


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = tiny.get_config()
  c.data.mixture = _DOMAINS
  c.data.vocab_size = 8192
  c.data.batch_size = 8
  c.eval.sets = tuple(name for name, _ in _DOMAINS)
  c.eval.every = 500
  c.eval.batches = 4
  c.eval.final_batches = 64
  c.train.num_tokens = 6_000_000
  return c
