"""The shell code of the launchers by shellcheck, which needs no network."""

import pathlib
import shutil
import subprocess
import sysconfig

import pytest
import yaml

_LAUNCH = pathlib.Path(__file__).parents[3] / "lm" / "launch"
_TASK = yaml.safe_load((_LAUNCH / "skypilot.yaml").read_text())
_SCRIPTS = {
  "tpu": (_LAUNCH / "tpu.sh").read_text(),
  "slurm": (_LAUNCH / "slurm.sh").read_text(),
  "skypilot setup": _TASK["setup"],
  "skypilot run": _TASK["run"],
}


def _findings(script):
  """What shellcheck, of the `dev` extra, has to say."""
  program = shutil.which("shellcheck", path=sysconfig.get_path("scripts"))
  done = subprocess.run(
    [program or "shellcheck", "--norc", "--shell=bash", "--format=gcc", "-"],
    input=script,
    capture_output=True,
    text=True,
  )
  assert done.returncode in (0, 1), done.stderr  # 2 and more: its own failure.
  return done.stdout


@pytest.mark.parametrize("name", _SCRIPTS)
def test_shellcheck_finds_nothing(name):
  assert _findings(_SCRIPTS[name]) == ""


@pytest.mark.parametrize("name", _SCRIPTS)
def test_shellcheck_would_find_an_error(name):
  assert "[SC2086]" in _findings(_SCRIPTS[name] + "\nrm $1\n")
