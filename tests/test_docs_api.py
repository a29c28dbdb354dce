"""The page docs/api.md is fresh, whole, and its words of state are right."""

import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGE = (_ROOT / "docs/api.md").read_text()
_ENTRIES = dict(re.findall(r"^### (\S+)\n(.*?)(?=^#|\Z)", _PAGE, re.M | re.S))


def test_the_command_says_that_the_page_is_up_to_date():
  done = subprocess.run(
    [sys.executable, "docs/make_api.py", "--check"],
    check=False,
    cwd=_ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["optim", "theory"])
def test_every_public_name_has_its_arguments(package):
  module = importlib.import_module(package)
  shown = {k.split(".")[1] for k in _ENTRIES if k.startswith(f"{package}.")}
  assert shown == set(module.__all__)
  for name in module.__all__:
    value = getattr(module, name)
    entry = _ENTRIES[f"{package}.{name}"].replace("\\", "")
    if inspect.isfunction(value):
      summary = inspect.getdoc(value).splitlines()[0]
      assert summary in entry, name
      signature = entry.split("```")[1]
      for argument in inspect.signature(value).parameters:
        assert re.search(rf"\b{argument}\b", signature), (name, argument)


def test_links_lead_to_headings():
  anchors = {title.lower().replace(".", "") for title in _ENTRIES}
  links = set(re.findall(r"\]\(#([^)]*)\)", _PAGE))
  assert len(links) > 150
  assert links <= anchors


def test_words_of_state_by_hand():
  # A square matrix of width d has factors and bases L, R, Q_L, Q_R of d^2 each;
  # a block has 4 of these and 2 of d x 4 d, whose R and Q_R are 16 d^2.
  square, wide = 4, 2
  moments = 2
  both = (square * 4 + wide * (2 + 2 * 16)) / 12
  short = (square * 2 + wide * 2) / 12
  rows = dict(
    (call, float(words))
    for words, call in re.findall(r"^- ([\d.]+): `(.*)`$", _PAGE, re.M)
  )
  for call, wanted in (
    ("scale_by_soap()", moments + both),
    ("scale_by_soap(one_sided=True)", moments + short),
    ("scale_by_soap(factorized=True)", moments - 1 + both),
    ("scale_by_soap(one_sided=True, factorized=True)", moments - 1 + short),
    ("scale_by_shampoo()", moments + both),
    ("scale_by_muon()", 1),
    ("average_weights(optax.identity(), 0.99)", 1),
    ("lotion_adamw(1e-3, Quantizer(INT4), 1.0)", 3),
  ):
    assert rows[call] == pytest.approx(wanted, abs=0.07), call
