"""A run that goes on from another run's checkpoint: equal bits, or refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from lm.config import ramp
from lm.config.errors import ConfigError
from lm.data import prepare
from lm.methods import schedule
from lm.runs import branch, checkpoint, weights, workdir
from lm.step import build, state
from lm.tools import estimate
from lm.train import loop

_END, _AT = 12, 4
_KEPT = {"checkpoint__every": _AT, "checkpoint__keep": 5}
_STEPS = {"schedule__unit": "steps", "schedule__warmup": 2.0}
_CONSTANT = _STEPS | {"schedule__name": "constant"}
_METHODS = {
  "adamw, averages": {"optim__averages": ("ema:0.9", "tail:0.5")},
  "soap": {"optim__name": "soap", "optim__kwargs": {}},
  "growing batches": {
    "data__batch_schedule": ((0, 8), (1000, 16)), "train__num_steps": 0,
    "train__num_tokens": 4000, "train__microbatch_size": 8,
  },
  "gauss_newton_microsteps": {
    "optim__name": "gauss_newton_microsteps", "optim__kwargs": {},
    "gauss_newton__inner_steps": 2, "data__batch_size": 8,
  },
}  # fmt: skip


def _train(tiny, folder, **changes):
  """Runs it in this process; returns the folder."""
  changes = {"train__num_steps": _END} | _KEPT | changes
  assert loop.train(tiny.config(**changes), folder) == 0
  return folder


def _digest(folder):
  """Of the whole state at the end."""
  parts = build.build(workdir.read_config(folder))
  last = checkpoint.list_steps(folder)[-1]
  return state.digest(checkpoint.restore(folder, last, parts))


def _losses(folder, after):
  """{step: loss} of the updates after a step, as they were written."""
  lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  return {
    x["step"]: x["train/loss"]
    for x in lines
    if x["step"] > after and "train/loss" in x
  }


@pytest.fixture(scope="module")
def constant(tiny, tmp_path_factory):
  """A run at a constant rate, with a checkpoint every four updates."""
  return _train(tiny, tmp_path_factory.mktemp("constant"), **_CONSTANT)


@pytest.mark.parametrize("method", _METHODS)
def test_a_branch_that_changes_nothing_is_the_run_itself(
  tiny, tmp_path, method
):
  changes = _METHODS[method]
  whole = _train(tiny, tmp_path / "whole", **changes)
  source = f"{whole}:{_AT}"
  branched = _train(
    tiny, tmp_path / "branch", train__branch_from=source, **changes
  )
  assert _digest(branched) == _digest(whole)
  losses = _losses(branched, 0)
  assert min(losses) == _AT + 1
  assert losses == _losses(whole, _AT)


def test_a_decay_that_is_branched_off_is_that_of_one_run(
  tiny, tmp_path, constant
):
  wsd = _STEPS | {"schedule__name": "wsd", "schedule__decay": 4.0}
  whole = _train(tiny, tmp_path / "whole", **wsd)
  branched = _train(
    tiny, tmp_path / "branch", train__branch_from=f"{constant}:8", **wsd
  )
  assert _digest(branched) == _digest(whole)
  assert _digest(branched) != _digest(constant)


def test_another_batch_goes_on_where_the_stream_was(tiny, tmp_path):
  """As the run whose own schedule doubles the batch there."""
  tokens, past = 5000, _AT * 8 * 32
  both = _CONSTANT | {
    "train__num_steps": 0, "train__num_tokens": tokens,
    "train__microbatch_size": 8, "schedule__warmup": 2.0 * 8 * 32,
    "schedule__unit": "tokens",
  }  # fmt: skip
  whole = _train(
    tiny,
    tmp_path / "whole",
    data__batch_schedule=((0, 8), (past, 16)),
    **both,
  )
  branched = _train(
    tiny,
    tmp_path / "branch",
    train__branch_from=f"{whole}:{_AT}",
    data__batch_size=16,
    **both,
  )
  steps = _AT + int(np.ceil((tokens - past) / (16 * 32)))
  clock = checkpoint.read_clock(branched, steps)
  examples = _AT * 8 + (steps - _AT) * 16
  assert (clock["examples"], clock["tokens"]) == (examples, examples * 32)
  assert _losses(branched, 0).keys() == _losses(whole, _AT).keys()
  assert _digest(branched) == _digest(whole)


def test_a_begun_branch_needs_its_source_no_more(tiny, tmp_path, constant):
  source = tmp_path / "source"
  shutil.copytree(constant, source)
  changes = _CONSTANT | {
    "train__branch_from": str(source),
    "data__batch_size": 16,
  }
  folder = tmp_path / "branch"
  _train(tiny, folder, train__num_steps=14, **changes)
  shutil.rmtree(source)
  _train(tiny, folder, train__num_steps=16, **changes)
  whole = tmp_path / "whole"
  changes["train__branch_from"] = str(constant)
  _train(tiny, whole, train__num_steps=16, **changes)
  assert _digest(folder) == _digest(whole)
  # Its clock says where it began: the newest checkpoint of the source.
  assert workdir.read_config(folder).train.branch_step == _END
  parts, params = weights.open_run(folder)
  assert ramp.num_steps(parts.config) == 16
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
  assert min(_losses(folder, 0)) == _END + 1


def test_rates_of_another_batch_follow_tokens_or_updates(tiny, constant):
  """Cosine from the start of the source, by hand."""
  changes = {
    "train__branch_from": f"{constant}:{_AT}", "data__batch_size": 16,
    "schedule__warmup": 0.0, "schedule__end_factor": 0.0,
  }  # fmt: skip
  past, size, total = _AT * 8 * 32, 16 * 32, 5120
  by_tokens = branch.resolve(
    tiny.config(train__num_steps=0, train__num_tokens=total, **changes)
  )
  counts = np.arange(_AT, ramp.num_steps(by_tokens))
  share = (past + (counts - _AT) * size) / total
  expected = 1e-3 * (1 + np.cos(np.pi * share)) / 2
  np.testing.assert_allclose(
    schedule.learning_rate(by_tokens)(counts), expected, rtol=1e-5
  )
  todo = estimate.work(by_tokens)
  assert (todo.updates, todo.tokens) == (len(counts), len(counts) * size)
  by_updates = branch.resolve(tiny.config(train__num_steps=20, **changes))
  counts = np.arange(_AT, 20)
  expected = 1e-3 * (1 + np.cos(np.pi * counts / 20)) / 2
  np.testing.assert_allclose(
    schedule.learning_rate(by_updates)(counts), expected, rtol=1e-5
  )


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"model__F": 128}, ["config.model.F", "64", "128"]),
    ({"seed": 7}, ["config.seed"]),
    ({"data__limit_rows": 20}, ["config.data.limit_rows"]),
    ({"optim__name": "lion", "optim__kwargs": {}}, ["config.optim.name"]),
    ({"optim__kwargs": {"b1": 0.5}}, ["config.optim.kwargs.b1", "0.9", "0.5"]),
    ({"optim__averages": ("ema:0.9",)}, ["config.optim.averages"]),
    ({"optim__clip_norm": 2.0}, ["config.optim.clip_norm"]),
    ({"quant__method": "ptq"}, ["config.quant.method"]),
    ({"train__num_steps": _AT}, ["num_steps=4", "begins at 4"]),
    (
      {"train__num_steps": 0, "train__num_tokens": 1000},
      ["num_tokens=1000", "begins at 1024"],
    ),
    ({"train__branch_from": "/no/run"}, ["/no/run", "no checkpoint"]),
    ({"train__branch_from": "{}:5"}, ["no checkpoint of step 5", "[4, 8, 12]"]),
    (
      {"train__init_from": "x.npz"},
      ["branch_from", "init_from", "one of them"],
    ),
  ],
)
def test_what_a_branch_keeps_may_not_differ(
  tiny, tmp_path, constant, changes, words
):
  changes = {"train__branch_from": f"{constant}:{_AT}"} | changes
  changes["train__branch_from"] = changes["train__branch_from"].format(constant)
  folder = tmp_path / "branch"
  with pytest.raises(ConfigError) as error:
    _train(tiny, folder, **(_CONSTANT | changes))
  for word in words:
    assert word in str(error.value)
  assert not checkpoint.list_steps(folder)


def test_another_row_length_is_refused(tiny, tmp_path, constant):
  changes = _CONSTANT | {
    "data__seq_length": 16, "data__root": str(tmp_path / "data"),
    "train__branch_from": f"{constant}:{_AT}",
  }  # fmt: skip
  config = tiny.config(**changes)
  prepare.prepare(config.data, config.eval.sets, log=lambda _: None)
  with pytest.raises(ConfigError, match=r"data\.seq_length: 32 there, 16 now"):
    _train(tiny, tmp_path / "branch", **changes)


def test_other_data_and_the_own_folder_are_refused(tiny, tmp_path, constant):
  changes = _CONSTANT | {"train__branch_from": str(constant)}
  with pytest.raises(ConfigError, match="itself"):
    _train(tiny, constant, **changes)
  source = tmp_path / "source"
  shutil.copytree(constant, source)
  for file in source.glob("checkpoints/*/clock/metadata"):
    saved = json.loads(file.read_text()) | {"fingerprint": "abc"}
    file.write_text(json.dumps(saved))
  with pytest.raises(ConfigError, match="other data .fingerprint abc"):
    _train(
      tiny,
      tmp_path / "branch",
      **(changes | {"train__branch_from": str(source), "train__num_steps": 14}),
    )


def test_what_is_free_may_differ(tiny, tmp_path, capsys, constant):
  folder = _train(
    tiny,
    tmp_path,
    train__branch_from=f"{constant}:{_AT}",
    train__num_steps=6,
    data__batch_size=16,
    optim__learning_rate=3e-3,
    schedule__name="linear",
    schedule__unit="steps",
    schedule__warmup=0.0,
    schedule__end_factor=0.0,
    mesh__data=4,
    mesh__fsdp=2,
  )
  assert checkpoint.list_steps(folder) == [6]
  said = capsys.readouterr().out
  before, after = 1e-3, 3e-3 * (1 - _AT / 6)
  words = f"update 3 was {before:.2g}, that of update 4 is now {after:.2g}."
  assert words in said


@pytest.mark.slow
def test_processes_branch_together(group, tmp_path):
  changes = {"train__num_steps": _END} | _KEPT
  group.run(tmp_path / "whole", 2, 2, **changes)
  source = f"{tmp_path / 'whole'}:{_AT}"
  group.run(tmp_path / "branch", 2, 2, train__branch_from=source, **changes)
  assert _digest(tmp_path / "branch") == _digest(tmp_path / "whole")
