"""Two real processes over gloo are one program."""

import json
import pathlib
import signal

import numpy as np
import pytest

from lm.config import errors
from lm.processes import peers
from lm.runs import checkpoint, metrics, workdir

_STEPS = {
  "train__num_steps": 12,
  "checkpoint__every": 4,
  "mesh__data": 2,
  "mesh__tensor": 2,
}
_ENDLESS = {
  "train__num_steps": 100_000,
  "checkpoint__every": 20,
  "mesh__data": -1,
}


def _losses(folder):
  columns = metrics.read(folder)
  return {k: columns[k].values.tolist() for k in columns if "loss" in k}


@pytest.fixture(scope="module")
def four_devices(group, tmp_path_factory):
  folder = tmp_path_factory.mktemp("four")
  group.run(folder, 1, 4, **_STEPS)
  return folder


def test_two_by_two_is_one_by_four_to_the_bit(group, four_devices, tmp_path):
  """Sums of two terms have one order: data over processes, tensor within."""
  group.run(tmp_path, 2, 2, **_STEPS)
  assert _losses(tmp_path) == _losses(four_devices)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  steps = [json.loads(line)["step"] for line in lines]
  assert len(steps) == 12 + 1  # Once a step, and one evaluation: one writer.


def test_sums_of_four_terms_agree_to_rounding(group, four_devices, tmp_path):
  """gloo's ring begins each part of a sum at another process."""
  group.run(tmp_path, 2, 2, **_STEPS | {"mesh__data": 4, "mesh__tensor": 1})
  expected = _losses(four_devices)
  for key, values in _losses(tmp_path).items():
    np.testing.assert_allclose(values, expected[key], rtol=1e-5)


@pytest.mark.parametrize(
  "number",
  [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
)
def test_one_of_two_is_told_to_stop_and_one_process_goes_on(
  group, tmp_path, number
):
  long = _STEPS | {"train__num_steps": 4000, "schedule__unit": "steps"}
  long |= {"schedule__name": "constant", "schedule__warmup": 1.0}
  running = group.start(tmp_path, 2, 2, **long, log__progress="plain")
  group.wait_for_a_checkpoint(tmp_path, running)
  running[1].send_signal(number)
  codes, outputs = group.join(running)
  assert codes == [errors.PREEMPTED] * 2, "\n".join(outputs)
  stopped = checkpoint.list_steps(tmp_path)[-1]
  assert f"Stopped by SIGTERM to a process; step {stopped} is s" in outputs[0]
  group.run(tmp_path, 1, 4, **long | {"train__num_steps": stopped + 3})
  assert checkpoint.list_steps(tmp_path)[-1] == stopped + 3


@pytest.mark.slow
def test_one_of_four_is_told_to_stop_and_all_do(group, tmp_path):
  running = group.start(tmp_path, 4, 1, **_ENDLESS)
  group.wait_for_a_checkpoint(tmp_path, running)
  running[2].send_signal(signal.SIGTERM)
  codes, outputs = group.join(running)
  assert codes == [errors.PREEMPTED] * 4, "\n".join(outputs)
  status = json.loads((tmp_path / "run.json").read_text())
  assert status["step"] == checkpoint.list_steps(tmp_path)[-1]


def _kill_one(group, folder, processes, devices, victim):
  """Kills one process; the others must not wait for it, and say why."""
  running = group.start(folder, processes, devices, **_ENDLESS)
  group.wait_for_a_checkpoint(folder, running)
  group.kill(running.pop(victim))
  codes, outputs = group.join(running)
  newest = checkpoint.list_steps(folder)[-1]
  for code, output in zip(codes, outputs, strict=True):
    assert code == errors.PEER_LOST, output
    assert "another process of this run has ended or cannot be" in output
    assert "Run the same command again on all of them" in output
    assert f"goes on from step {newest}." in output
  return newest


def test_the_other_of_a_killed_process_ends_too(group, tmp_path):
  """Process 0 takes the service away."""
  _kill_one(group, tmp_path, 2, 1, 0)


@pytest.mark.slow
def test_a_broken_connection_is_noticed_too(group, tmp_path):
  """gloo notices; what is left goes on alone."""
  newest = _kill_one(group, tmp_path, 2, 1, 1)
  shorter = {
    "train__num_steps": newest + 2, "schedule__allow_new_length": True,
  }  # fmt: skip
  group.run(tmp_path, 1, 2, **_ENDLESS | shorter)


@pytest.mark.slow  # A collective within a process hides the broken connection.
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_all_others_of_a_killed_process_end_too(
  group, tmp_path, processes, devices
):
  _kill_one(group, tmp_path, processes, devices, 1)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_an_error_of_one_process_ends_both(group, tmp_path, index):
  """One does not find the data: its own error, and an end for the other."""
  odd = (index, {"data__root": "gone"})
  codes, outputs = group.join(group.start(tmp_path, 2, 1, odd, **_ENDLESS))
  assert codes[index] == errors.BAD_INPUT, outputs[index]
  assert "lm.data.prepare" in outputs[index]
  assert codes[1 - index] == errors.PEER_LOST, outputs[1 - index]
  assert "goes on from the start." in outputs[1 - index]


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_by_all(group, tmp_path):
  running = group.start(tmp_path, 2, 1, **_ENDLESS, data__root="gone")
  codes, outputs = group.join(running)
  assert codes == [errors.BAD_INPUT] * 2, "\n".join(outputs)
  assert all("lm.data.prepare" in output for output in outputs)


def test_the_sign_of_a_loss_is_found_behind_what_it_caused():
  def fail():
    try:
      raise ValueError("UNKNOWN: Gloo all-reduce failed: closed by peer\nmore")
    except ValueError as error:
      raise checkpoint.CheckpointError("Could not write") from error

  with pytest.raises(checkpoint.CheckpointError) as caught:
    fail()
  sign = peers.sign_of_loss(caught.value)
  assert sign == "UNKNOWN: Gloo all-reduce failed: closed by peer"
  assert peers.sign_of_loss(OSError("No space left")) is None


def test_hosts_whose_processes_have_one_number_share_a_folder(
  tmp_path, monkeypatch
):
  """As in containers: the other one removes the probe first."""
  write = pathlib.Path.write_text

  def write_and_lose(path, text):
    write(path, text)
    path.unlink()

  monkeypatch.setattr(pathlib.Path, "write_text", write_and_lose)
  assert workdir.prepare(tmp_path / "run") == tmp_path / "run"
