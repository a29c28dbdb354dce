"""Runs and exports of the past: they load, score, resume and export as then.

`golden/make_runs.py` made them and says what they hold. Where machine and
versions are the recorded ones, losses have the same bits.
"""

import functools
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from golden import make_runs

from lm import export
from lm.runs import weights

# The export of a run with an average was the average; today it is asked for.
_AVERAGE = {"tiny": ("--average=ema:0.9",)}
# Between machines. Levels of optimisation and instruction sets of one machine
# make a difference of 8e-7 at most.
_RTOL = 1e-3


@functools.cache
def _recorded():
  return json.loads((make_runs.FOLDER / "results.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A copy of the runs beside the prepared text; tests work within."""
  path = tmp_path_factory.mktemp("golden")
  make_runs.enter(path)
  return path


@pytest.fixture
def inside(folder, monkeypatch):
  monkeypatch.chdir(folder)
  return folder


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
  """Folder of runs resumed on one device, and their losses by name."""
  path = tmp_path_factory.mktemp("resumed")
  make_runs.enter(path)
  return path, make_runs.in_process("resumed", 1, path)


def _check_losses(results, name, part):
  recorded = _recorded()[part]
  losses, wanted = results[name], recorded[name]
  assert not isinstance(losses, str), losses
  np.testing.assert_allclose(losses, wanted, rtol=_RTOL)
  if results["fingerprint"] == recorded["fingerprint"]:
    assert losses == wanted


@pytest.mark.parametrize("name", sorted(make_runs.RUNS))
def test_a_run_goes_on_to_the_losses_of_the_unbroken_one(resumed, name):
  path, results = resumed
  _check_losses(results, name, "resumed")
  unbroken = _recorded()["losses_1"][name]
  if name not in make_runs.CHANGED:
    np.testing.assert_allclose(results[name], unbroken, rtol=_RTOL)
  np.testing.assert_allclose(results[name][-1], unbroken[-1], rtol=0.1)
  assert len(results[name]) == make_runs.STEPS
  if name in make_runs.STORED:  # It did go on: the old lines are still there.
    old = (make_runs.FOLDER / name / "metrics.jsonl").read_text()
    new = (path / name / "metrics.jsonl").read_text()
    assert new.startswith(old)
    assert new.count('"train/loss"') == make_runs.STEPS


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=() if name == "soap" else pytest.mark.slow)
    for name in sorted(make_runs.RUNS)
  ],
)
def test_losses_on_eight_devices_are_the_recorded_ones(tmp_path, name):
  make_runs.enter(tmp_path)
  results = make_runs.in_process("new", 8, tmp_path, [name])
  _check_losses(results, name, "losses_8")


@pytest.mark.parametrize("name", sorted(make_runs.STORED))
def test_a_run_is_scored_as_it_was(inside, name):
  wanted = _recorded()["scores"][name]
  np.testing.assert_allclose(make_runs.scores(name), wanted[0], atol=2e-3)
  if len(wanted) > 1:
    averaged = make_runs.scores(name, "--average=ema:0.9")
    np.testing.assert_allclose(averaged, wanted[1], atol=2e-3)
    assert abs(averaged[0] - wanted[0][0]) > 0.1


def _arrays(path):
  with np.load(path) as file:
    return {key: file[key] for key in file.files if key != "config"}


@pytest.mark.parametrize(
  ("name", "ending", "flags"),
  [
    *((name, "", _AVERAGE.get(name, ())) for name in sorted(make_runs.STORED)),
    ("lotion_int4", ".rounded", ("--quantize",)),
  ],
)
def test_a_run_is_exported_as_it_was(inside, name, ending, flags):
  out = inside / f"again{ending}.npz"
  assert export.main([f"--workdir={name}", f"--out={out}", *flags]) == 0
  wanted, found = _arrays(inside / f"{name}{ending}.npz"), _arrays(out)
  assert found.keys() == wanted.keys()
  for key, value in wanted.items():
    assert found[key].dtype == value.dtype, key
    np.testing.assert_allclose(found[key], value, rtol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", sorted(make_runs.STORED))
def test_an_export_is_loaded_as_the_weights_of_its_run(inside, name):
  average = "ema:0.9" if name in _AVERAGE else None
  parts, wanted = weights.open_run(name, average=average)
  loaded = weights.load(parts, f"{name}.npz")
  same = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  jax.tree.map(same, loaded, wanted)


def test_a_rounded_export_is_within_half_a_step_of_the_weights(inside):
  _, params = weights.read_export("lotion_int4.npz")
  _, rounded = weights.read_export("lotion_int4.rounded.npz")
  distances = jax.tree_util.tree_map_with_path(_half_steps, params, rounded)
  assert set(jax.tree.leaves(distances)) == {0, 1}


def _half_steps(path, w, rounded):
  """1 if a matrix of a block was rounded to 15 levels, 0 if it was kept."""
  w, rounded = np.asarray(w, np.float64), np.asarray(rounded, np.float64)
  apart = np.abs(rounded - w).max()
  if not apart:
    return 0
  step = np.abs(w).max() / 7  # INT4, one scale a matrix.
  name = jax.tree_util.keystr(path)
  assert apart <= step / 2 * (1 + 1e-5), name
  levels = rounded / step
  np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4, err_msg=name)
  return 1


def test_no_golden_file_names_a_folder_of_the_machine_that_wrote_it():
  here = {str(pathlib.Path.home()), str(make_runs.FOLDER), os.sep + "tmp"}
  for path in make_runs.FOLDER.rglob("*"):
    data = path.read_bytes() if path.is_file() else b""
    assert not any(name.encode() in data for name in here if name != os.sep)
