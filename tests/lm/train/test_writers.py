"""The metrics file survives kills, resumes and bad numbers."""

import contextlib
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.runs import checkpoint, metrics
from lm.train import loop


def _write(path, *lines):
  writer = metrics.JsonlWriter(path)
  for step, scalars in lines:
    writer.write(step, scalars)
  writer.close()


def test_columns_come_back(tmp_path):
  _write(
    tmp_path / "metrics.jsonl",
    (1, {"train/loss": 3.5, "tokens": 10}),
    (2, {"train/loss": jnp.float32(2.5), "tokens": np.int64(20), "eval": 7.0}),
  )
  columns = metrics.read(tmp_path)
  assert set(columns) == {"train/loss", "tokens", "eval"}
  np.testing.assert_array_equal(columns["train/loss"].steps, [1, 2])
  np.testing.assert_array_equal(columns["train/loss"].values, [3.5, 2.5])
  np.testing.assert_array_equal(columns["eval"].steps, [2])
  assert columns["tokens"].values.dtype == np.float64


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
  path = tmp_path / "metrics.jsonl"
  writer = metrics.JsonlWriter(path)
  writer.write(7, {"train/loss": 1.0, "tokens": 3})
  assert json.loads(path.read_text()) == {
    "step": 7, "train/loss": 1.0, "tokens": 3,
  }  # fmt: skip
  writer.close()


def test_non_finite_numbers_survive_as_valid_json(tmp_path):
  path = tmp_path / "metrics.jsonl"
  _write(path, (1, {"a": math.nan, "b": -math.inf, "c": jnp.inf}))

  def reject(name):
    raise AssertionError(f"{name} is not JSON")

  json.loads(path.read_text(), parse_constant=reject)
  columns = metrics.read(path)
  assert math.isnan(columns["a"].values[0])
  assert columns["b"].values[0] == -math.inf
  assert columns["c"].values[0] == math.inf


@pytest.mark.parametrize(
  ("tail", "steps"),
  [
    ('{"step": 2, "lo', [1, 3]),  # Torn: gone.
    ('{"step": 2, "loss": 2.0}', [1, 2, 3]),  # Whole but for its newline.
    ('{"step": 2, "loss": 2.0}\n', [1, 2, 3]),
    ("\xc3".encode("latin-1"), [1, 3]),  # Torn inside a character.
    ("4", [1, 3]),  # Valid JSON, yet not a line.
  ],
)
def test_reopening_repairs_the_last_line(tmp_path, tail, steps):
  path = tmp_path / "metrics.jsonl"
  _write(path, (1, {"loss": 1.0}))
  with path.open("ab") as file:
    file.write(tail if isinstance(tail, bytes) else tail.encode())
  before = [step for step in steps if step != 3]
  np.testing.assert_array_equal(metrics.read(path)["loss"].steps, before)
  _write(path, (3, {"loss": 3.0}))
  column = metrics.read(path)["loss"]
  np.testing.assert_array_equal(column.steps, steps)
  np.testing.assert_array_equal(column.values, steps)
  assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_file_cut_anywhere_is_as_if_the_writer_had_stopped_a_line_before(
  tmp_path,
):
  """Killed after any byte, and repeating the steps from there."""
  whole = tmp_path / "whole.jsonl"
  with contextlib.closing(metrics.JsonlWriter(whole)) as writer:
    for step in range(3):
      writer.write(step, {"a": step / 3, "b": float("nan")})
  data = whole.read_bytes()
  for cut in range(len(data) + 1):
    path = tmp_path / f"{cut}.jsonl"
    path.write_bytes(data[:cut])
    with contextlib.closing(metrics.JsonlWriter(path)) as writer:
      for step in range(path.read_text().count("\n"), 3):
        writer.write(step, {"a": step / 3, "b": float("nan")})
    assert path.read_bytes() == data


