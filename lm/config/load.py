"""From what a user wrote, or a run has stored, to a checked `Config`.

`from_config_dict` lists every problem at once, before a device is touched.
"""

import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections

from ml_collections_configs import base

from . import constraints, options, translations
from .errors import ConfigError, InputError
from .names import nearest
from .schema import Config

# Sections of sections. Their keys, and those of "...kwargs", belong to the
# optimiser or to an entry of a seam.
_SECTIONS = ("by_role", "probes")


def import_file(file: str) -> types.ModuleType:
  """The module of a Python file, executed anew.

  Raises:
    InputError: If there is no such file, or it raises an error.
  """
  if not os.path.isfile(file):
    raise InputError(
      f"There is no file {file}; paths are relative to {os.getcwd()}."
    )
  name = re.sub(r"\W", "_", os.path.abspath(file))
  found = importlib.util.spec_from_file_location(name, file)
  if found is None or found.loader is None:
    raise InputError(f"{file} is not a Python file.")
  module = sys.modules[name] = importlib.util.module_from_spec(found)
  with _reading(file):
    found.loader.exec_module(module)
  return module


def from_file(path: str) -> ml_collections.ConfigDict:
  """The configuration that a file makes, not yet checked.

  Args:
    path: FILE.py, or FILE.py:ARGUMENT, which its `get_config` is given.

  Raises:
    InputError: If there is no such file, or it makes no configuration.
  """
  file, _, argument = path.partition(":")
  get_config = getattr(import_file(file), "get_config", None)
  if get_config is None:
    raise InputError(f"{file} has no function get_config.")
  with _reading(path):
    config = get_config(argument) if argument else get_config()
  if not isinstance(config, ml_collections.ConfigDict):
    raise InputError(
      f"get_config of {file} returned {type(config).__name__}, expected a "
      "ConfigDict, as base.get_config() does."
    )
  return config


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
  """Names the file, and the line where it can, in what a user's file raises."""
  try:
    yield
  except SyntaxError as error:  # Its text has the line.
    raise InputError(f"{path} could not be read: {error}") from error
  except Exception as error:
    place = traceback.extract_tb(error.__traceback__)[-1]
    raise InputError(
      f"{path} could not be read: {place.filename}, line {place.lineno}: "
      f"{type(error).__name__}: {error}"
    ) from error


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
  made = with_product(built)
  if not problems:
    problems = constraints.rules(built) + entries(made)
  if problems:
    raise ConfigError("\n".join(problems))
  return made


def with_product(config: Config, recipe: str | None = None) -> Config:
  """The configuration whose model has the entry of `config.product`, if any.

  Args:
    config: It.
    recipe: In place of `config.product.recipe`, e.g. of `switch_at`.
  """
  p, m = config.product, config.model
  recipe = p.recipe if recipe is None else recipe
  if recipe == "none" and not p.overrides and m.product != "slots":
    return config
  if p == type(p)():  # The model's own keys choose the entry.
    return config
  pairs = (
    ("high_layers", p.high_layers),
    ("overrides", p.overrides),
    ("recipe", recipe),
  )
  model = dataclasses.replace(m, product="slots", product_kwargs=pairs)
  return dataclasses.replace(config, model=model)


def product_phases(config: Config) -> list[tuple[int, Config]]:
  """(updates made before, configuration) of each recipe of a run, in order."""
  later = config.product.switch_at
  return [(0, config), *((at, with_product(config, r)) for at, r in later)]


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
  for section in (plain["optim"], plain["model"], plain["train"]):
    section |= {k: dict(section[k]) for k in section if k.endswith("kwargs")}
  plain["log"]["probes"] = {k: dict(v) for k, v in config.log.probes}
  plain["optim"]["by_role"] = _section(config.optim.by_role)
  return plain | {translations.FORMAT: 1}


def told(config: Config) -> dict[str, Any]:
  """`to_dict` without the fields that have the default of the schema.

  A new key has a default there, so what this returns of an old configuration
  stays as it was: names of runs are hashes of it.
  """
  plain = to_dict(config)
  del plain[translations.FORMAT]
  return _without_defaults(config, plain)


def _without_defaults(section: Any, plain: dict[str, Any]) -> dict[str, Any]:
  found = {}
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    if field.default is not dataclasses.MISSING and value == field.default:
      continue
    found[field.name] = plain[field.name]
    if dataclasses.is_dataclass(value):
      found[field.name] = _without_defaults(value, plain[field.name])
  return found


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
    elif field.name in _SECTIONS:
      value = _pairs({name: _pairs(keys) for name, keys in value.items()})
    elif field.name.endswith("kwargs"):
      value = _pairs(value)
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
  """Lists (JSON's) as tuples and sections as dicts, all the way down."""
  if isinstance(value, list | tuple):
    return tuple(_tuple(v) for v in value)
  if hasattr(value, "items"):
    return {k: _tuple(v) for k, v in value.items()}
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
      elif key == "probes":
        problems += [
          f"{name}.{probe}={keys!r} must be a section of keys."
          for probe, keys in value.items()
          if not hasattr(keys, "keys")
        ]
      elif key not in _SECTIONS and not key.endswith("kwargs"):
        problems += _key_problems(value, default, name)
    elif problem := options.misfit(name, value, default):
      problems.append(problem)
  return problems
