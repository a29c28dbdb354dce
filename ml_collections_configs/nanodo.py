r"""NanoDO's default model on C4: learned positions, tied head, LayerNorm.

    python -m lm.main --config=ml_collections_configs/nanodo.py \
        --workdir=runs/nanodo
"""

import ml_collections

from ml_collections_configs import families


def get_config() -> ml_collections.ConfigDict:
  """See the module docstring."""
  c = families.c4()
  c.model.D, c.model.N, c.model.H, c.model.G, c.model.F = 512, 6, 8, 8, 2048
  c.model.V = families.LLAMA2
  c.model.norm_eps = 1e-6  # flax's default.
  c.model.positions = "learned"
  c.model.init, c.model.init_cut = "fan_in", 2.0
  c.model.embed_init_std = 1.0
  c.data.tokenizer = "sp:tokenizers/llama2.model"
  c.data.seq_length = 1024
  c.data.batch_size = 128
  c.optim.learning_rate = 2e-3
  c.optim.kwargs.b2 = 0.98
  c.optim.kwargs.eps = 1e-9
  c.optim.kwargs.weight_decay = 0.0
  c.train.num_tokens, c.train.num_steps = 0, 30_000
  return c
