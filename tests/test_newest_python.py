"""Which Python is found, by stand-ins that only pretend to be one."""

import os
import pathlib
import shutil
import subprocess

import pytest

_CI = pathlib.Path(__file__).resolve().parents[1] / ".ci"


@pytest.fixture
def machine(tmp_path):
  """A PATH of two folders, one of stand-ins, and pyenv's root."""
  for folder in ("bin", "pyenv/versions"):
    (tmp_path / folder).mkdir(parents=True)
  _stand_in(tmp_path / "bin/make", 'echo "make $*"')
  return tmp_path


def _stand_in(path, code):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"#!/bin/sh\n{code}\n")
  path.chmod(0o755)


def _python(machine, minor, where="pyenv/versions/3.{}.0/bin"):
  """A Python that answers only what its minor version is."""
  path = machine / where.format(minor) / f"python3.{minor}"
  _stand_in(path, "exit 0")
  return path


def _run(machine, program, *names):
  # Of the machine's own programs only those that are no Python.
  for tool in ("bash", "dirname"):
    link = machine / "bin" / tool
    if not link.exists():
      link.symlink_to(shutil.which(tool))
  env = {"PATH": str(machine / "bin"), "PYENV_ROOT": str(machine / "pyenv")}
  return subprocess.run(
    ["bash", _CI / program, *names],
    env=env, capture_output=True, text=True, cwd=os.sep,
  )  # fmt: skip


def test_one_that_only_pyenv_has_is_found_behind_its_shim(machine):
  wanted = _python(machine, 13)
  _stand_in(machine / "bin/python3.13", "echo 'pyenv: not found' >&2; exit 127")
  done = _run(machine, "find_python", "python3.13")
  assert (done.returncode, done.stdout) == (0, f"{wanted}\n")


def test_the_path_comes_first_and_names_come_in_order(machine):
  _python(machine, 13)
  on_path = _python(machine, 13, "bin")
  done = _run(machine, "find_python", "python3.14", "python3.13")
  assert done.stdout == f"{on_path}\n"


def test_none_is_an_error_that_says_what_to_do(machine):
  done = _run(machine, "find_python", "python3.13")
  assert (done.returncode, done.stdout) == (1, "")
  assert "python3.13 cannot make a virtual environment here" in done.stderr
  assert "make test PYTHON=/path/to/python3.13" in done.stderr


@pytest.mark.parametrize(
  ("default", "others", "chosen"),
  [
    (11, [12, 13, 14], 13),
    (11, [12, 14], 14),
    (11, [12], 12),
    (12, [12, 13], 13),
    (13, [12, 13], None),
    (13, [13, 14], 14),
    (11, [], None),
  ],
)
def test_the_newest(machine, default, others, chosen):
  _stand_in(machine / "bin/python3", f"echo {default}")
  for minor in others:
    _python(machine, minor)
  done = _run(machine, "newest")
  assert done.returncode == 0, done.stderr
  if chosen is None:
    assert done.stdout.splitlines() == [
      f"No Python here is newer than python3, which is 3.{default}: nothing "
      "to do."
    ]
  else:
    assert (
      f"make test PYTHON=python3.{chosen} VENV=.venv-python3.{chosen}"
      in done.stdout
    )
    assert ("nobody has tested it" in done.stdout) == (chosen == 14)
