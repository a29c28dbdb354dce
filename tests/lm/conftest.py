"""A tiny run: real text that Python ships, bytes, and a two-layer model."""

import os
import pathlib
import pydoc_data.topics
import subprocess
import sys

import ml_collections
import pytest
import waiting

from lm.config import load
from lm.config.schema import Config
from lm.data import prepare
from ml_collections_configs import base

_ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = _ROOT / "ml_collections_configs" / "base.py"


class Tiny:
  """Prepared data, and the overrides that make base.py tiny."""

  def __init__(self, folder: pathlib.Path):
    """Writes 120 help topics of Python as text files and prepares them."""
    text = folder / "text"
    text.mkdir(parents=True)
    for name, topic in sorted(pydoc_data.topics.topics.items())[:120]:
      (text / f"{name.replace(' ', '_')}.txt").write_text(topic)
    self.corpus = f"dir:{text}"
    self.overrides = {
      "model.D": 32,
      "model.N": 2,
      "model.H": 2,
      "model.G": 2,
      "model.F": 64,
      "data.root": str(folder / "data"),
      "data.mixture": ((self.corpus, 1.0),),
      "data.tokenizer": "bytes",
      "data.seq_length": 32,
      "data.batch_size": 8,
      "eval.sets": (self.corpus,),
      "eval.every": 0,
      "eval.batch_size": 8,
      "eval.final_batches": 2,
      "train.num_tokens": 0,
      "train.num_steps": 6,
      "checkpoint.every": 0,
      "log.every": 1,
      "log.samples": 0,
      "log.progress": "none",
    }
    config = self.config()
    prepare.prepare(config.data, config.eval.sets, log=lambda _: None)

  def config_dict(self, **changes) -> ml_collections.ConfigDict:
    """base.py with the overrides; `changes` spell dots as two underscores."""
    config = base.get_config()
    for key, value in (self.overrides | _dotted(changes)).items():
      with config.unlocked():
        config.update_from_flattened_dict({key: value})
    return config

  def config(self, **changes) -> Config:
    """The same, validated."""
    return load.from_config_dict(self.config_dict(**changes))

  def flags(self, workdir: pathlib.Path, **changes) -> list[str]:
    """Arguments of `python -m lm.main` for the same."""
    values = self.overrides | _dotted(changes)
    return [f"--config={BASE}", f"--workdir={workdir}"] + [
      f"--config.{key}={value}" for key, value in values.items()
    ]

  def start(
    self, workdir: pathlib.Path, *flags: str, env=None, **changes
  ) -> subprocess.Popen:
    """Starts `python -m lm.main` on one device."""
    return subprocess.Popen(
      [
        sys.executable,
        "-m",
        "lm.main",
        *self.flags(workdir, **changes),
        *flags,
      ],
      cwd=_ROOT,
      env=one_device_env() | (env or {}),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def run(self, workdir: pathlib.Path, *flags: str, **changes):
    """Runs it to its end; returns (exit code, output)."""
    process = self.start(workdir, *flags, **changes)
    output = process.communicate(timeout=waiting.LONG)[0]
    return process.returncode, output


def one_device_env() -> dict[str, str]:
  """The environment without the eight devices of the test process."""
  return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def _dotted(changes: dict) -> dict:
  return {key.replace("__", "."): value for key, value in changes.items()}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
  """The tiny run of this test session; its data is never changed."""
  return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 1.5 MB; a checkpoint of the tiny run takes 0.3 MB."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)]
  if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
    pytest.skip("mounting a small file system needs root")
  yield disk
  subprocess.run(["umount", "-l", str(disk)], check=True)
