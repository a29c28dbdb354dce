"""A full disk: a message, nothing lost, and the run goes on with room."""

import shutil

from lm.config import errors
from lm.runs import checkpoint, metrics

_RUN = {"train__num_steps": 60, "checkpoint__every": 5, "checkpoint__keep": 50}


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
