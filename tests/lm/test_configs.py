"""Every configuration is valid, and the dataclasses have base.py's keys."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import ml_collections
import pytest

from lm.config import load, ramp
from lm.config.schema import Config
from lm.model import params as param_table
from lm.step import build, methods
from ml_collections_configs import base, optimizers

_FOLDER = pathlib.Path(__file__).resolve().parents[2] / "ml_collections_configs"
_FILES = [
  path
  for path in sorted(_FOLDER.glob("*.py"))
  if "def get_config(" in path.read_text()
]


def _load(path):
  found = importlib.util.spec_from_file_location("loaded_config", path)
  module = importlib.util.module_from_spec(found)
  found.loader.exec_module(module)
  return module.get_config()


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_file_is_valid_and_survives_json(path):
  config = load.from_config_dict(_load(path), build.problems)
  plain = json.loads(json.dumps(load.to_dict(config)))
  assert load.from_dict(plain) == config


# Body and embedding-and-head parameters, millions, of the authors' tables.
_PRESETS = {
  "olmo150m": (151.1, 65.8),
  "olmo300m": (302.1, 65.8),
  "cbs85m": (85.0, 77.3),
  "cbs151m": (151.1, 103.0),
  "cbs302m": (302.1, 103.0),
  "cbs604m": (604.2, 206.0),
  "cbs1b2": (1208.3, 206.0),
  "gn45m": (12.6, 32.9),
  "gn150m": (85.0, 49.3),
  "nanodo": (18.9, 16.4),
}


@pytest.mark.parametrize("name", _PRESETS)
def test_preset_has_the_published_size(name):
  config = load.from_config_dict(_load(_FOLDER / f"{name}.py"))
  config = load.resolve(
    config, vocab_size=config.model.V, eos_id=1, pad_id=0, platform="cpu"
  )
  counts = param_table.count_params(config.model)
  body, rest = _PRESETS[name]
  assert counts.body / 1e6 == pytest.approx(body, rel=2e-3)
  positions = config.model.L * config.model.D
  learned = positions if config.model.positions == "learned" else 0
  found = counts.embedding + counts.head - learned
  assert found / 1e6 == pytest.approx(rest, rel=2e-3)


def test_dataclasses_have_the_keys_of_base():
  config = base.get_config()
  resolved = {"real_V", "L", "eos_id", "pad_id"}
  resolved |= {"branch_step", "branch_tokens"}
  for field in dataclasses.fields(Config):
    section = config[field.name]
    if isinstance(section, ml_collections.ConfigDict):
      names = {f.name for f in dataclasses.fields(field.type)} - resolved
      assert names == set(section.keys()), field.name


def test_base_is_locked():
  config = base.get_config()
  with pytest.raises(AttributeError):
    config.model.d = 3


def test_auto_values_depend_on_the_platform():
  config = load.from_config_dict(_load(_FOLDER / "olmo150m.py"))
  known = {"vocab_size": 32_100, "eos_id": 1, "pad_id": 0}
  cpu = load.resolve(config, platform="cpu", **known).model
  tpu = load.resolve(config, platform="tpu", **known).model
  assert (cpu.compute_dtype, tpu.compute_dtype) == ("float32", "bfloat16")
  assert (cpu.layers, tpu.layers) == ("scan", "scan")  # 12 layers.
  assert (cpu.V, cpu.real_V) == (32_128, 32_100)


def test_length_in_steps_or_tokens():
  config = base.get_config()
  config.train.num_tokens = 1025 * 1000
  config.data.batch_size, config.data.seq_length = 10, 100
  assert ramp.num_steps(load.from_config_dict(config)) == 1025
  config.train.num_tokens += 1
  assert ramp.num_steps(load.from_config_dict(config)) == 1026


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_each_optimiser_by_name_makes_a_first_update(name):
  config = load.from_config_dict(optimizers.get_config(name), build.problems)
  config = load.resolve(
    config, vocab_size=300, eos_id=1, pad_id=0, platform="cpu"
  )
  parts = build.build(config, jax.devices()[:1])
  assert methods.of(config).problems(config) == []
  assert parts.tx is not None


def test_an_unknown_optimiser_is_named_with_the_known_ones():
  with pytest.raises(ValueError, match="'kl_soup' is not one of muon, normuon"):
    optimizers.get_config("kl_soup")
