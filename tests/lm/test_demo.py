"""The demo is drawn beside a stored run of its model by another optimiser."""

import json
import pathlib
import re
import subprocess

from lm import report
from lm.config import load
from lm.runs import read
from lm.step import build
from ml_collections_configs import demo

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _stored():
  """The folder that `make demo` draws beside its run."""
  make = ["make", "--dry-run", "demo"]
  lines = subprocess.run(
    make, check=True, cwd=_ROOT, capture_output=True, text=True
  ).stdout
  beside = re.search(r"lm\.report runs/demo (\S+) --out=runs/demo\n", lines)
  assert beside
  return _ROOT / beside[1]


def test_the_stored_run_differs_in_the_optimiser_only():
  stored = json.loads((_stored() / "config.json").read_text())
  stored = load.to_dict(load.from_dict(stored))  # With today's keys.
  stored = json.loads(json.dumps(stored))
  model = stored["model"]
  config = load.resolve(
    load.from_config_dict(demo.get_config(), build.problems),
    vocab_size=model["real_V"],
    eos_id=model["eos_id"],
    pad_id=model["pad_id"],
    platform="cpu",
  )
  found = json.loads(json.dumps(load.to_dict(config)))
  names = [c.pop("optim")["name"] for c in (stored, found)]
  assert names == ["adamw", "muon"]
  del stored["log"], found["log"]  # What was shown, not what was trained.
  assert stored == found


def test_the_stored_run_is_small_whole_and_without_times(tmp_path, capsys):
  folder = _stored()
  run = read.load_run(folder)
  assert "seconds" not in run.columns  # They would be another machine's.
  assert run.last("sotu")[0] == run.info["num_steps"]
  names = {path.name for path in folder.iterdir()}
  assert names == {"config.json", "run.json", "metrics.jsonl"}
  assert sum(path.stat().st_size for path in folder.iterdir()) < 80_000
  assert report.main([str(folder), f"--out={tmp_path}"]) == 0
  assert "stored_adamw  finished" in capsys.readouterr().out


def test_another_configuration_is_drawn_alone():
  make = ["make", "--dry-run", "demo", "CONFIG=configs/mine.py", "RUN=r"]
  lines = subprocess.run(
    make, check=True, cwd=_ROOT, capture_output=True, text=True
  ).stdout
  assert re.search(r"lm\.report r +--out=r\n", lines)
