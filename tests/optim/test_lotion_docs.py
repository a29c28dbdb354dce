"""What docs/lotion.md shows, runs; what it names, exists."""

import doctest
import pathlib
import re

import optim

_PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "lotion.md"


def test_examples_run():
  failed, tried = doctest.testfile(str(_PAGE), module_relative=False)
  assert tried >= 25
  assert failed == 0


def test_names_exist():
  text = _PAGE.read_text()
  names = set(re.findall(r"optim\.(\w+)", text))
  assert len(names) > 15
  assert not {name for name in names if not hasattr(optim, name)}
  files = re.findall(r"`(tests/[\w/]+\.py)`", text)
  modules = re.findall(r"python -m (benchmarks\.\w+)", text)
  files += [f"{name.replace('.', '/')}.py" for name in modules]
  assert len(files) >= 3
  assert not [f for f in files if not (_PAGE.parents[1] / f).exists()]
