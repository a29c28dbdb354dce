"""Every method in several real processes: trained, scored, saved, resumed."""

import json
import shutil

import numpy as np
import pytest

from lm.runs import checkpoint, metrics

pytestmark = pytest.mark.slow

# Processes x devices of each, and the mesh. In "four" sums have three and four
# terms, and gloo begins them at another process than XLA within one.
_SHAPES = {
  "two": ((2, 1), {"mesh__data": 2}),
  "four": ((4, 1), {"mesh__data": 2, "mesh__fsdp": 2}),
  "two by two": ((2, 2), {"mesh__data": 2, "mesh__tensor": 2}),
}

# As in `test_sharded.py`: a large eps, since eigenvectors whose eigenvalues
# nearly agree are chosen by rounding.
_FACTORS = {"precondition_frequency": 2, "stagger": False}
_OUTER = {
  "optim__name": "gauss_newton",
  "optim__kwargs": {},
  "gauss_newton__optimizer": "adamw",
  "gauss_newton__inner_steps": 2,
  "data__batch_size": 24,
  "train__microbatch_size": 8,
}
_METHODS = {
  "adamw": {"optim__averages": ("ema:0.9",)},
  "muon": {"optim__name": "muon", "optim__kwargs": {"consistent_rms": 0.2}},
  "shampoo": {"optim__name": "shampoo", "optim__kwargs": _FACTORS},
  "soap": {"optim__name": "soap", "optim__kwargs": _FACTORS | {"eps": 3e-2}},
  "gauss_newton": _OUTER,
  "microsteps": _OUTER
  | {
    "optim__name": "gauss_newton_microsteps",
    "data__batch_size": 8,
    "train__microbatch_size": 0,
  },
  "lotion": {"quant__method": "lotion", "quant__strength": 10.0},
}
_RUN = {
  "train__num_steps": 6,
  "checkpoint__every": 3,
  "eval__every": 3,
  "schedule__name": "constant",
  "schedule__warmup": 0.0,
  "optim__learning_rate": 1e-3,
}


def _numbers(folder):
  """All metrics but times, by key."""
  return {
    key: column.values
    for key, column in metrics.read(folder).items()
    if not key.startswith("perf/") and key != "seconds"
  }


def _close(a, b):
  assert a.keys() == b.keys()
  for key in a:
    if "loss" in key:
      np.testing.assert_allclose(a[key], b[key], rtol=1e-5, err_msg=key)
  assert a["tokens"].tolist() == b["tokens"].tolist()


def _differing(a, b):
  assert a.keys() == b.keys()
  return [k for k in a if not np.array_equal(a[k], b[k], equal_nan=True)]


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("method", _METHODS)
def test_several_processes_are_one(group, tmp_path, method, shape):
  """To the bit where sums have two terms; and one device goes on from 3."""
  (processes, devices), mesh = _SHAPES[shape]
  changes = _RUN | _METHODS[method]
  several, one = tmp_path / "several", tmp_path / "one"
  group.run(several, processes, devices, **changes, **mesh)
  group.run(one, 1, processes * devices, **changes, **mesh)
  found, expected = _numbers(several), _numbers(one)
  if shape == "two":
    assert _differing(found, expected) == []
  _close(found, expected)

  lines = (several / "metrics.jsonl").read_text().splitlines()
  steps = [json.loads(line)["step"] for line in lines]
  # Scores at 3 and 6, and those of the end.
  assert sorted(steps) == [1, 2, 3, 3, 4, 5, 6, 6, 6]

  assert checkpoint.list_steps(several) == [3, 6]
  shutil.rmtree(several / "checkpoints" / "6")
  group.run(several, 1, 1, **changes)
  _close(_numbers(several), expected)
