"""What docs/architecture.md shows runs, and what it names exists."""

import importlib
import pathlib
import re
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from ml_collections_configs import base

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_TEXT = (_ROOT / "docs/architecture.md").read_text()


def _run(which):
  block = re.findall(r"```python\n(.*?)```", _TEXT, re.DOTALL)[which]
  names: dict = {}
  exec(compile(block, "docs/architecture.md", "exec"), names)
  return names


def test_paths_and_names_exist():
  roots = "docs|lm|optim|tests|theory|ml_collections_configs|figures"
  paths = set(re.findall(rf"[`(]((?:{roots})/[\w./]+)[`)]", _TEXT))
  assert len(paths) > 35
  for path in paths:
    folder = _ROOT / "docs" if path.startswith("figures/") else _ROOT
    assert (folder / path).exists(), path
  names = re.findall(r"`optim\.(\w+)[`(]", _TEXT)
  assert len(names) > 10
  assert not [name for name in names if not hasattr(optim, name)]
  drawn = "".join(p.read_text() for p in _ROOT.glob("docs/figures/*_to_*.svg"))
  files = re.findall(r"lm/[\w/]+\.py", drawn)
  assert len(files) > 8
  assert not [path for path in files if not (_ROOT / path).exists()]


@pytest.mark.parametrize("package", ["optim", "lm"])
def test_rooms_are_those_of_the_import_contract(package):
  rows = re.findall(rf"^\| (\d+) \| `{package}/(.*?) \|", _TEXT, re.MULTILINE)
  found = [
    (floor, name.removesuffix(".py"))
    for floor, names in rows
    for name in re.findall(r"[\w.]+", names)
  ]
  contracts = tomllib.loads((_ROOT / "pyproject.toml").read_text())
  (layers,) = (
    contract["layers"]
    for contract in contracts["tool"]["importlinter"]["contracts"]
    if contract["name"] == f"the rooms of {package}"
  )
  wanted = [
    (str(len(layers) - i), room)
    for i, layer in enumerate(layers)
    for room in layer.split(" | ")
  ]
  assert sorted(found) == sorted(wanted)


def test_seams_and_toys_are_all_listed():
  part = _TEXT.split("## Seams")[1].split("##")[0]
  tables = re.findall(r"`([A-Z_]+)`, `(\w+)`: `(lm/[\w/]+)\.py`", part)
  assert len(tables) == 7
  for table, protocol, path in tables:
    module = importlib.import_module(path.replace("/", "."))
    entries = getattr(module, table).values()
    assert {type(entry).__name__ for entry in entries} == {protocol}
  toys = {path.stem for path in (_ROOT / "tests/lm/toys").glob("*.py")}
  named = set(re.findall(r"tests/lm/toys/(\w+)\.py", part))
  assert named == toys - {"start"}
  keys = re.findall(r"\| `config\.(\w+)\.(\w+)` \|", part)
  assert len(keys) == 7
  assert all(key in base.get_config()[section] for section, key in keys)


def test_files_of_the_matrix_room_are_all_listed():
  part = _TEXT.split("Inside `optim/matrices`")[1].split("##")[0]
  listed = set(re.findall(r"^\| `(\w+\.py)` \|", part, re.MULTILINE))
  files = {p.name for p in (_ROOT / "optim/matrices").glob("*.py")}
  assert listed == files - {"__init__.py"}


def test_the_new_method_works():
  scale_by_unit = _run(0)["scale_by_unit"]
  tx = scale_by_unit(eps=1e-6, dimension_numbers=dict(b=None))
  rng = np.random.default_rng(0)
  grads = dict(
    a=jnp.array(rng.normal(size=(3, 4)) * 7, jnp.float32),
    b=jnp.array(rng.normal(size=(2, 2)), jnp.float32),
    c=jnp.ones(3),
  )
  updates, _ = jax.jit(tx.update)(grads, tx.init(grads))
  wanted = np.array(grads["a"], np.float64)
  wanted /= np.sqrt((wanted**2).sum())
  np.testing.assert_allclose(updates["a"], wanted, rtol=1e-5)
  np.testing.assert_array_equal(updates["b"], grads["b"])
  np.testing.assert_array_equal(updates["c"], grads["c"])
  assert "max_precond_dim: " in scale_by_unit.__doc__


def test_the_new_point_is_found_in_a_chain():
  state = _run(1)["AheadState"](dict(w=jnp.full(2, 3.0)))
  params = dict(w=jnp.zeros(2, jnp.bfloat16))
  point = optim.eval_params((optax.EmptyState(), state), params)
  assert point["w"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(point["w"].astype(jnp.float32), [3.0, 3.0])


def test_the_new_objective_hides_a_third_and_looks_ahead():
  from types import SimpleNamespace

  from lm.objectives import table
  from lm.objectives.view import row_keys

  try:
    _run(2)
    entry = table.OBJECTIVES.pop("hidden")
  finally:
    table.OBJECTIVES.pop("hidden", None)
  cfg = SimpleNamespace(pad_id=0, eos_id=1, real_V=9, isolate_documents=False)
  rows = np.random.default_rng(0).integers(2, 9, (64, 31)).astype(np.int32)
  rows[0, 20:] = 0
  keys = row_keys(0, table.TRAINING, jnp.arange(64, dtype=jnp.int32))
  view = entry.view(cfg, jnp.asarray(rows), keys)
  hidden = np.asarray(view.inputs_BL) == 9
  np.testing.assert_array_equal(view.weights_BL, 3.0 * hidden)
  np.testing.assert_array_equal(view.inputs_BL[~hidden], rows[:, 1:][~hidden])
  counts = (rows[:, 1:] != 0).sum(axis=1)
  np.testing.assert_array_equal(entry.count(cfg, jnp.asarray(rows)), counts)
  assert abs(hidden.sum() / counts.sum() - 1 / 3) < 0.05
  assert np.all(np.asarray(view.places.last_BL) == 29)
