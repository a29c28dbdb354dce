"""The examples of docs/gauss_newton.md run, as they stand there."""

import pathlib
import re
import textwrap

import optim

_PAGE = pathlib.Path(__file__).parents[2] / "docs" / "gauss_newton.md"


def test_examples_run(capsys):
  text = _PAGE.read_text()
  blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  assert len(blocks) == 3
  names: dict = {}
  for block in blocks:
    exec(textwrap.dedent(block), names)
  loss, alpha = map(float, capsys.readouterr().out.split()[:2])
  assert loss < 1.0  # From log 4 = 1.39.
  assert 0 < alpha <= 1
  assert names["labels"]["blocks"]["1"] == dict(w="block 1")
  assert names["grad"]["embed"].shape == (50, 8)


def test_names_it_mentions_exist():
  text = _PAGE.read_text()
  called = set(re.findall(r"`(?:optim\.)?([a-zA-Z_]+)\(", text))
  called |= set(re.findall(r"optim\.([a-zA-Z_]+)\(", text))
  missing = {name for name in called if not hasattr(optim, name)}
  assert not missing
  files = re.findall(r"(?:tests|benchmarks)/[\w/]+\.py", text)
  assert len(files) >= 3
  assert all((_PAGE.parents[1] / name).exists() for name in files)
