"""What the runs of a study have written, read back."""

import json
import math
from types import SimpleNamespace

import numpy as np
import planted_study as planted
import pytest

from lm.config.errors import InputError
from lm.runs import metrics
from lm.study import records, session
from lm.study.session import Session

_LOSS = {"loss": "loss"}
_POINTS = [[100.0, 5.0], [250.0, 4.0], [1000.0, 3.5]]


def _plant(folder, points=_POINTS, scores=_LOSS, update_tokens=100):
  settings = {"learning_rate": 0.1}
  records.plant(folder, points, settings, scores, update_tokens, "t.py:f")
  return records.find(folder, scores, "t.py:f")


def test_a_planted_run_is_read_back(tmp_path):
  scores = {"loss": "loss", "age": "avg/*/loss"}
  record = _plant(tmp_path / "run", scores=scores)
  assert record.losses == dict.fromkeys(scores, 3.5)
  for name in ("loss", "age"):
    np.testing.assert_array_equal(np.transpose(record.curves[name]), _POINTS)
  assert (record.tokens, record.updates, record.depth) == (1000, 10, 1)
  assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_only_average_is_no_average_of_two(tmp_path):
  scores = {"age": "avg/*/loss", "tail": "avg/tail/loss"}
  with pytest.raises(InputError, match="has the averages .*name it"):
    _plant(tmp_path / "run", scores=scores)


def test_points_may_be_closer_than_updates_are(tmp_path):
  record = _plant(tmp_path / "run", update_tokens=800)
  assert record.updates == 1.25
  at = record.updates_at([0, 125, 500, math.inf])
  np.testing.assert_allclose(at, [0, 125 / 800, 500 / 800, math.inf])


