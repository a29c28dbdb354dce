"""Our transforms follow the authors' trajectories, case by case.

`golden/zoo.npz` and `golden/matrix2026.npz` were made by the authors' own
programs (torch). The cases and what each tests: `docs/` pages of the methods.
"""

import functools
import json
import pathlib

import numpy as np
import pytest
from oracles import authors

_GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
_FILES = ("zoo", "matrix2026")
# (float64, float32) open and closed; what is not named has the file's own.
_DEFAULT = {"zoo": (1e-10, 1e-5), "matrix2026": (1e-10, 1e-4)}
_TOLERANCES = {
  # eps in another place than the author's.
  "laprop": (5e-9, 1e-5),
  # Newton-Schulz of another order of rounding.
  "muon_bfloat16": (None, 5e-2),
  # Their momentum is a sum, which the 1e-7 of the norm sees.
  "moonlight": (1e-6, 1e-5),
  "moonlight_plain_momentum": (1e-6, 1e-5),
  "nv_soap_tiny_eps": (1e-8, None),
  "adamc": (1e-8, 1e-4),
  "dion_normuon_split": (1e-8, 1e-4),
  # Twelve steps of Newton-Schulz amplify.
  "soap_h": (1e-10, 1e-3),
  "soap_muon_record": (1e-10, 1e-3),
  "soap_muon_cautious": (1e-10, 1e-3),
}
# Adam without an eps, whose first call divides round-off by round-off.
_NOT_OURS = {"kl_m_soap_warm"}


@functools.cache
def _load(file):
  return np.load(_GOLDEN / f"{file}.npz")


def _settings(file, case):
  return json.loads(str(_load(file)[f"{case}/settings"]))


def _cases():
  for file in _FILES:
    for case in json.loads(str(_load(file)["format"]))["cases"]:
      yield file, case


def _all_runs():
  """Every run of a case; 64 bits by default, where an author has them."""
  for file, case in _cases():
    if case in _NOT_OURS:
      continue
    runs = [
      key.removeprefix(f"{case}/")
      for key in _load(file).files
      if key.startswith(f"{case}/") and not key.endswith("/settings")
    ]
    wide = any("64" in run for run in runs)
    for run in runs:
      slow = wide and "32" in run
      marks = pytest.mark.slow if slow else ()
      yield pytest.param(file, case, run, id=f"{case}-{run}", marks=marks)


def _tolerance(file, case, run):
  tolerances = _TOLERANCES.get(case, _DEFAULT[file])
  return tolerances[0 if "64" in run else 1]


def test_every_case_but_one_has_a_method():
  methods = {case: _settings(file, case)["method"] for file, case in _cases()}
  missing = {c for c, name in methods.items() if name not in authors.METHODS}
  assert missing == _NOT_OURS
  assert len(methods) == 61 + 46


@pytest.mark.parametrize(("file", "case", "run"), _all_runs())
def test_follows_the_authors(file, case, run):
  wanted = _load(file)[f"{case}/{run}"]
  actual = authors.run(_load(file), case, run)
  assert actual.shape == wanted.shape
  tolerance = _tolerance(file, case, run)
  np.testing.assert_allclose(actual, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
  ("case", "layout"),
  [
    (case, layout)
    for case, kinds in authors.LAYOUTS.items()
    for layout in kinds
  ],
)
def test_layouts_change_nothing(case, layout):
  file = next(file for file, name in _cases() if name == case)
  runs = [f"{case}/{run}" for run in ("closed64", "closed32")]
  key = next(key for key in runs if key in _load(file))
  run = key.removeprefix(f"{case}/")
  actual = authors.run(_load(file), case, run, layout)
  tolerance = _tolerance(file, case, run)
  np.testing.assert_allclose(actual, _load(file)[key], rtol=0, atol=tolerance)
