"""The rooms: no path has two meanings, and `help` explains every argument."""

import importlib
import inspect
import pathlib
import pkgutil
import re
import subprocess
import sys
import types

import optax
import pytest

import optim

ROOMS = [
  "averages",
  "common",
  "curvature",
  "diagonal",
  "lotion",
  "matrices",
  "methods",
  "newton",
  "rounding",
]
MODULES = [
  module.name
  for module in pkgutil.walk_packages(optim.__path__, prefix="optim.")
]
FACTORIES = [
  name for name in optim.__all__ if inspect.isfunction(getattr(optim, name))
]


def test_the_package_holds_rooms_and_nothing_else():
  folder = pathlib.Path(optim.__file__).parent
  files = {p.name for p in folder.glob("*.py")}
  assert files == {"__init__.py"}
  assert (
    sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "_")
    == ROOMS
  )
  # A room's own file has a docstring and no names: nothing is exported twice.
  for room in ROOMS:
    tree = (folder / room / "__init__.py").read_text()
    assert re.fullmatch(r'"""[^"]*"""\n', tree), room


@pytest.mark.parametrize("path", MODULES)
def test_a_path_of_a_module_is_no_public_name(path):
  """`import optim.soap as m` must not give a function."""
  module = importlib.import_module(path)
  assert isinstance(module, types.ModuleType)
  parent, _, name = path.rpartition(".")
  assert getattr(importlib.import_module(parent), name) is module
  assert not (parent == "optim" and name in optim.__all__)


@pytest.mark.parametrize("name", ["soap", "muon", "shampoo", "gauss_newton"])
def test_importing_a_function_as_a_module_fails(name):
  done = subprocess.run(
    [sys.executable, "-c", f"import optim.{name}"],
    capture_output=True,
    text=True,
    check=False,
    cwd=pathlib.Path(optim.__file__).parents[1],
  )
  assert done.returncode == 1
  assert f"No module named 'optim.{name}'" in done.stderr


def test_all_is_what_is_there():
  assert list(optim.__all__) == sorted(optim.__all__)
  for name in optim.__all__:
    assert hasattr(optim, name)
  public = {
    name
    for name, value in vars(optim).items()
    if name[0] != "_" and not isinstance(value, types.ModuleType)
  }
  assert public == set(optim.__all__)


@pytest.mark.parametrize("name", FACTORIES)
def test_help_explains_every_argument(name):
  function = getattr(optim, name)
  doc, parameters = inspect.getdoc(function), inspect.signature(function)
  variadic = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
  wanted = [
    p for p, x in parameters.parameters.items() if x.kind not in variadic
  ]
  explained = re.findall(r"^  (\w+): ", doc, flags=re.MULTILINE)
  # Short functions name their arguments in the text.
  missing = [p for p in wanted if p not in explained and p not in doc]
  assert not missing, f"{name}: {missing}"
  assert "likewise" not in doc.lower(), f"{name}: say what each argument is"
  kinds = optax.GradientTransformation, optax.GradientTransformationExtraArgs
  if parameters.return_annotation in kinds:
    assert not [p for p in wanted if p not in explained], name


def test_an_unknown_argument_is_named():
  for make, wrong in (
    (optim.soap, dict(learning_rate=1.0, betas=(0.9, 0.95))),
    (optim.scale_by_soap, dict(betas=(0.9, 0.95))),
    (optim.muon, dict(learning_rate=1.0, num_steps=5)),
  ):
    with pytest.raises(TypeError, match="betas|num_steps"):
      make(**wrong)
