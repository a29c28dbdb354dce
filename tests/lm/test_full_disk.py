"""A full disk: one message and exit code 74, whatever the program writes."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from golden import make_runs

from lm import export, report
from lm.config import errors
from lm.data import prepare
from lm.runs import metrics

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_PROGRAMS = [
  "lm.main", "lm.evaluate", "lm.generate", "lm.report", "lm.sweep", "lm.export",
  "lm.data.prepare", "lm.tools.plan", "lm.tools.estimate",
]  # fmt: skip


@pytest.fixture
def full_disk(small_disk):
  """A file system without room."""
  with (small_disk / "filler").open("wb", buffering=0) as file:
    with contextlib.suppress(OSError):
      while True:
        file.write(bytes(4096))
  return small_disk


def _check(capsys):
  """Checks the message, and returns it."""
  said = capsys.readouterr().err
  assert said.startswith("error: ")
  assert re.search("No space left|Not enough disk space", said)
  assert "Traceback" not in said
  return said


def test_an_export_leaves_nothing_of_itself(full_disk, capsys):
  out = full_disk / "weights.npz"
  flags = [f"--workdir={make_runs.FOLDER / 'tiny'}", f"--out={out}"]
  assert export.main(flags) == errors.DISK
  assert str(out) in _check(capsys)
  assert [path.name for path in full_disk.iterdir()] == ["filler"]


def test_figures(full_disk, tmp_path, capsys):
  writer = metrics.JsonlWriter(tmp_path / "metrics.jsonl")
  writer.write(1, {"tokens": 1, "seconds": 1.0, "train/loss": 2.0})
  writer.close()
  flags = [str(tmp_path), f"--out={full_disk / 'figures'}"]
  assert report.main(flags) == errors.DISK
  _check(capsys)


@pytest.mark.parametrize("room", [0, 100_000, 600_000])
def test_prepared_data(tiny, full_disk, capsys, room):
  """Room runs out in the check of TFDS, in its writer, and in our rows."""
  filler = full_disk / "filler"
  with filler.open("r+b") as file:
    file.truncate(filler.stat().st_size - room)
  base = _ROOT / "ml_collections_configs" / "base.py"
  overrides = tiny.overrides | {"data.root": str(full_disk / "data")}
  flags = [f"--config.{key}={value}" for key, value in overrides.items()]
  assert prepare.main([f"--config={base}", *flags]) == errors.DISK
  _check(capsys)
  assert not list(full_disk.rglob("*.array_record"))


def _print_to_a_full_disk(*arguments):
  env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
  with open("/dev/full", "w") as full:
    done = subprocess.run(
      [sys.executable, "-m", *arguments],
      cwd=_ROOT, env=env, stdout=full, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
  assert done.returncode == errors.DISK
  assert done.stderr == "error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("program", _PROGRAMS)
def test_what_cannot_be_printed(program):
  _print_to_a_full_disk(program, "--help")


def test_a_table_that_does_not_reach_the_disk(tmp_path):
  """Python would print it at its very end, and say so in its own words."""
  (tmp_path / "s.json").write_text(
    json.dumps([{"config": "ml_collections_configs/tiny.py"}])
  )
  _print_to_a_full_disk("lm.sweep", f"--sweep={tmp_path}/s.json", "--list")