def test_lines_are_on_the_disk_before_the_checkpoint_that_follows_them(
  tiny, tmp_path, monkeypatch
):
  order = []

  def note(name, method):
    def noting(self, *args):
      order.append((name, metrics.read(tmp_path)["train/loss"].steps[-1]))
      return method(self, *args)

    return noting

  for owner, name in [
    (metrics.JsonlWriter, "sync"), (checkpoint.Checkpointer, "save"),
  ]:  # fmt: skip
    monkeypatch.setattr(owner, name, note(name, getattr(owner, name)))
  changes = {"train__num_steps": 4, "checkpoint__every": 2, "eval__every": 2}
  assert loop.train(tiny.config(**changes), tmp_path) == 0
  assert order == [("sync", 2), ("save", 2), ("sync", 4), ("save", 4)]


def test_a_resume_replaces_repeated_steps_key_by_key(tmp_path):
  path = tmp_path / "metrics.jsonl"
  _write(path, (10, {"loss": 1.0, "eval": 5.0}), (20, {"loss": 2.0}))
  _write(path, (10, {"loss": -1.0}), (15, {"loss": -1.5}))
  columns = metrics.read(path)
  np.testing.assert_array_equal(columns["loss"].steps, [10, 15, 20])
  np.testing.assert_array_equal(columns["loss"].values, [-1.0, -1.5, 2.0])
  np.testing.assert_array_equal(columns["eval"].values, [5.0])


def test_a_bad_line_in_the_middle_is_an_error_with_its_number(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
  with pytest.raises(ValueError, match="line 2.*rubbish"):
    metrics.read(path)


def test_arrays_are_refused_by_name(tmp_path):
  writer = metrics.JsonlWriter(tmp_path / "m.jsonl")
  with pytest.raises(ValueError, match=r"'grads' has shape \(2,\)"):
    writer.write(1, {"grads": np.ones(2)})
  writer.close()


def test_only_process_zero_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  writer = metrics.open_writers(tmp_path, tensorboard=True, wandb=True)
  writer.write(1, {"loss": 1.0})
  writer.close()
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ("module", "extra"), [("tensorboardX", "tensorboard"), ("wandb", "wandb")]
)
def test_a_missing_package_names_its_extra(
  tmp_path, monkeypatch, module, extra
):
  monkeypatch.setitem(sys.modules, module, None)  # Makes its import fail.
  with pytest.raises(ValueError, match=rf"goldenpath\[{extra}\]"):
    metrics.open_writers(tmp_path, **{extra: True})


def test_tensorboard_gets_every_scalar_and_purges_from_the_first_step(
  tmp_path, monkeypatch
):
  calls = []

  class SummaryWriter:
    def __init__(self, logdir, purge_step):
      calls.append((logdir, purge_step))

    def add_scalar(self, key, value, step):
      calls.append((key, value, step))

    def flush(self):
      calls.append("flushed")

    def close(self):
      calls.append("closed")

  module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
  monkeypatch.setitem(sys.modules, "tensorboardX", module)
  writer = metrics.open_writers(tmp_path, tensorboard=True)
  writer.write(5, {"a": jnp.float32(1.5)})
  writer.sync()
  writer.write(6, {"a": 2.0})
  writer.close()
  opened = (str(tmp_path / "tensorboard"), 5)
  assert calls == [opened, ("a", 1.5, 5), "flushed", ("a", 2.0, 6), "closed"]
  np.testing.assert_array_equal(metrics.read(tmp_path)["a"].values, [1.5, 2.0])


def test_wandb_keeps_its_run_over_a_resume(tmp_path, monkeypatch):
  opened, logged = [], []
  run = types.SimpleNamespace(
    log=lambda scalars, step: logged.append((step, scalars)),
    finish=lambda: logged.append("finished"),
  )

  def init(**kwargs):
    opened.append(kwargs)
    return run

  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
  for step in (1, 2):
    writer = metrics.open_writers(tmp_path, wandb=True, config={"seed": 3})
    writer.write(step, {"a": 1.0})
    writer.close()
  assert opened[0]["id"] == opened[1]["id"]
  assert opened[0]["config"] == {"seed": 3}
  assert logged == [(1, {"a": 1.0}), "finished", (2, {"a": 1.0}), "finished"]
