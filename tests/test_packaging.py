"""The wheel holds the five packages and nothing else; three stand alone."""

import pathlib
import subprocess
import sys
import zipfile

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGES = {"goldenpath", "lm", "optim", "theory", "ml_collections_configs"}


def test_wheel_holds_the_packages_and_their_data(tmp_path):
  build = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, "."]
  subprocess.run(build, check=True, cwd=_ROOT, capture_output=True)
  names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
  tops = {n.split("/")[0] for n in names if ".dist-info/" not in n}
  assert tops == _PACKAGES
  for path in _ROOT.glob("*/**/*"):
    relative = path.relative_to(_ROOT)
    if relative.parts[0] in _PACKAGES and path.suffix in (".py", ".txt"):
      assert str(relative) in names
  assert {"goldenpath/py.typed", "optim/py.typed"} <= set(names)


# What `optim` and `theory` may do without, as if it were not installed.
_ABSENT = (
  "flax grain lm matplotlib ml_collections orbax sentencepiece "
  "tensorflow_datasets tqdm"
).split()


@pytest.mark.parametrize(
  ("package", "absent"),
  [
    ("optim", [*_ABSENT, "theory", "goldenpath"]),
    ("theory", [*_ABSENT, "optim", "optax", "goldenpath"]),
    ("goldenpath", _ABSENT),
  ],
)
def test_package_imports_without_the_others(package, absent):
  code = (
    "import sys\n"
    f"for name in {absent!r}: sys.modules[name] = None\n"
    f"import {package}\n"
    f"assert all(hasattr({package}, name) for name in {package}.__all__)\n"
  )
  run = [sys.executable, "-c", code]
  subprocess.run(run, check=True, cwd=_ROOT)


def test_goldenpath_is_the_same_packages():
  code = (
    "import goldenpath, optim, theory\n"
    "from goldenpath import optim as o, theory as t\n"
    "assert o is optim and t is theory\n"
    "assert set(goldenpath.__all__) == {'optim', 'theory'}\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=_ROOT)


@pytest.mark.parametrize(
  "first", ["import optim", "from goldenpath import optim"]
)
def test_goldenpath_beside_a_folder_called_optim(tmp_path, first):
  """A project with an `optim` of its own gets both, in either order."""
  folder = tmp_path / "optim"
  folder.mkdir()
  (folder / "__init__.py").write_text("NAME = 'theirs'\n")
  code = (
    f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\n"
    f"{first}\n"
    "import optim as theirs\n"
    "from goldenpath import optim, theory\n"
    "assert theirs.NAME == 'theirs' and not hasattr(optim, 'NAME')\n"
    "assert all(hasattr(optim, name) for name in optim.__all__)\n"
    "import jax.numpy as jnp\n"
    "params = {'w': jnp.ones((2, 3))}\n"
    "tx = optim.muon(0.1)\n"
    "updates, _ = tx.update(params, tx.init(params), params)\n"
    "assert updates['w'].max() < 0\n"
  )
  run = [sys.executable, "-c", code]
  subprocess.run(run, check=True, cwd=_ROOT)


def test_training_needs_no_other_framework():
  """Neither TensorFlow nor torch nor transformers, even where installed."""
  code = (
    "import sys, lm.main, lm.train.loop, lm.eval.sampler\n"
    "bad = {'tensorflow', 'torch', 'transformers', 'tensorflow_datasets'}\n"
    "assert not bad & set(sys.modules), bad & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=_ROOT)
