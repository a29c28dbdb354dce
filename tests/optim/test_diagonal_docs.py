"""The examples of docs/diagonal.md run, one after the other."""

import pathlib
import re

_PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "diagonal.md"


def test_examples_run():
  blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
  assert len(blocks) == 2
  names: dict = {}
  for block in blocks:
    exec(compile(block, str(_PAGE), "exec"), names)
  assert len(names["losses"]) == 30
