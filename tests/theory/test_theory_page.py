"""The page on the package: its examples run, its table names what exists."""

import doctest
import pathlib
import re

import theory

_PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs/theory.md"


def test_examples_of_the_page_run():
  failed, tried = doctest.testfile(str(_PAGE), False)
  assert tried >= 15
  assert failed == 0


def test_public_functions_are_on_the_page():
  text = _PAGE.read_text()
  named = set(re.findall(r"`(?:theory\.)?([a-z_0-9]+)[`(]", text))
  functions = {
    name
    for name in theory.__all__
    if name[0].islower() and not name.startswith("theta_")
  }
  assert functions - named == set()
  assert "`theta_*`" in text  # One entry stands for all of them.
