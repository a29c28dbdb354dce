"""50 updates of every exported transform are the recorded ones.

On the machine and versions that wrote `golden/digest.npz` every bit is the
same. Elsewhere rounding differs, and SOAP's divisions by small second moments
make the difference grow: the first steps are compared entry by entry, the last
one by its norm. `python tests/golden/make_digest.py --check` compares the bits
of all cases; a change that means to change bits writes the file anew.
"""

import functools

import numpy as np
import pytest
from golden import make_digest
from oracles.contract import TRANSFORMS

# Cases whose many kinds of code the others repeat; the rest are slow.
_ALWAYS = [
  *((row, "float32", 1) for row in sorted(TRANSFORMS)),
  ("soap", "float32", 8),
  ("soap", "bfloat16", 8),
  ("muon", "bfloat16", 8),
]
# Largest difference of an entry, as a share of the update's root mean square,
# by step. Measured between levels of optimisation, instruction sets and
# versions of jax (0.10.2, 0.12.0): 4e-6 at most in float32, none in bfloat16,
# where another machine may still round a parameter to its neighbour.
_APART = {
  "float32": {1: 1e-4, 2: 1e-4, 11: 5e-3, 12: 5e-3},
  "bfloat16": {1: 3e-2, 2: 3e-2, 11: 1e-1, 12: 1e-1},
}
_NORM_APART = 0.1


@functools.cache
def _recorded():
  return make_digest.load()


def _marked(case):
  marks = () if case in _ALWAYS else pytest.mark.slow
  return pytest.param(*case, id=make_digest.case_name(*case), marks=marks)


def test_every_recorded_transform_still_exists_and_is_recorded():
  wanted = {make_digest.case_name(*case) for case in make_digest.cases()}
  assert set(_recorded()[1]) == wanted


@pytest.mark.parametrize(
  ("row", "dtype", "devices"), [_marked(case) for case in make_digest.cases()]
)
def test_updates_are_the_recorded_ones(row, dtype, devices):
  machine, recorded = _recorded()
  sha, wanted = recorded[make_digest.case_name(row, dtype, devices)]
  updates = make_digest.trajectory(row, dtype, devices)
  actual_sha, actual = make_digest.summarize(updates)
  _check_values(actual, wanted, _APART[dtype])
  if machine == make_digest.fingerprint():
    assert actual_sha == sha, (
      "The bits of the updates are others than the recorded ones; see "
      "tests/golden/make_digest.py."
    )


def _check_values(actual, wanted, apart):
  for i, step in enumerate(make_digest.KEPT):
    if step in apart:
      scale = np.sqrt(np.mean(np.square(wanted[i])))
      np.testing.assert_allclose(
        actual[i], wanted[i], rtol=0, atol=apart[step] * scale, err_msg=step
      )
    norms = np.linalg.norm(actual[i]), np.linalg.norm(wanted[i])
    np.testing.assert_allclose(*norms, rtol=_NORM_APART, err_msg=step)
