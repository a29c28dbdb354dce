"""The shell code of the launchers by shellcheck, which needs no network."""

import pathlib
import re
import shutil
import subprocess
import sysconfig

import pytest
import yaml

from lm.launch import remote

_LAUNCH = pathlib.Path(__file__).parents[3] / "lm" / "launch"
_TASK = yaml.safe_load((_LAUNCH / "skypilot.yaml").read_text())
_RUN = remote.run("lm.main", ["--workdir=gs://bucket/runs/a", "it's", "$x"])
_SCRIPTS = {
  "slurm": (_LAUNCH / "slurm.sh").read_text(),
  "skypilot setup": _TASK["setup"],
  "skypilot run": _TASK["run"],
  "setup": remote.setup("gs://bucket/input", ["bucket"]),
  "run": _RUN,
  # Quoted, so shellcheck takes it for a text.
  "what run starts": re.findall(r"<<'END'\n(.*?)^END$", _RUN, re.S | re.M)[0],
  "status": remote.STATUS,
  "stop": remote.STOP,
  "logs": remote.logs(50, follow=True),
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
