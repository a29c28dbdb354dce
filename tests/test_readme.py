"""The README and the page on training run: examples, and commands."""

import doctest
import importlib
import itertools
import pathlib
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from lm.cli import flags
from lm.config import load
from lm.data import rows
from lm.probes import table as probes
from lm.step import build
from lm.tools import estimate

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


def test_file_of_rows_of_the_page_on_training(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = (_ROOT / "docs/training.md").read_text()
  (block,) = re.findall(r"```python\n(import.*?)```", text, re.DOTALL)
  exec(compile(block, "docs/training.md", "exec"), {})
  split = SimpleNamespace(rows=10_000)
  meta = SimpleNamespace(corpus="sotu", splits={"train": split})
  (numbers,) = rows._read_selection("third.npz", [SimpleNamespace(meta=meta)])
  assert list(numbers) == list(range(0, 10_000, 3))


@pytest.mark.parametrize("target", ["demo", "test", "check", "slow", "bench"])
def test_make_targets_exist(target):
  assert f"make {target}" in _README
  makefile = (_ROOT / "Makefile").read_text()
  assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_make_help_lists_every_target():
  done = subprocess.run(
    ["make", "help"], check=True, cwd=_ROOT, capture_output=True, text=True
  )
  makefile = (_ROOT / "Makefile").read_text().replace("\\\n", " ")
  targets = re.search(r"^\.PHONY: (.*)", makefile, re.MULTILINE)[1].split()
  listed = re.findall(r"^([a-z]+) +\w", done.stdout, re.MULTILINE)
  assert sorted(listed) == sorted(targets)
  for name in ("PYTHON", "TESTS", "CONFIG", "RUN"):
    assert name in done.stdout
  assert max(map(len, done.stdout.splitlines())) <= 80


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


def _pages():
  return [
    _ROOT / "README.md",
    *_ROOT.glob("docs/*.md"),
    *_ROOT.glob("ml_*/*.py"),
  ]


def _words(text):
  """The words of the command that a text begins with."""
  lines = text.replace("\\\n", " ").split("\n")
  for end in range(1, len(lines) + 1):
    try:
      words = shlex.split(" ".join(lines[:end]), comments=True)
    except ValueError:  # A quotation goes on in the next line.
      continue
    return list(
      itertools.takewhile(lambda word: word not in ("|", "&&"), words)
    )
  raise ValueError(text)


def _commands():
  """Every `python -m lm.PROGRAM FLAGS` of the pages and configurations."""
  for path in _pages():
    for match in re.finditer(r"python -m (lm[.\w]*)( [^`]+)", path.read_text()):
      words = _words(match[2])
      if any(word.startswith("--") for word in words):
        yield path.name, match[1], words


def _examples():
  """The words of every line of flags in docs/training.md."""
  text = (_ROOT / "docs/training.md").read_text()
  for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
    for line in re.finditer(r"^--", block, re.MULTILINE):
      yield _words(block[line.start() :])
  yield from map(_words, re.findall(r"`(--config\.[^`]*)`", text))


class _Stop(BaseException):
  """Ends a program where its flags are parsed, or were refused."""


def _parsed(program, words, monkeypatch):
  """What the program would be given; a wrong flag raises."""
  module, parse = importlib.import_module(program), flags.parse

  def parsed(*args, **options):
    try:
      raise _Stop(parse(*args, **options))
    except ValueError as error:
      raise _Stop(error) from error

  given = [word for word in words if not word.startswith("$")]
  with monkeypatch.context() as patch:
    patch.setattr(flags, "parse", parsed)
    with pytest.raises(_Stop) as stop:
      module.main(given)
  (given,) = stop.value.args
  if isinstance(given, ValueError):
    raise given
  return given


def _checked(config):
  """The configuration as `lm.main` checks it."""
  return load.from_config_dict(
    config, lambda c: [*build.problems(c), *probes.problems(c)]
  )


@pytest.mark.parametrize(
  "program",
  "main evaluate generate report sweep export data.prepare tools.plan "
  "tools.estimate tools.coordinates".split(),
)
def test_commands_of_the_pages_are_accepted(program, monkeypatch):
  commands = [c for c in _commands() if c[1] == f"lm.{program}"]
  assert commands
  for page, name, words in commands:
    try:
      given = _parsed(name, words, monkeypatch)
      if getattr(given, "config", None) is not None:
        _checked(given.config)
    except ValueError as error:
      raise AssertionError(f"{page}: {words}") from error


@pytest.mark.parametrize("words", _examples(), ids=" ".join)
def test_examples_of_keys_are_accepted(words):
  words = ["--config=ml_collections_configs/tiny.py", *words]
  config = _checked(flags.parse(words, None, (flags.CONFIG,)).config)
  build.build(estimate.resolve(config, "cpu"), jax.devices()[:1])


def test_files_it_names_exist():
  files = r"(?:docs/|lm/|ml_collections_configs/|notebooks)[\w./]*"
  named = re.findall(rf"`({files})`|\]\(({files})", _README)
  assert len(named) > 20
  missing = [a + b for a, b in named if not (_ROOT / (a + b)).exists()]
  assert not missing


def test_results_stand_in_their_pages():
  table = _README.split("## Results")[1].split("##")[0]
  rows = re.findall(r"^\|.*\| (.*) \| .*\]\((docs/\w+\.md)", table, re.M)
  assert len(rows) == 3
  for result, page in rows:
    text = (_ROOT / page).read_text()
    numbers = re.findall(r"\d+\.\d+(?:e-\d+)?", result)
    assert len(numbers) > 1
    assert not [n for n in numbers if not re.search(rf"\b{n}\b", text)], page
