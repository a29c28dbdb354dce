"""From what a user wrote, or a run has stored, to a checked `Config`.

`from_config_dict` lists every problem at once, before a device is touched.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import ml_collections

from ml_collections_configs import base

from . import constraints, translations
from .errors import ConfigError
from .names import nearest
from .schema import Config


def from_config_dict(
  config: ml_collections.ConfigDict,
  entries: Callable[[Config], list[str]] = lambda config: [],
) -> Config:
  """Converts and validates; touches no device and no file.

  Args:
    config: A dictionary with exactly the keys of `base.get_config()`.
    entries: What the chosen entries of the seams find wrong
      (`lm/step/build.py`), to be listed with the rest.

  Raises:
    ConfigError: With every problem found, one a line.
  """
  problems = _key_problems(config, base.get_config(), "config")
  if problems:
    raise ConfigError("\n".join(problems))
  built = _build(Config, config)
  problems = constraints.bounds(built)
  if not problems:
    problems = constraints.rules(built) + entries(built)
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
  plain["optim"]["by_role"] = _section(config.optim.by_role)
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
      value = _pairs(value)
    elif field.name == "by_role":
      value = _pairs({role: _pairs(fields) for role, fields in value.items()})
    else:
      value = _tuple(value)
    made[field.name] = value
  return cls(**made)


def _pairs(value: Any) -> Any:
  """Sorted (key, value) pairs of a section; its "kwargs" are pairs as well."""
  if not hasattr(value, "items"):
    return value
  return tuple(
    sorted(
      (k, _pairs(v) if k == "kwargs" else _tuple(v)) for k, v in value.items()
    )
  )


def _section(by_role: Any) -> dict[str, Any]:
  """Inverse of `_build` for `optim.by_role`."""
  found = {role: dict(fields) for role, fields in by_role}
  for fields in found.values():
    if "kwargs" in fields:
      fields["kwargs"] = dict(fields["kwargs"])
  return found


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
      hint = nearest(key, reference.keys())
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
      elif key not in ("kwargs", "by_role"):
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
