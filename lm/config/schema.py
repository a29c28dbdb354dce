"""The configuration as frozen dataclasses: types, bounds and units.

`ml_collections_configs/base.py` declares each key with its default and a
comment. The classes here declare the same keys with the bounds of single
values. Rules between keys are in `constraints.py`. This file imports nothing of
`lm`.

A new key gets a default here too, so that stored runs and exports without the
key can still be read.
"""

import dataclasses
from typing import Any


def _one_of(*choices: str) -> Any:
  """A field that takes one of some names."""
  return dataclasses.field(metadata={"choices": choices})


def _at_least(
  least: float, unit: str = "", default: Any = dataclasses.MISSING, **more: Any
) -> Any:
  """A field that takes numbers >= `least`; `most` may be told as well."""
  metadata = {"least": least, "unit": unit} | more
  return dataclasses.field(default=default, metadata=metadata)


def _above(bound: float) -> Any:
  """A field that takes numbers > `bound`."""
  return dataclasses.field(metadata={"above": bound})


# jax.random.key takes 32 bits and drops the others.
LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Section `model`; the last four fields are filled in by `resolve`.

  `mixer`, `ffn` and `product` name entries of `lm/model/seams.py`; the pairs
  beside each are the entry's own keys.
  """

  D: int = _at_least(1, "channels")
  N: int = _at_least(1, "layers")
  H: int = _at_least(1, "heads")
  G: int = _at_least(1, "heads")
  F: int = _at_least(1, "channels")
  V: int = _at_least(0, "pieces")
  norm: str = _one_of("layernorm", "rmsnorm")
  norm_eps: float = _above(0)
  norm_bias: bool
  norm_position: str = _one_of("pre", "after")
  positions: str = _one_of(
    "rope_half", "rope_interleaved", "alibi", "learned", "none"
  )
  rope_base: float = _above(0)
  qk_norm: str = _one_of("none", "full", "head")
  qk_norm_type: str = _one_of("layernorm", "rmsnorm")
  qk_norm_bias: bool
  mixer: str = "softmax"
  mixer_kwargs: tuple[tuple[str, Any], ...] = ()
  ffn: str = "dense"
  ffn_kwargs: tuple[tuple[str, Any], ...] = ()
  product: str = "plain"
  product_kwargs: tuple[tuple[str, Any], ...] = ()
  mlp: str
  tied: bool
  attention_soft_cap: float = _at_least(0)
  logit_soft_cap: float = _at_least(0)
  isolate_documents: bool
  restart_positions: bool
  attention: str = _one_of("xla", "cudnn", "splash")
  init: str = _one_of("mitchell", "fan_in", "megatron")
  init_std: float = _above(0)
  init_cut: float = _at_least(0, "deviations")
  embed_init_std: float = _at_least(0)
  layers: str = _one_of("auto", "scan", "unroll")
  remat: str
  compute_dtype: str = _one_of("auto", "float32", "bfloat16")
  z_loss: float = _at_least(0)
  loss_chunk: int = _at_least(0, "tokens")
  real_V: int = 0  # Pieces of the tokenizer; V is padded above it.
  L: int = 0  # Row length, data.seq_length.
  eos_id: int = 0  # Opens each document.
  pad_id: int = 0  # Fills the last row; as a target it weighs nothing.

  @property
  def K(self) -> int:
    """Channels of a head."""
    return self.D // self.H


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Section `data`."""

  root: str
  mixture: tuple[tuple[str, float], ...]
  tokenizer: str
  vocab_size: int = _at_least(1, "pieces")
  seq_length: int = _at_least(1, "tokens")
  batch_size: int = _at_least(1, "rows")
  batch_schedule: tuple[tuple[int, int], ...]
  limit_rows: int = _at_least(0, "rows", default=0)
  select: str = ""
  prefetch: int = _at_least(0, "batches")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
  """Section `optim`; `kwargs` and `by_role` are sorted (name, value) pairs."""

  name: str
  learning_rate: float = _at_least(0)
  kwargs: tuple[tuple[str, Any], ...]
  by_role: tuple[tuple[str, Any], ...] = ()
  decay: str = _one_of("matrices", "all")
  embeddings: str = _one_of("elementwise", "one_sided")
  clip_norm: float = _at_least(0)
  averages: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
  """Section `schedule`."""

  name: str = _one_of(
    "cosine", "wsd", "constant", "linear", "inverse_sqrt", "seesaw"
  )
  unit: str = _one_of("fraction", "steps", "tokens")
  warmup: float = _at_least(0)
  decay: float = _at_least(0)
  start_factor: float = _at_least(0)
  end_factor: float = _at_least(0)
  alpha: float
  offset: float = _at_least(0, "schedule.unit", default=0.0)
  allow_new_length: bool = False
  max_batch_size: int = _at_least(0, "rows")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """Section `train`; `..._kwargs` are sorted (name, value) pairs."""

  num_steps: int = _at_least(0, "updates")
  num_tokens: int = _at_least(0, "tokens")
  microbatch_size: int = _at_least(0, "rows")
  stop_at_loss: float = _at_least(0, "nats")
  stop_at_average: str = ""
  init_from: str
  branch_from: str = ""
  branch_step: int = 0  # Updates and targets of the run that is branched
  branch_tokens: int = 0  # from, at the branch (`lm/runs/branch.py`).
  objective: str = "next_token"  # A name of `lm/objectives/table.py`.
  objective_kwargs: tuple[tuple[str, Any], ...] = ()
  weights: str = "identity"  # A name of `lm/weights/table.py`.
  weights_kwargs: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Section `mesh`."""

  data: int
  fsdp: int
  tensor: int
  rules: str = _one_of("logical", "fsdp_shape")

  @property
  def sizes(self) -> tuple[int, int, int]:
    """Devices along the three axes; -1: the rest of them."""
    return self.data, self.fsdp, self.tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussNewtonConfig:
  """Section `gauss_newton`."""

  optimizer: str
  inner_steps: int = _at_least(1, "microbatches")
  search_batches: int = _at_least(0, "microbatches")
  mode: str = _one_of("quadratic", "prox_linear", "nonlinear")
  scope: str = _one_of("full", "layerwise")
  inner_schedule: str = _one_of(
    "constant",
    "global_cosine",
    "constant_with_inner_cosine",
    "cosine_with_global_schedule",
  )
  inner_warmup: float = _at_least(0)
  line_search: str = _one_of("grid", "quadratic", "none")
  num_alphas: int = _at_least(0, "candidates")
  include_zero: bool
  damping: float = _at_least(0)
  adapt_damping: bool
  warm_start: float = _at_least(0)
  reset_inner_state: bool
  steps_per_batch: int = _at_least(1, "updates")
  cg_iters: int = _at_least(0, "iterations")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantConfig:
  """Section `quant`."""

  method: str = _one_of("none", "ptq", "qat", "rat", "lotion")
  grid: str = _one_of(
    "int4",
    "int8",
    "mxint8",
    "fp4",
    "fp6_e2m3",
    "fp6_e3m2",
    "fp8_e4m3",
    "fp8_e5m2",
  )
  scale: str = _one_of("absmax", "pow2_floor", "pow2_ceil", "nvfp4")
  block_size: int = _at_least(0, "entries")
  paths: str
  scale_gradient: bool
  strength: float = _at_least(0)
  warmup: float
  curvature: str = _one_of("empirical", "sampled", "factors")
  curvature_decay: float
  fisher_rows: int
  draws: int = _at_least(2, "roundings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductConfig:
  """Section `product`; see `lm/model/product_slots.py`."""

  recipe: str = "none"
  overrides: tuple[Any, ...] = ()
  high_layers: int = _at_least(0, "layers", default=0)
  switch_at: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Section `eval`."""

  sets: tuple[str, ...]
  every: int = _at_least(0, "updates")
  batch_size: int = _at_least(1, "rows")
  batches: int = _at_least(0, "batches")
  final_batches: int = _at_least(0, "batches")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """Section `checkpoint`."""

  every: int = _at_least(0, "updates")
  keep: int = _at_least(1, "checkpoints")
  keep_period: int = _at_least(0, "updates")
  keep_best: bool
  async_save: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
  """Section `log`; `probes` are sorted (name, (key, value) pairs)."""

  every: int = _at_least(1, "updates")
  details_every: int = _at_least(0, "updates")
  progress: str = _one_of("auto", "bar", "plain", "none")
  tensorboard: bool
  wandb: bool
  profile_start: int = _at_least(0, "updates")
  profile_steps: int = _at_least(0, "updates")
  samples: int = _at_least(0, "texts")
  sample_tokens: int = _at_least(1, "tokens")
  probes: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A whole configuration."""

  seed: int = _at_least(0, most=LARGEST_SEED)
  model: ModelConfig
  data: DataConfig
  optim: OptimConfig
  gauss_newton: GaussNewtonConfig
  schedule: ScheduleConfig
  train: TrainConfig
  mesh: MeshConfig
  quant: QuantConfig
  product: ProductConfig = ProductConfig()
  eval: EvalConfig
  checkpoint: CheckpointConfig
  log: LogConfig

  @property
  def tokens_per_step(self) -> int:
    """Targets in one update, the first if batches grow."""
    return self.data.batch_size * self.data.seq_length

  @property
  def microbatch_size(self) -> int:
    """Rows of one pass."""
    return self.train.microbatch_size or self.data.batch_size
