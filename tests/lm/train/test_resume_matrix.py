"""A checkpoint of any layout goes on in any other."""

import json
import shutil

import numpy as np
import pytest

from lm.runs import checkpoint, metrics

pytestmark = pytest.mark.slow

# (processes, devices of each) and the mesh.
_LAYOUTS = {
  "1": ((1, 1), {}),
  "2 x 2": ((2, 2), {"mesh__data": 2, "mesh__tensor": 2}),
  "8": ((1, 8), {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}),
}
_METHODS = {
  "adamw": {"optim__averages": ("ema:0.9",)},
  # Its stacks of matrices have other lengths on other meshes.
  "muon": {"optim__name": "muon", "optim__kwargs": {}, "model__N": 3},
}
_RUN = {
  "train__num_steps": 8,
  "checkpoint__every": 4,
  "eval__every": 4,
  "optim__learning_rate": 1e-3,
}


def _clock(folder, step):
  """What is saved beside the state, without the layout and the time."""
  clock = checkpoint.read_clock(folder, step)
  del clock["seconds"], clock["config"]["mesh"]
  return clock


@pytest.fixture(scope="module")
def whole(group, tmp_path_factory):
  """Runs of each method and layout from their beginning to their end."""
  known = {}

  def of(method, layout):
    if (method, layout) not in known:
      shape, mesh = _LAYOUTS[layout]
      folder = tmp_path_factory.mktemp("whole")
      group.run(folder, *shape, **_RUN, **_METHODS[method], **mesh)
      known[method, layout] = folder
    return known[method, layout]

  return of


@pytest.mark.parametrize("end", _LAYOUTS)
@pytest.mark.parametrize("start", _LAYOUTS)
@pytest.mark.parametrize("method", _METHODS)
def test_a_run_goes_on_in_another_layout(
  group, whole, tmp_path, method, start, end
):
  """The clock, i.e. the rows read, is exact, and losses agree to rounding."""
  expected, folder = whole(method, start), tmp_path / "run"
  shutil.copytree(expected, folder)
  shutil.rmtree(folder / "checkpoints" / "8")
  (folder / "metrics.jsonl").unlink()
  shape, mesh = _LAYOUTS[end]
  group.run(folder, *shape, **_RUN, **_METHODS[method], **mesh)
  assert _clock(folder, 8) == _clock(expected, 8)
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [5, 6, 7, 8, 8, 8]
  found, before = metrics.read(folder), metrics.read(expected)
  assert found.keys() == before.keys()
  for key in found:
    if "loss" in key or key == "tokens":
      old = dict(zip(before[key].steps, before[key].values, strict=True))
      np.testing.assert_allclose(
        found[key].values,
        [old[step] for step in found[key].steps],
        rtol=0 if key == "tokens" or start == end else 1e-5,
        err_msg=key,
      )
