"""The wheel holds the four packages and nothing else; two stand alone."""

import pathlib
import subprocess
import sys
import zipfile

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGES = {"lm", "optim", "theory", "ml_collections_configs"}


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
  assert "optim/py.typed" in names


# What `optim` and `theory` may do without, as if it were not installed.
_ABSENT = (
  "flax grain lm matplotlib ml_collections orbax sentencepiece "
  "tensorflow_datasets tqdm"
).split()


@pytest.mark.parametrize(
  ("package", "absent"),
  [("optim", [*_ABSENT, "theory"]), ("theory", [*_ABSENT, "optim", "optax"])],
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


def test_training_needs_no_other_framework():
  """Neither TensorFlow nor torch nor transformers, even where installed."""
  code = (
    "import sys, lm.main, lm.train.loop, lm.evaluate, lm.generate\n"
    "bad = {'tensorflow', 'torch', 'transformers', 'tensorflow_datasets'}\n"
    "assert not bad & set(sys.modules), bad & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=_ROOT)
