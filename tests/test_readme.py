"""The README and the page on training run: examples, and commands."""

import doctest
import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_README = (_ROOT / "README.md").read_text()


def test_examples():
  failed, tried = doctest.testfile(str(_ROOT / "README.md"), False)
  assert tried >= 10
  assert failed == 0


def test_examples_of_the_page_on_training():
  failed, tried = doctest.testfile(str(_ROOT / "docs/training.md"), False)
  assert tried >= 7
  assert failed == 0


@pytest.mark.parametrize("target", ["demo", "test", "check", "slow", "bench"])
def test_make_targets_exist(target):
  assert f"make {target}" in _README
  makefile = (_ROOT / "Makefile").read_text()
  assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize(
  "module", sorted(set(re.findall(r"python -m (lm[.\w]*)", _README)))
)
def test_programs_answer_help(module):
  done = subprocess.run(
    [sys.executable, "-m", module, "--help"],
    check=False,
    cwd=_ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert f"python -m {module} " in done.stdout


def test_files_it_names_exist():
  named = re.findall(r"`((?:docs|lm|ml_collections_configs)/[\w./]+)`", _README)
  assert named
  missing = [name for name in named if not (_ROOT / name).exists()]
  assert not missing
