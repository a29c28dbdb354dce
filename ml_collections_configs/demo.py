r"""The demo: 1.4M parameters on presidential addresses, minutes on two cores.

    make demo

or, step by step:

    python -m lm.data.prepare --config=ml_collections_configs/demo.py
    python -m lm.main --config=ml_collections_configs/demo.py \
        --workdir=runs/demo
    python -m lm.report runs/demo docs/runs/stored_adamw --out=runs/demo

It trains by Muon, for one pass, and ends below the loss of a 3-gram model of
the same corpus. Beside it stands the stored curve of the same model by AdamW,
at the best of three rates. What was measured is in docs/runs.md.
"""

import ml_collections

from ml_collections_configs import tiny


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = tiny.get_config()
  # In a given time, more tokens teach more than more layers of more channels.
  c.model.D, c.model.F, c.model.N = 128, 512, 2
  c.model.H = c.model.G = 2
  c.data.batch_size = 8
  c.optim.name = "muon"
  c.optim.learning_rate = 2e-2
  c.optim.kwargs = dict(beta=0.95, weight_decay=0.1, consistent_rms=0.2)
  c.schedule.end_factor = 0.02
  c.train.num_tokens = 2_600_000
  c.eval.every = 150
  return c