def test_updates_follow_the_lines_of_a_run_whose_batch_grows(tmp_path):
  folder = tmp_path / "run"
  writer = metrics.JsonlWriter(folder / metrics.METRICS_FILE)
  for step, tokens in ((10, 100), (20, 300), (30, 700)):
    loss = {"eval/x/loss": 4.0, "eval/x/final_loss": 3.0}
    writer.write(step, {"tokens": tokens, "gn/depth": 12.0, **loss})
  writer.close()
  (folder / "run.json").write_text('{"status": "finished"}')
  record = records.find(folder, _LOSS)
  np.testing.assert_allclose(record.updates_at([100, 200, 500]), [10, 15, 25])
  assert (record.losses["loss"], record.depth) == (3, 12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_one_of_a_run_that_diverged(tmp_path, bad):
  record = _plant(tmp_path / "run", [[100.0, 5.0], [200.0, bad]])
  assert record.losses == {"loss": math.inf}


@pytest.mark.parametrize("status", ["running", "stopped", None])
def test_a_run_that_goes_on_has_no_record(tmp_path, status):
  _plant(tmp_path / "run")
  text = "{" if status is None else json.dumps({"status": status})
  (tmp_path / "run" / "run.json").write_text(text)
  assert records.find(tmp_path / "run", _LOSS, "t.py:f") is None
  assert records.find(tmp_path / "none", _LOSS) is None


@pytest.mark.parametrize("trainer", ["", "other.py:f"])
def test_a_run_of_another_trainer_is_refused(tmp_path, trainer):
  _plant(tmp_path / "run")
  with pytest.raises(InputError, match=r"made by t\.py:f, not by .*--root"):
    records.find(tmp_path / "run", _LOSS, trainer)


def test_a_missing_score_is_named(tmp_path):
  _plant(tmp_path / "run")
  with pytest.raises(InputError, match="has no eval/planted/final_stderr"):
    records.find(tmp_path / "run", {"error": "stderr"}, "t.py:f")


@pytest.mark.parametrize(
  ("points", "words"),
  [
    (None, r"shape \(\) for .*must be \[points, 2\]"),
    ([1.0, 2.0], r"shape \(2,\)"),
    ([[1.0, 2.0, 3.0]], r"shape \(1, 3\)"),
    (np.zeros((0, 2)), r"shape \(0, 2\)"),
    ([[1.0, 2.0], [3.0]], "it must be an array"),
    ({"loss": 3}, "it must be an array"),
    ([["a", 3.0]], "it must be an array"),
    ([[0.0, 3.0]], "must be finite, > 0, and increase"),
    ([[2.0, 3.0], [2.0, 3.0]], "must be finite, > 0, and increase"),
    ([[2.0, 3.0], [math.nan, 3.0]], "must be finite, > 0, and increase"),
    ([[2.0, 3.0], [math.inf, 3.0]], "must be finite, > 0, and increase"),
  ],
)
def test_what_a_trainer_returns_is_checked(tmp_path, points, words):
  with pytest.raises(InputError, match=f"--trainer=t.py:f returned.*{words}"):
    _plant(tmp_path / "run", points)
  assert not [*tmp_path.iterdir()]


def test_a_trainer_is_a_function_of_a_file(tmp_path):
  file = tmp_path / "t.py"
  file.write_text("number = 3\ndef f(): return 4\n")
  assert records.load_trainer(f"{file}:f")() == 4
  for text in (str(file), f"{file}:g", f"{file}:number"):
    with pytest.raises(InputError, match="must be FILE.py:NAME of a function"):
      records.load_trainer(text)
  with pytest.raises(InputError, match="no file"):
    records.load_trainer("none.py:f")


def test_the_first_of_two_processes_makes_the_run(tmp_path):
  first = _plant(tmp_path / "run")
  again = _plant(tmp_path / "run", [[1.0, 9.0]])
  assert first.losses == again.losses == {"loss": 3.5}
  assert [path.name for path in tmp_path.iterdir()] == ["run"]


def _session(root, calls, **changes):
  def train(method, settings, horizon, batch, seed):
    calls.append((method, seed))
    return [[horizon, 4.0]]

  session = Session(planted.study(arms=("adamw",), **changes), root)
  session._train, session.trainer = train, "t.py:f"
  return session


def _finish(session):
  while wave := session.planned().missing(session.find):
    session.make(wave, 1)


def test_runs_are_made_once_and_foreign_ones_are_listed(tmp_path):
  calls = []
  session = _session(tmp_path, calls)
  _finish(session)
  assert len(calls) == len({*calls}) + 5 == 9  # Six trials of one seed.
  ids = {run.id for run in session.planned().runs}
  stale = min(ids)[:-8] + "00000000"
  for name in ("config.json", "run.json", metrics.METRICS_FILE):
    folder = tmp_path / f"{stale}{name}"
    folder.mkdir()
    (folder / name).write_text("{}")
  (tmp_path / "plots").mkdir()
  again = _session(tmp_path, calls)
  assert not again.planned().missing(again.find)
  again.make(again.planned().runs, 1)
  assert len(calls) == 9
  assert len(again.foreign(again.planned())) == 3
  assert all(f.startswith(stale) for f in again.foreign(again.planned()))


def test_a_run_that_crashed_is_a_trial_and_is_not_repeated(tmp_path):
  calls = []
  session = _session(tmp_path, calls)
  session.make(session.planned().missing(session.find), 1)
  asked = session.planned().runs
  start = next(r for r in asked if r.settings["learning_rate"] == 6e-3)
  info = {"status": "crashed", "trainer": "t.py:f"}
  (tmp_path / start.id / "run.json").write_text(json.dumps(info))
  again = _session(tmp_path, calls)
  _finish(again)
  choice = again.planned().choices["adamw", "one", 1.0]
  assert math.inf in [loss for _, loss in choice.tried]
  assert choice.settings["learning_rate"] != 6e-3
  assert len(choice.tried) == 6
  assert math.isnan(again.find(start.id).updates)
  assert len(calls) == 9


def test_a_trainer_cannot_go_on_with_a_run(tmp_path):
  session = _session(tmp_path, [])
  wave = session.planned().missing(session.find)
  (tmp_path / wave[0].id).mkdir()
  with pytest.raises(InputError, match="not ended.*remove the folder"):
    session.make(wave, 1)


class _Text:
  """64 rows of a corpus."""

  prepared = SimpleNamespace(meta=SimpleNamespace(corpus="sotu"))

  def __len__(self):
    return 64


@pytest.mark.parametrize(("epochs", "fits"), [(3.9, False), (4.0, True)])
def test_a_run_sees_its_text_as_often_as_declared(
  tmp_path, monkeypatch, epochs, fits
):
  made = []
  monkeypatch.setattr(session.rows, "open_training", lambda data: [_Text()])
  monkeypatch.setattr(
    session.sweeps, "run_sweep", lambda jobs, *a, **k: made.extend(jobs)
  )
  s = Session(planted.study(epochs=epochs), tmp_path)
  wave = s.planned().missing(s.find)
  assert {run.tokens for run in wave} == {4 * 64 * 256}
  if fits:
    s.make(wave, 1)
    assert len(made) == len(wave)
    return
  with pytest.raises(
    InputError, match="adamw in one sees sotu 4.00 times.*3.9"
  ):
    s.make(wave, 1)
  assert not made
