"""A dotted path of the package is a module or a public name, never both."""

import importlib
import inspect
import pkgutil
import types

import theory

MODULES = [module.name for module in pkgutil.iter_modules(theory.__path__)]


def test_no_module_has_the_name_of_a_public_name():
  assert len(MODULES) > 20
  assert sorted(set(MODULES) & set(theory.__all__)) == []


def test_import_as_gives_the_module():
  for name in MODULES:
    scope = {}
    exec(f"import theory.{name} as m", scope)
    assert isinstance(scope["m"], types.ModuleType), name
    assert scope["m"] is importlib.import_module(f"theory.{name}")


def test_every_public_name_exists_once_and_is_documented():
  assert sorted(set(theory.__all__)) == theory.__all__
  for name in theory.__all__:
    value = getattr(theory, name)
    assert not isinstance(value, types.ModuleType), name
    assert inspect.getdoc(value), name
    assert value.__module__.startswith("theory."), name
