"""What the authors' model families have in common; not a configuration."""

import ml_collections

from ml_collections_configs import base

# Vocabularies, by their number of pieces.
T5, NEOX, LLAMA2 = 32_100, 50_280, 32_000


def c4() -> ml_collections.ConfigDict:
  """The base on C4, tokenised by the T5 vocabulary in `tokenizers/t5.model`.

  C4 is read from a prepared TFDS directory below `data.root` (docs/data.md);
  building it needs Apache Beam and is not done here.
  """
  c = base.get_config()
  c.data.mixture = (("c4", 1.0),)
  c.data.tokenizer = "sp:tokenizers/t5.model"
  c.eval.sets = ("c4",)
  c.eval.batch_size = 32
  c.eval.batches = 32
  c.eval.every = 500
  c.eval.final_batches = 1000
  c.checkpoint.every = 1000
  return c


def olmo(D: int, N: int, H: int, F: int) -> ml_collections.ConfigDict:
  """OLMo-style decoder: LayerNorm without bias, QK-norm over D, untied head.

  Source: the authors' configurations of the Recurrent Transformer (Kempner
  base-c4-t5), which the SOAP and Seesaw studies share.
  """
  c = c4()
  c.model.D, c.model.N, c.model.H, c.model.G, c.model.F = D, N, H, H, F
  c.model.V = T5
  c.model.qk_norm = "full"
  c.model.tied = False
  c.model.init = "mitchell"
  c.data.seq_length = 1024
  c.data.batch_size = 256
  c.train.num_tokens, c.train.num_steps = 0, 12_500
  c.optim.kwargs.weight_decay = 0.0
  c.schedule.warmup = 0.1
  c.schedule.start_factor = 0.1  # OLMo's warm-up begins at a tenth.
  return c


def critical_batch(D: int, N: int, H: int, F: int) -> ml_collections.ConfigDict:
  """Models of the critical-batch-size study: constant rate, EMA, NeoX pieces.

  Source: the study's configs/critical-bs; batch and length come in pairs, see
  `sweeps.py`.
  """
  c = olmo(D, N, H, F)
  c.model.V = NEOX
  c.data.tokenizer = "sp:tokenizers/neox.model"
  c.data.seq_length = 512
  c.optim.learning_rate = 3.16e-3
  c.optim.kwargs.b2 = 0.99
  c.optim.averages = ("ema:0.99",)
  c.schedule.name = "constant"
  c.schedule.warmup = 0.25
  return c


def gauss_newton(D: int, N: int, H: int, F: int) -> ml_collections.ConfigDict:
  """Models of the Gauss-Newton study: RMSNorm, interleaved rotary positions.

  Queries and keys pass a LayerNorm with gain and bias over the whole width;
  every linear map starts at 1 / sqrt(fan in), the embedding at 1. AdamW is
  the study's baseline: 4M tokens an update, in passes of 32 rows.
  """
  c = c4()
  c.model.D, c.model.N, c.model.H, c.model.G, c.model.F = D, N, H, H, F
  c.model.V = T5
  c.model.norm, c.model.norm_eps = "rmsnorm", 1e-6
  c.model.positions = "rope_interleaved"
  c.model.qk_norm = "full"
  c.model.qk_norm_bias = True
  c.model.tied = False
  c.model.init, c.model.init_cut = "fan_in", 0.0
  c.model.embed_init_std = 1.0
  c.model.compute_dtype = "float32"
  c.model.remat = "full"
  c.model.isolate_documents = False
  c.model.restart_positions = False
  c.data.seq_length = 1024
  c.data.batch_size = 122 * 32
  c.train.microbatch_size = 32
  c.optim.learning_rate = 1e-2
  c.optim.kwargs.weight_decay = 0.0
  c.schedule.name = "constant"
  c.schedule.warmup = 0.0
  return c


def gauss_newton_start(
  c: ml_collections.ConfigDict, num_steps: int, rate: float
) -> ml_collections.ConfigDict:
  """AdamW in small batches, about 5 % of the tokens: where all methods start.

  Args:
    c: From `gauss_newton`.
    num_steps: Updates of 32 rows.
    rate: Peak learning rate; the first tenth warms up.
  """
  c.data.batch_size = 32
  c.train.num_tokens, c.train.num_steps = 0, num_steps
  c.optim.learning_rate = rate
  c.schedule.warmup = 0.1
  return c


def gauss_newton_solve(
  c: ml_collections.ConfigDict, inner_steps: int, rows: int, streaming: bool
) -> ml_collections.ConfigDict:
  """Full Gauss-Newton with Muon inside, as in the study.

  Four things differ from the study. The line search has a quarter of the
  batches, not as many again. Clipping is global. Gains are not decayed. The
  weights are averaged once an outer step.

  Args:
    c: From `gauss_newton`.
    inner_steps: N.
    rows: Of a microbatch.
    streaming: One microbatch an update (`lm/methods/newton.py`).
  """
  batches = inner_steps + max(1, inner_steps // 4)
  c.optim.name = "gauss_newton_microsteps" if streaming else "gauss_newton"
  c.optim.kwargs = dict(beta=0.95, adam_b1=0.9, adam_b2=0.999)
  c.gauss_newton.inner_steps = inner_steps
  c.train.microbatch_size = 0 if streaming else rows
  c.data.batch_size = rows if streaming else rows * batches
  return c
