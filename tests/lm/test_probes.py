"""`config.log.probes`: when they are due, what they see, what is refused."""

import dataclasses

import numpy as np
import pytest

from lm.probes import table
from lm.runs import metrics
from lm.train import loop


@dataclasses.dataclass(frozen=True)
class _Options:
  first: int = 3


def _measure(context, options):
  assert context.updates is None
  assert context.grads is None
  assert context.micro_grad_sq is None
  rows = context.rows.index
  return {
    "probe/step": context.state.step,
    "probe/first_row": rows.reshape(-1)[0] + 0 * options.first,
    "probe/count": context.count,
  }


_LATE = table.Probe(
  due=lambda config, step, options: step >= options.first,
  needs=("state", "rows"),
  measure=_measure,
  options=_Options,
)


@pytest.fixture
def late(monkeypatch):
  monkeypatch.setitem(table.PROBES, "late", _LATE)


def test_probes_are_logged_when_due_and_compiled_before(tiny, tmp_path, late):
  config = tiny.config(
    log__every=5,
    log__probes={"late": {}, "noise_scale": {"every": 2}},
    train__microbatch_size=4,
    mesh__data=2,
    mesh__fsdp=2,
    mesh__tensor=2,
  )
  due = {(), ("noise_scale",), ("late",), ("late", "noise_scale")}
  assert {tuple(sorted(s)) for s in table.sets(config, 1, 6)} == due
  assert loop.train(config, tmp_path) == 0
  columns = metrics.read(tmp_path)
  assert columns["train/micro_grad_sq"].steps.tolist() == [2, 4, 6]
  assert columns["probe/step"].steps.tolist() == [3, 4, 5, 6]
  assert columns["probe/step"].values.tolist() == [3, 4, 5, 6]
  assert columns["probe/first_row"].values.tolist() == [16, 24, 32, 40]
  assert columns["probe/count"].values.tolist() == [2] * 4
  assert columns["train/loss"].steps.tolist() == [2, 3, 4, 5, 6]
  square = columns["train/grad_norm"].values[[0, 2, 4]] ** 2
  assert np.all(columns["train/micro_grad_sq"].values > square)
  assert '"compiles_in_loop": 0' in (tmp_path / "run.json").read_text()


def test_details_every_is_short_for_leaf_statistics(tiny):
  config = tiny.config(log__details_every=4)
  due = table.schedule(config)
  assert [step for step in range(1, 9) if due(step)] == [4, 8]
  assert due(4) == {"leaf_statistics"}
  assert table.sets(tiny.config(), 1, 10**9) == {frozenset()}


def test_names_and_keys_are_checked(tiny, late):
  def problems(probes, **changes):
    return table.problems(tiny.config(log__probes=probes, **changes))

  assert problems({"leaf_statistics": {"every": 7}}) == []
  (line,) = problems({"nois_scale": {}})
  assert "Did you mean 'noise_scale'?" in line
  (line,) = problems({"leaf_statistics": {"everi": 7}})
  assert "config.log.probes.leaf_statistics.everi is not a key" in line
  (line,) = problems({"leaf_statistics": {"every": 0}})
  assert "every=0 must be >= 1 (updates)" in line
  (line,) = problems({"noise_scale": {}})
  assert "makes one of all 8 rows" in line
  (line,) = problems({"leaf_statistics": {}}, log__details_every=2)
  assert "set one" in line
  gauss_newton = {"optim__name": "gauss_newton", "train__microbatch_size": 4}
  (line,) = problems({"leaf_statistics": {}}, **gauss_newton)
  assert "gauss_newton does not have" in line
  assert problems({"late": {}}, **gauss_newton) == []
