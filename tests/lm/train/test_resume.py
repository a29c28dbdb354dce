"""A run stopped in any way goes on to the same bits."""

import json
import pathlib
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import waiting

import optim
from lm.config import errors, load
from lm.config.errors import ConfigError
from lm.runs import checkpoint, metrics, workdir
from lm.step import build, state


def _state(tiny, folder, step=None, devices=1):
  """The state of a run's checkpoint, restored onto a few devices."""
  parts = build.build(workdir.read_config(folder), jax.devices()[:devices])
  step = step or checkpoint.list_steps(folder)[-1]
  return checkpoint.restore(folder, step, parts)


def _losses(folder):
  """Everything that must be equal: all metrics but the times."""
  return {
    key: (column.steps.tolist(), column.values.tolist())
    for key, column in metrics.read(folder).items()
    if not key.startswith("perf/") and key != "seconds"
  }


def _same(tiny, a, b):
  assert state.digest(_state(tiny, a)) == state.digest(_state(tiny, b))
  assert _losses(a) == _losses(b)
  assert json.loads((b / "run.json").read_text())["status"] == "finished"


_LONG = {
  "train__num_steps": 150,
  "checkpoint__every": 5,
  "optim__averages": ("ema:0.9",),
}


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
  """The run that nobody stopped."""
  folder = tmp_path_factory.mktemp("undisturbed")
  code, output = tiny.run(folder, **_LONG)
  assert code == 0, output
  return folder


def _wait_for_checkpoints(folder, count, process):
  """Until `count` more checkpoints exist than before, or the run has ended."""
  base = (
    len(checkpoint.list_steps(folder)) and checkpoint.list_steps(folder)[-1]
  )
  while process.poll() is None:
    steps = checkpoint.list_steps(folder)
    if steps and steps[-1] >= base + 5 * count:
      return
    time.sleep(0.01)


def _kill_at_random(tiny, folder, kills):
  rng = random.Random(kills)
  for _ in range(kills):
    process = tiny.start(folder, **_LONG)
    _wait_for_checkpoints(folder, rng.randint(0, 2), process)
    time.sleep(rng.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.communicate()
  code, output = tiny.run(folder, **_LONG)
  assert code == 0, output


def test_killed_at_five_random_moments(tiny, undisturbed, tmp_path):
  _kill_at_random(tiny, tmp_path, 5)
  _same(tiny, undisturbed, tmp_path)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tiny, undisturbed, tmp_path):
  _kill_at_random(tiny, tmp_path, 20)
  _same(tiny, undisturbed, tmp_path)


