"""What a run does beside training, on the way and at its end."""

import json

import pytest

from lm.runs import checkpoint, metrics, workdir
from lm.train import loop


def _train(tiny, folder, **changes):
  changes = {"mesh__data": 8} | changes
  return loop.train(tiny.config(**changes), folder)


def test_the_files_of_a_run(tiny, tmp_path):
  names = ("ema:0.5", "tail:0.5")
  changes = {"optim__averages": names, "eval__every": 2, "eval__batches": 1}
  code = _train(tiny, tmp_path, **changes)
  assert code == 0
  run = json.loads((tmp_path / "run.json").read_text())
  assert run["status"] == "finished"
  assert run["compiles_in_loop"] == 0
  assert set(run["floors"]) == {tiny.corpus}
  assert run["floors"][tiny.corpus]["trigram"] > 0
  assert workdir.read_config(tmp_path).model.real_V == 258
  columns = metrics.read(tmp_path)
  name = f"eval/{tiny.corpus}"
  assert columns["train/loss"].steps.tolist() == [1, 2, 3, 4, 5, 6]
  assert columns[f"{name}/loss"].steps.tolist() == [2, 4, 6]
  assert columns[f"{name}/final_loss"].steps.tolist() == [6]
  for average in names:
    assert columns[f"{name}/avg/{average}/loss"].steps.tolist() == [2, 4, 6]
    assert columns[f"{name}/avg/{average}/final_loss"].steps.tolist() == [6]
  assert columns["tokens"].values.tolist()[-1] == 6 * 8 * 32
  bits = columns[f"{name}/bits_per_byte"].values[-1]
  assert 1 < bits < 9
  for key in ("perf/step_ms", "perf/tokens_per_s", "perf/data_wait_ms"):
    assert columns[key].values[-1] >= 0


def test_a_finished_run_has_nothing_left_to_do(tiny, tmp_path, capfd):
  assert _train(tiny, tmp_path) == 0
  before = (tmp_path / "metrics.jsonl").read_text()
  assert _train(tiny, tmp_path, log__progress="plain") == 0
  assert "Nothing left to do" in capfd.readouterr().err
  assert (tmp_path / "metrics.jsonl").read_text() == before


def test_the_time_left_is_told_early_and_once(tiny, tmp_path, capfd):
  changes = {"train__num_steps": 30, "log__progress": "plain"}
  assert _train(tiny, tmp_path, **changes) == 0
  lines = capfd.readouterr().err.splitlines()
  told = [i for i, line in enumerate(lines) if "of training to go" in line]
  assert len(told) == 1
  assert told[0] < next(i for i, x in enumerate(lines) if "step 30/30" in x)


def test_details_appear_at_their_steps(tiny, tmp_path):
  assert _train(tiny, tmp_path, log__details_every=3) == 0
  columns = metrics.read(tmp_path)
  key = "leaf/updates/blocks/0/mlp/in/rms"
  assert columns[key].steps.tolist() == [3, 6]
  assert columns["train/update_norm"].steps.tolist() == [3, 6]
  assert columns["train/grad_norm"].steps.tolist() == [1, 2, 3, 4, 5, 6]


def test_a_profile_of_the_asked_steps(tiny, tmp_path):
  changes = {"log__profile_start": 2, "log__profile_steps": 2}
  assert _train(tiny, tmp_path, **changes) == 0
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_it_stops_once_the_loss_is_low_enough(tiny, tmp_path):
  changes = {"train__stop_at_loss": 100.0, "eval__every": 2}
  assert _train(tiny, tmp_path, **changes) == 0
  assert checkpoint.list_steps(tmp_path) == [2]


@pytest.mark.parametrize(
  ("changes", "kept"),
  [
    ({"checkpoint__keep": 1}, [6]),
    ({"checkpoint__keep": 1, "checkpoint__keep_period": 4}, [4, 6]),
    ({"checkpoint__keep": 3}, [4, 5, 6]),
  ],
)
def test_which_checkpoints_are_kept(tiny, tmp_path, changes, kept):
  assert _train(tiny, tmp_path, checkpoint__every=1, **changes) == 0
  assert checkpoint.list_steps(tmp_path) == kept


def test_the_best_checkpoint_is_kept(tiny, tmp_path):
  """At this rate the loss rises after the first evaluations."""
  changes = {
    "checkpoint__every": 1,
    "checkpoint__keep": 1,
    "checkpoint__keep_best": True,
    "eval__every": 1,
    "optim__learning_rate": 1.0,
    "optim__name": "sgd",
    "optim__kwargs": {},
    "schedule__name": "constant",
    "schedule__warmup": 0.0,
    "optim__clip_norm": 0.0,
  }
  assert _train(tiny, tmp_path, **changes) == 0
  losses = metrics.read(tmp_path)[f"eval/{tiny.corpus}/loss"]
  best = int(losses.steps[losses.values.argmin()])
  assert checkpoint.list_steps(tmp_path) == sorted({best, 6})


def test_samples_are_printed_at_the_end(tiny, tmp_path, capfd):
  changes = {"log__samples": 2, "log__sample_tokens": 8}
  assert _train(tiny, tmp_path, log__progress="plain", **changes) == 0
  printed = capfd.readouterr().err
  assert "sample 1" in printed
  assert "sample 2" in printed
