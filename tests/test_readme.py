"""The README and the page on training run: examples, and commands."""

import doctest
import importlib
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


def _commands():
  """Every `python -m lm.PROGRAM ...` of the pages and configurations."""
  files = [_ROOT / "README.md", *_ROOT.glob("docs/*.md"), *_ROOT.glob("ml_*/*")]
  for path in filter(pathlib.Path.is_file, files):
    text = path.read_text().replace("\\\n", " ")
    for match in re.finditer(r"python -m (lm[.\w]*)([^`\n|)]*)", text):
      yield path.name, match[1], match[2].partition(" -- ")[0]


@pytest.mark.parametrize(
  "program",
  "main evaluate generate report sweep export data.prepare tools.plan "
  "tools.estimate".split(),
)
def test_commands_of_the_pages_have_flags_that_exist(program):
  module = importlib.import_module(f"lm.{program}")
  known = {flag.name for flag in module._FLAGS}
  commands = [c for c in _commands() if c[1] == f"lm.{program}"]
  assert commands
  for page, _, arguments in commands:
    names = re.findall(r"(?<=\s)--(\w+)", arguments)
    assert set(names) <= known, f"{page}: {arguments}"


def test_files_it_names_exist():
  named = re.findall(r"`((?:docs|lm|ml_collections_configs)/[\w./]+)`", _README)
  assert named
  missing = [name for name in named if not (_ROOT / name).exists()]
  assert not missing