@pytest.mark.parametrize(
  "number",
  [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
)
def test_told_to_stop_it_saves_and_says_how_to_go_on(
  tiny, undisturbed, tmp_path, number
):
  process = tiny.start(tmp_path, **_LONG, log__progress="plain")
  _wait_for_checkpoints(tmp_path, 1, process)
  process.send_signal(number)
  output = process.communicate(timeout=waiting.LONG)[0]
  assert process.returncode == errors.PREEMPTED, output
  assert "Run the same command again" in output
  status = json.loads((tmp_path / "run.json").read_text())
  assert status["status"] == "preempted"
  assert status["step"] == checkpoint.list_steps(tmp_path)[-1]
  code, output = tiny.run(tmp_path, **_LONG)
  assert code == 0, output
  _same(tiny, undisturbed, tmp_path)


def _truncate_something(folder):
  """Halves the largest file of the newest checkpoint."""
  newest = folder / "checkpoints" / str(checkpoint.list_steps(folder)[-1])
  files = [p for p in newest.glob("state/**/*") if p.is_file()]
  largest = max(files, key=lambda p: p.stat().st_size)
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def _garble_clock(folder):
  newest = folder / "checkpoints" / str(checkpoint.list_steps(folder)[-1])
  (newest / "clock" / "metadata").write_text("{")


@pytest.mark.parametrize("tear", [_truncate_something, _garble_clock])
def test_a_torn_newest_checkpoint_is_set_aside(
  tiny, undisturbed, tmp_path, tear
):
  folder = tmp_path / "run"
  shutil.copytree(undisturbed, folder)
  newest = checkpoint.list_steps(folder)[-1]
  tear(folder)
  code, output = tiny.run(folder, **_LONG)
  assert code == 0, output
  assert "is damaged" in output
  assert f"resuming from step {newest - 5}" in output
  assert (folder / "damaged" / str(newest)).is_dir()
  _same(tiny, undisturbed, folder)


def test_a_deleted_cache_says_what_to_run_and_the_run_goes_on(
  tiny, undisturbed, tmp_path
):
  folder = tmp_path / "run"
  shutil.copytree(undisturbed, folder)
  code, output = tiny.run(folder, **_LONG, data__root=str(tmp_path / "gone"))
  assert code == errors.BAD_INPUT
  assert "lm.data.prepare" in output
  code, output = tiny.run(folder, **_LONG)
  assert code == 0, output
  _same(tiny, undisturbed, folder)


def test_another_mesh_restores_the_same_state(tiny, undisturbed):
  one, eight = _state(tiny, undisturbed), _state(tiny, undisturbed, devices=8)
  assert len(jax.tree.leaves(eight)[0].sharding.device_set) == 8
  assert state.digest(one) == state.digest(eight)


def test_a_longer_run_goes_on_from_the_end_of_a_shorter(tiny, tmp_path):
  constant = {"schedule__name": "constant", "schedule__unit": "steps"}
  short, long = tmp_path / "short", tmp_path / "long"
  for folder, lengths in ((short, (4, 9)), (long, (9,))):
    for steps in lengths:
      code, output = tiny.run(
        folder, train__num_steps=steps, **constant, schedule__warmup=2.0
      )
      assert code == 0, output
  assert state.digest(_state(tiny, short)) == state.digest(_state(tiny, long))


_NAN = {
  "optim__learning_rate": 1e38,
  "optim__name": "sgd",
  "optim__kwargs": "{}",
  "optim__clip_norm": 0.0,
  "schedule__warmup": 0.0,
  "schedule__name": "constant",
}


def test_a_number_that_is_not_finite_stops_with_the_last_good_state(
  tiny, tmp_path
):
  code, output = tiny.run(tmp_path, **_NAN, log__progress="plain")
  assert code == errors.NOT_FINITE, output
  status = json.loads((tmp_path / "run.json").read_text())
  good = status["step"]
  assert status["status"] == "crashed"
  assert status["examples"] == [8 * good, 8 * good + 8]
  assert f"examples [{8 * good}, {8 * good + 8})" in output
  saved = _state(tiny, tmp_path, good)
  assert int(saved.step) == good
  assert not bool(saved.halted)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))
  again, _ = tiny.run(tmp_path, **_NAN)
  assert again == errors.NOT_FINITE


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"model__F": 128}, ["config.model.F", "64", "128", "init_from"]),
    ({"optim__learning_rate": 0.5}, ["config.optim.learning_rate"]),
    ({"seed": 7}, ["config.seed"]),
    ({"data__batch_size": 16}, ["config.data.batch_size"]),
    ({"optim__kwargs": '{"b1": 0.5}'}, ["config.optim.kwargs.b1"]),
  ],
)
def test_another_configuration_in_the_same_folder_is_refused(
  tiny, undisturbed, changes, words
):
  code, output = tiny.run(undisturbed, **(_LONG | changes))
  assert code == errors.BAD_INPUT
  assert "Traceback" not in output
  for word in words:
    assert word in output


def test_changed_data_under_a_checkpoint_is_refused(tiny):
  config = load.resolve(
    tiny.config(), vocab_size=258, eos_id=1, pad_id=0, platform="cpu"
  )
  from lm.runs import resume

  saved = resume.to_json(resume.Clock(3, 24, 768), config, "abc")
  assert resume.check(saved, config, "abc") == resume.Clock(3, 24, 768)
  with pytest.raises(ConfigError, match="fingerprint"):
    resume.check(saved, config, "abd")


def test_init_from_keeps_the_weights_and_nothing_else(
  tiny, undisturbed, tmp_path
):
  code, output = tiny.run(
    tmp_path,
    train__init_from=str(undisturbed),
    train__num_steps=1,
    optim__learning_rate=0.0,
    model__layers="scan",
  )
  assert code == 0, output
  from lm.model import params as param_table

  old, new = _state(tiny, undisturbed), _state(tiny, tmp_path)
  assert int(new.step) == 1
  unrolled = param_table.to_layout(new.params, "unroll")
  assert state.digest(unrolled) == state.digest(old.params)
  moments = jax.tree.leaves(new.opt_state)
  assert not any(np.isnan(m).any() for m in moments)


def test_export_is_read_back_by_init_from(tiny, undisturbed, tmp_path):
  from lm.runs import weights

  out = tmp_path / "weights.npz"
  step = weights.export(undisturbed, out, average="ema:0.9")
  assert step == 150
  config, params = weights.read_export(out)
  assert config == workdir.read_config(undisturbed)
  old = _state(tiny, undisturbed)
  average = optim.eval_params(old.opt_state, old.params, "ema:0.9")
  assert state.digest(params) == state.digest(average)
  code, output = tiny.run(
    tmp_path / "run", train__init_from=str(out), optim__learning_rate=0.0
  )
  assert code == 0, output
  again = _state(tiny, tmp_path / "run")
  assert state.digest(again.params) == state.digest(average)


def test_nothing_is_compiled_within_the_loop(undisturbed):
  facts = json.loads(pathlib.Path(undisturbed / "run.json").read_text())
  assert facts["compiles_in_loop"] == 0
