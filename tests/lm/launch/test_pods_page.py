"""The commands of docs/pods.md, expanded by a shell and then parsed by us."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from lm.config import errors, load
from lm.tools import sweeps

_ROOT = pathlib.Path(__file__).parents[3]
_PAGE = (_ROOT / "docs" / "pods.md").read_text()
_STUBS = (
  "python", "gcloud", "xpk", "sky", "sbatch", "pip", "ssh-add",
  "lm/launch/tpu.sh",
)  # fmt: skip


def _commands(tmp_path):
  """Arguments of each command of the page, as bash hands them over."""
  stubs = "".join(
    f"{name}() {{ printf '%s\\0' {name} \"$@\" $'\\x1e'; }}\n"
    for name in _STUBS
  )
  blocks = re.findall(r"```sh\n(.*?)```", _PAGE, re.DOTALL)
  environment = {k: v for k, v in os.environ.items() if k[:4] != "TPU_"}
  done = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", stubs + "".join(blocks)],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.stderr == ""
  calls = done.stdout.split("\x1e\0")[:-1]
  return [call.split("\0")[:-1] for call in calls]


@pytest.fixture
def commands(tmp_path):
  """The commands of the page."""
  return _commands(tmp_path)


def test_the_tpu_script_takes_what_the_page_gives_it(commands):
  ours = [c[1:] for c in commands if c[0] == "lm/launch/tpu.sh"]
  script = (_ROOT / "lm" / "launch" / "tpu.sh").read_text()
  known = set(re.findall(r"^  (\w+)\)", script, re.MULTILINE))
  assert {c[0] for c in ours} == known - {"stop"}


def test_what_sets_a_worker_up_is_a_script(commands):
  (script,) = [c[2] for c in commands if c[1:2] == ["all"]]
  subprocess.run(["bash", "-n", "-c", script], check=True)
  assert script.startswith("bucket=my-bucket; set -e\n")


def _config(words, monkeypatch):
  """The configuration that the flags of a command make, validated."""
  given = [word for word in words if word.startswith("--config")]
  given = [g.replace("=ml_coll", f"={_ROOT}/ml_coll") for g in given]
  monkeypatch.setattr(sys, "argv", ["main", *given])  # Overrides come from it.
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", flag_values=values)
  values(sys.argv)
  return load.from_config_dict(values.config)


def test_configurations_of_the_page_are_valid(commands, monkeypatch):
  trained = [c for c in commands if any("--config=" in word for word in c)]
  assert len(trained) >= 6
  for command in trained:
    assert _config(command, monkeypatch).train.num_steps == 12_500


def test_sweeps_and_files_of_the_page_exist(commands):
  words = [word for command in commands for word in command]
  names = {w.split("=")[1] for w in words if w.startswith("--sweep=")}
  assert names == {"cbs_151m"}
  assert len(sweeps.load_sweep("cbs_151m")) == 9
  assert "--array=0-8" in words
  files = {w for w in words if w.startswith("lm/launch/")}
  scripts = {"slurm.sh", "skypilot.yaml", "tpu.sh"}
  assert files == {f"lm/launch/{name}" for name in scripts}
  assert all((_ROOT / file).is_file() for file in files)


def test_the_cluster_starts_again_what_was_stopped_or_lost(commands):
  (create,) = [c for c in commands if c[:3] == ["xpk", "workload", "create"]]
  codes = f"{errors.PREEMPTED},{errors.PEER_LOST}"
  assert f"--restart-on-exit-codes={codes}" in create


def test_what_the_container_runs_is_what_the_page_trains_elsewhere(
  tmp_path, monkeypatch
):
  _commands(tmp_path)
  script = (tmp_path / "pod.sh").read_text()
  stubs = "cp() { :; }\npip() { :; }\nexec() { printf '%s\\0' \"$@\"; }\n"
  done = subprocess.run(
    ["bash", "-c", stubs + script], capture_output=True, text=True
  )
  words = done.stdout.split("\0")[:-1]
  assert words[:3] == ["python", "-m", "lm.main"]
  assert "--distributed=auto" in words
  config = _config(words, monkeypatch)
  assert config.data.mixture == (("dir:c4-part", 1.0),)
  assert config.eval.sets == ("dir:c4-part",)
  assert config.train.microbatch_size == 64
