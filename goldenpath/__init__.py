"""The packages of this distribution under one name of their own.

    from goldenpath import optim, theory

Many projects have a folder called `optim`. Such a folder in the working
directory hides our package from `import optim`, and not from this import.
"""

import importlib
import importlib.util
import pathlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import optim
  import theory

__all__ = ["optim", "theory"]


def _load(name):
  """The package `name` beside this one.

  Returns:
    The module that `import name` gives, if that is the package beside this
    one. If another package has the name, a module of our own, called
    `goldenpath.NAME`.
  """
  path = pathlib.Path(__file__).resolve().parents[1] / name / "__init__.py"
  found = importlib.util.find_spec(name)
  if not path.exists() or (found and _is_at(found, path)):
    return importlib.import_module(name)
  spec: Any = importlib.util.spec_from_file_location(
    f"{__name__}.{name}", path, submodule_search_locations=[str(path.parent)]
  )
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # Relative imports look it up.
  spec.loader.exec_module(module)
  return module


def _is_at(spec, path):
  return bool(spec.origin) and pathlib.Path(spec.origin).resolve() == path


optim = _load("optim")
theory = _load("theory")
