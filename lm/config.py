"""The configuration as frozen dataclasses, validated whole.

`ml_collections_configs/base.py` declares each key with its unit and default;
the classes here only give the same keys types, so that the rest of `lm` reads
`config.model.D` and a type checker knows it. `from_config_dict` lists every
problem at once, before a device is touched.
"""

import dataclasses
import typing
from typing import Any

import ml_collections

from ml_collections_configs import base

from . import batches, rules, translations


class ConfigError(ValueError):
  """Problems of a configuration, one a line."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Section `model`; the last five fields are filled in by `resolve`."""

  D: int
  N: int
  H: int
  G: int
  F: int
  V: int
  norm: str
  norm_eps: float
  norm_bias: bool
  norm_position: str
  positions: str
  rope_base: float
  qk_norm: str
  qk_norm_type: str
  qk_norm_bias: bool
  mlp: str
  tied: bool
  attention_soft_cap: float
  logit_soft_cap: float
  isolate_documents: bool
  restart_positions: bool
  attention: str
  init: str
  init_std: float
  init_cut: float
  embed_init_std: float
  layers: str
  remat: str
  compute_dtype: str
  z_loss: float
  loss_chunk: int
  real_V: int = 0  # Pieces of the tokenizer; V is padded above it.
  L: int = 0  # Row length, data.seq_length.
  eos_id: int = 0  # Opens each document.
  pad_id: int = 0  # Fills the last row; as a target it weighs nothing.

  @property
  def K(self) -> int:
    """Channels of a head."""
    return self.D // self.H


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Section `data`."""

  root: str
  mixture: tuple[tuple[str, float], ...]
  tokenizer: str
  vocab_size: int
  seq_length: int
  batch_size: int
  batch_schedule: tuple[tuple[int, int], ...]
  prefetch: int


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """Section `optim`; `kwargs` are sorted (name, value) pairs."""

  name: str
  learning_rate: float
  kwargs: tuple[tuple[str, Any], ...]
  decay: str
  embeddings: str
  clip_norm: float
  ema: float


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
  """Section `schedule`."""

  name: str
  unit: str
  warmup: float
  decay: float
  start_factor: float
  end_factor: float
  alpha: float
  max_batch_size: int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Section `train`."""

  num_steps: int
  num_tokens: int
  microbatch_size: int
  stop_at_loss: float
  init_from: str


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Section `mesh`."""

  data: int
  fsdp: int
  tensor: int
  rules: str


@dataclasses.dataclass(frozen=True)
class GaussNewtonConfig:
  """Section `gauss_newton`."""

  optimizer: str
  inner_steps: int
  search_batches: int
  mode: str
  scope: str
  inner_schedule: str
  inner_warmup: float
  line_search: str
  num_alphas: int
  include_zero: bool
  damping: float
  adapt_damping: bool
  warm_start: float
  reset_inner_state: bool
  steps_per_batch: int
  cg_iters: int


@dataclasses.dataclass(frozen=True)
class QuantConfig:
  """Section `quant`."""

  method: str
  grid: str
  scale: str
  block_size: int
  paths: str
  scale_gradient: bool
  strength: float
  warmup: float
  curvature: str
  curvature_decay: float
  fisher_rows: int
  draws: int


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Section `eval`."""

  sets: tuple[str, ...]
  every: int
  batch_size: int
  batches: int
  final_batches: int


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """Section `checkpoint`."""

  every: int
  keep: int
  keep_period: int
  keep_best: bool
  async_save: bool


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """Section `log`."""

  every: int
  details_every: int
  progress: str
  tensorboard: bool
  wandb: bool
  profile_start: int
  profile_steps: int
  samples: int
  sample_tokens: int


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole configuration."""

  seed: int
  model: ModelConfig
  data: DataConfig
  optim: OptimConfig
  gauss_newton: GaussNewtonConfig
  schedule: ScheduleConfig
  train: TrainConfig
  mesh: MeshConfig
  quant: QuantConfig
  eval: EvalConfig
  checkpoint: CheckpointConfig
  log: LogConfig

  @property
  def tokens_per_step(self) -> int:
    """Targets in one update, the first if batches grow."""
    return self.data.batch_size * self.data.seq_length

  @property
  def num_steps(self) -> int:
    """Updates of the whole run."""
    return batches.num_steps(self)

  @property
  def microbatch_size(self) -> int:
    """Rows of one pass."""
    return self.train.microbatch_size or self.data.batch_size


def from_config_dict(config: ml_collections.ConfigDict) -> Config:
  """Converts and validates; touches no device and no file.

  Args:
    config: A dictionary with exactly the keys of `base.get_config()`.

  Raises:
    ConfigError: With every problem found, one a line.
  """
  problems = _key_problems(config, base.get_config(), "config")
  if problems:
    raise ConfigError("\n".join(problems))
  built = _build(Config, config)
  problems = rules.problems(built)
  if problems:
    raise ConfigError("\n".join(problems))
  return built


def resolve(
  config: Config, *, vocab_size: int, eos_id: int, pad_id: int, platform: str
) -> Config:
  """Fills in what the tokenizer and the devices decide.

  Args:
    config: Validated.
    vocab_size: Number of the tokenizer's ids.
    eos_id: Its id before each document.
    pad_id: Its id of padding.
    platform: cpu | gpu | tpu.

  Raises:
    ConfigError: If the model's vocabulary is smaller than the tokenizer's.
  """
  m, on_cpu = config.model, platform == "cpu"
  if m.V and m.V < vocab_size:
    raise ConfigError(
      f"config.model.V={m.V} is smaller than the tokenizer's {vocab_size} ids; "
      "pass --config.model.V=0 to take the tokenizer's."
    )
  pieces = m.V or vocab_size
  layers, dtype = m.layers, m.compute_dtype
  if layers == "auto":
    # On a CPU small models run faster unrolled, and compile fast enough.
    layers = "unroll" if on_cpu and m.N < 12 else "scan"
  if dtype == "auto":
    dtype = "float32" if on_cpu else "bfloat16"
  model = dataclasses.replace(
    m,
    V=-(-pieces // 128) * 128,
    real_V=pieces,
    L=config.data.seq_length,
    eos_id=eos_id,
    pad_id=pad_id,
    layers=layers,
    compute_dtype=dtype,
  )
  return dataclasses.replace(config, model=model)


def to_dict(config: Config) -> dict[str, Any]:
  """Nested plain dictionary, for JSON; inverse of `from_dict`."""
  plain = dataclasses.asdict(config)
  plain["optim"]["kwargs"] = dict(config.optim.kwargs)
  return plain


def from_dict(plain: dict[str, Any]) -> Config:
  """Rebuilds a configuration that `to_dict` made, through JSON or not.

  Raises:
    ConfigError: If a key is missing or unknown.
  """
  try:
    return _build(Config, translations.config(plain))
  except (KeyError, TypeError) as error:
    raise ConfigError(f"Stored configuration does not fit: {error}.") from error


def _build(cls: type, values: Any) -> Any:
  """Makes `cls` from a mapping, sections and tuples included."""
  made = {}
  for field in dataclasses.fields(cls):
    if field.name not in values and field.default is not dataclasses.MISSING:
      continue
    value = values[field.name]
    if dataclasses.is_dataclass(field.type):
      value = _build(typing.cast(type, field.type), value)
    elif field.name == "kwargs":
      value = tuple(sorted((k, _tuple(v)) for k, v in value.items()))
    else:
      value = _tuple(value)
    made[field.name] = value
  return cls(**made)


def _tuple(value: Any) -> Any:
  """Lists (JSON's) as tuples, all the way down."""
  if isinstance(value, list | tuple):
    return tuple(_tuple(v) for v in value)
  return value


def _key_problems(config: Any, reference: Any, path: str) -> list[str]:
  """Unknown keys, missing keys and wrong types against `base.py`."""
  problems = []
  for key in config.keys():
    if key not in reference:
      hint = rules.nearest(key, reference.keys())
      problems.append(f"{path}.{key} is not a key of base.py.{hint}")
  for key in reference.keys():
    name = f"{path}.{key}"
    if key not in config:
      problems.append(f"{name} is missing; start from base.get_config().")
      continue
    value, default = config[key], reference[key]
    if isinstance(default, ml_collections.ConfigDict):
      if not hasattr(value, "keys"):
        problems.append(f"{name}={value!r} must be a section of keys.")
      elif key != "kwargs":
        problems += _key_problems(value, default, name)
    elif not _fits(value, default):
      problems.append(
        f"{name}={value!r} is {type(value).__name__}, expected "
        f"{type(default).__name__} as in {default!r}."
      )
  return problems


def _fits(value: Any, default: Any) -> bool:
  """Whether `value` may stand where base.py has `default`."""
  if isinstance(default, bool) or isinstance(value, bool):
    return isinstance(value, bool) and isinstance(default, bool)
  if isinstance(default, float):
    return isinstance(value, int | float)
  if isinstance(default, tuple):
    return isinstance(value, tuple | list)
  return isinstance(value, type(default))
