"""A full disk: a message, nothing lost, and the run goes on with room."""

import os
import shutil
import subprocess

import pytest

from lm.config import errors
from lm.runs import checkpoint, metrics

_RUN = {"train__num_steps": 60, "checkpoint__every": 5, "checkpoint__keep": 50}


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


def test_a_full_disk_loses_nothing(tiny, small_disk, tmp_path):
  folder = small_disk / "run"
  code, output = tiny.run(folder, **_RUN)
  assert code == errors.DISK, output
  assert "No space left" in output
  assert "Traceback" not in output
  good = checkpoint.list_steps(folder)
  assert good
  roomy = tmp_path / "roomy"
  shutil.copytree(folder, roomy)
  code, output = tiny.run(roomy, **_RUN)
  assert code == 0, output
  whole = tmp_path / "whole"
  assert tiny.run(whole, **_RUN)[0] == 0
  a, b = metrics.read(roomy), metrics.read(whole)
  for key in ("train/loss", "train/grad_norm"):
    assert a[key].values.tolist() == b[key].values.tolist()
