"""Eight users' projects: each program runs as its user would run it."""

import importlib.util
import inspect
import os
import pathlib
import re
import subprocess
import sys

import pytest

import optim

_HERE = pathlib.Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]

# {program: (package it needs besides ours, as imported and as installed)}
_NEEDS = {
  "flax_linen": ("flax", "flax"),
  "flax_nnx": ("flax", "flax"),
  "equinox_mlp": ("equinox", "equinox"),
  "haiku_rnn": ("haiku", "dm-haiku"),
  "pinn": None,
  "cnn": None,
  "curve_fit": ("scipy", "scipy"),
  "explicit_mesh": None,
}


def _run(code_or_path, **variables):
  """Runs a program on this tree's packages, on the CPU as it comes."""
  env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(_ROOT))
  env.pop("XLA_FLAGS", None)  # The suite's eight devices.
  return subprocess.run(
    [sys.executable, *code_or_path],
    check=False,
    cwd=_HERE,
    env=env | variables,
    capture_output=True,
    text=True,
  )


def _need(name):
  """Leaves the case out, by name, where its package does not work."""
  module, package = _NEEDS[name] or (None, None)
  if module is None:
    return
  if importlib.util.find_spec(module) is None:
    pytest.skip(f"{name} needs {package}, which is not installed")
  done = _run(["-c", f"import {module}"])
  if done.returncode:
    reason = done.stderr.strip().splitlines()[-1]
    pytest.skip(f"{name} needs {package}, which does not import: {reason}")


def test_every_program_is_run():
  found = {path.stem for path in _HERE.glob("*.py")}
  assert {name for name in found if not name.startswith("test_")} == set(_NEEDS)


@pytest.mark.parametrize("name", _NEEDS)
def test_program(name):
  _need(name)
  done = _run([f"{name}.py"])
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout


@pytest.mark.parametrize("name", _NEEDS)
def test_program_is_short(name):
  lines = (_HERE / f"{name}.py").read_text().splitlines()
  assert sum(bool(line.strip()) for line in lines) < 60


@pytest.mark.parametrize("page", ["README.md", "docs/choose.md"])
def test_excerpts_are_of_the_programs(page):
  """Each line of an excerpt stands in its program, in this order."""
  text = (_ROOT / page).read_text()
  pattern = r"```python\n# tests/foreign/(\w+)\.py\n(.*?)```"
  excerpts = re.findall(pattern, text, re.DOTALL)
  assert len(excerpts) >= 3
  for name, excerpt in excerpts:
    lines = (_HERE / f"{name}.py").read_text().splitlines()
    lines = [line.strip() for line in lines]
    for line in filter(None, map(str.strip, excerpt.splitlines())):
      assert line in lines, (name, line)
      lines = lines[lines.index(line) + 1 :]


def test_arguments_of_the_tables_exist():
  """Those in the second column, of our transforms and of their options."""
  text = (_ROOT / "docs" / "choose.md").read_text()
  tables = text.split("## From other libraries")[1]
  rows = [line.split("|") for line in tables.splitlines() if "|" in line]
  ours = {name for row in rows for name in re.findall(r"`(\w+)=", row[2])}
  assert len(ours) > 30
  public = [getattr(optim, name) for name in optim.__all__]
  functions = [f for f in public if inspect.isfunction(f)]
  known = {p for f in functions for p in inspect.signature(f).parameters}
  assert ours <= known | set(optim.LevenbergMarquardt._fields)
  called = set(re.findall(r"(?<!torch\.)optim\.(\w+)", text))
  assert called
  assert not {name for name in called if not hasattr(optim, name)}


def test_page_runs():
  """Flax's TrainState with an optimiser that takes its data itself."""
  pytest.importorskip("flax", reason="docs/choose.md needs flax")
  text = (_ROOT / "docs" / "choose.md").read_text()
  blocks = re.findall(r"```python\n(import .*?)```", text, re.DOTALL)
  assert len(blocks) == 1
  done = _run(["-c", blocks[0] + "\nprint(loss_before, loss_after)"])
  assert done.returncode == 0, done.stderr
  before, after = map(float, done.stdout.split())
  assert after < 0.1 * before
