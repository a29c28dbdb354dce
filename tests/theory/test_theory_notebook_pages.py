"""The stored notebooks say what they show. Nothing is executed here."""

import json
import pathlib
import re

import pytest

_FOLDER = pathlib.Path(__file__).resolve().parents[2] / "notebooks"
_NAMES = sorted(path.stem for path in _FOLDER.glob("theory_*.py"))


def _script_cells(name):
  """(kind, source) of each cell of the percent script."""
  body = (_FOLDER / f"{name}.py").read_text().split("# ---\n", 2)[2]
  for block in re.split(r"^# %%", body, flags=re.MULTILINE)[1:]:
    head, _, source = block.partition("\n")
    source = source.strip("\n")
    if "[markdown]" in head:
      lines = source.split("\n")
      assert all(x.startswith("#") or not x for x in lines)  # No code.
      source = re.sub(r"^# ?", "", source, flags=re.MULTILINE)
    yield "markdown" if "[markdown]" in head else "code", source


def _cells(name):
  """Cells of the stored notebook, with their sources as one string."""
  cells = json.loads((_FOLDER / f"{name}.ipynb").read_text())["cells"]
  for cell in cells:
    cell["source"] = "".join(cell["source"])
  return cells


def _outputs(cell, kind):
  return [x for x in cell.get("outputs", []) if x["output_type"] == kind]


def test_there_are_notebooks():
  assert len(_NAMES) == 14


@pytest.mark.parametrize("name", _NAMES)
def test_script_and_notebook_have_the_same_cells(name):
  stored = [(c["cell_type"], c["source"].strip("\n")) for c in _cells(name)]
  assert stored == list(_script_cells(name))


@pytest.mark.parametrize("name", _NAMES)
def test_every_figure_is_described_after_it(name):
  """A screen reader gets the text cell; images in outputs have no alt text."""
  cells = _cells(name)
  figures = 0
  for cell, following in zip(cells, [*cells[1:], None], strict=True):
    images = len(_outputs(cell, "display_data"))
    assert images <= 1  # One figure a cell, so that the text is about it.
    assert not _outputs(cell, "error")
    assert all(x["name"] == "stdout" for x in _outputs(cell, "stream"))
    if images:
      assert following["cell_type"] == "markdown"
      assert following["source"].startswith("**Figure.** ")
      assert len(following["source"]) > 100
      figures += 1
    elif cell["cell_type"] == "code":
      assert "plt.show()" not in cell["source"]  # It was executed.
  assert figures >= 1


@pytest.mark.parametrize("name", _NAMES)
def test_conclusion_quotes_what_the_notebook_prints(name):
  *cells, last = _cells(name)
  assert last["source"].startswith("## What came out\n")
  printed = "\n".join(
    "".join(x["text"]) for cell in cells for x in _outputs(cell, "stream")
  )
  assert printed
  # Settings may be quoted too.
  known = printed + "\n".join(
    c["source"] for c in cells if c["cell_type"] == "code"
  )
  for number in re.findall(r"\d+\.\d+", last["source"]):
    whole, _, rest = number.partition(".")
    whole = "0?" if whole == "0" else whole
    found = re.search(rf"(?<![\d.]){whole}\.{rest}(?!\d)", known)
    assert found, f"{name} does not print {number}"
