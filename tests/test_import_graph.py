"""The import graph: no circle in any package, and rooms that are only rooms."""

import graphlib
import pathlib
import re

import grimp
import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGES = ("optim", "theory", "lm")
_PROGRAMS = 8  # Files that `lm/` itself holds at most.


@pytest.mark.parametrize("package", _PACKAGES)
def test_no_module_imports_itself_through_others(package):
  graph = grimp.build_graph(package, cache_dir=None)
  arrows = {
    module: graph.find_modules_directly_imported_by(module)
    for module in graph.modules
  }
  # Raises `CycleError`, whose message names a circle.
  order = list(graphlib.TopologicalSorter(arrows).static_order())
  assert set(order) >= graph.modules


def test_lm_holds_programs_and_rooms():
  folder = _ROOT / "lm"
  programs = sorted(p.stem for p in folder.glob("*.py"))
  programs.remove("__init__")
  assert len(programs) <= _PROGRAMS
  for program in programs:
    source = (folder / f"{program}.py").read_text()
    assert f"python -m lm.{program}" in source, program
    assert 'if __name__ == "__main__":' in source, program


def test_rooms_of_lm_export_nothing():
  """So that each name has one path."""
  for path in (_ROOT / "lm").rglob("__init__.py"):
    if path.parent.name != "lm":
      assert re.fullmatch(r'"""[^"]*"""\n', path.read_text()), path


def test_every_configuration_can_be_imported():
  """The name of its file is a name in Python."""
  for path in (_ROOT / "ml_collections_configs").glob("*.py"):
    assert path.stem.isidentifier(), path
