"""Two real processes over gloo are one program."""

import json
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from lm import program
from lm.train import checkpoint, writers

_STEPS = {
  "train__num_steps": 12,
  "checkpoint__every": 4,
  "mesh__data": 2,
  "mesh__tensor": 2,
}


def _port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def _start(tiny, folder, processes, devices, **changes):
  """Starts the program on `processes` times `devices`."""
  env = {"JAX_NUM_CPU_DEVICES": str(devices)}
  if processes == 1:
    return [tiny.start(folder, env=env, **(_STEPS | changes))]
  coordinator = f"127.0.0.1:{_port()}"
  return [
    tiny.start(
      folder,
      "--distributed=explicit",
      f"--coordinator={coordinator}",
      f"--num_processes={processes}",
      f"--process_id={i}",
      env=env,
      **(_STEPS | changes),
    )
    for i in range(processes)
  ]


def _join(running):
  try:
    outputs = [p.communicate(timeout=120)[0] for p in running]
  except subprocess.TimeoutExpired:
    [p.kill() for p in running]
    raise
  return [p.returncode for p in running], "\n".join(outputs)


def _wait_for_a_checkpoint(folder, running):
  while not checkpoint.list_steps(folder):
    if any(p.poll() is not None for p in running):
      [p.kill() for p in running]
      pytest.fail(_join(running)[1])
    time.sleep(0.1)


def _losses(folder):
  columns = writers.read(folder)
  return {k: columns[k].values.tolist() for k in columns if "loss" in k}


@pytest.fixture(scope="module")
def four_devices(tiny, tmp_path_factory):
  folder = tmp_path_factory.mktemp("four")
  codes, output = _join(_start(tiny, folder, 1, 4))
  assert codes == [0], output
  return folder


def test_two_by_two_is_one_by_four_to_the_bit(tiny, four_devices, tmp_path):
  """Sums of two terms have one order: data over processes, tensor within."""
  codes, output = _join(_start(tiny, tmp_path, 2, 2))
  assert codes == [0, 0], output
  assert _losses(tmp_path) == _losses(four_devices)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  steps = [json.loads(line)["step"] for line in lines]
  assert len(steps) == 12 + 1  # Once a step, and one evaluation: one writer.


def test_sums_of_four_terms_agree_to_rounding(tiny, four_devices, tmp_path):
  """gloo's ring begins each part of a sum at another process."""
  codes, output = _join(
    _start(tiny, tmp_path, 2, 2, mesh__data=4, mesh__tensor=1)
  )
  assert codes == [0, 0], output
  expected = _losses(four_devices)
  for key, values in _losses(tmp_path).items():
    np.testing.assert_allclose(values, expected[key], rtol=1e-5)


def test_one_of_two_is_told_to_stop_and_one_process_goes_on(
  tiny, four_devices, tmp_path
):
  long = {"train__num_steps": 4000, "schedule__unit": "steps"}
  long |= {"schedule__name": "constant", "schedule__warmup": 1.0}
  running = _start(tiny, tmp_path, 2, 2, **long)
  _wait_for_a_checkpoint(tmp_path, running)
  running[1].send_signal(signal.SIGTERM)
  codes, output = _join(running)
  assert codes == [program.PREEMPTED] * 2, output
  stopped = checkpoint.list_steps(tmp_path)[-1]
  more = long | {"train__num_steps": stopped + 3}
  codes, output = _join(_start(tiny, tmp_path, 1, 4, **more))
  assert codes == [0], output
  assert checkpoint.list_steps(tmp_path)[-1] == stopped + 3


@pytest.mark.slow  # The others notice by a missing heartbeat, after 100 s.
def test_the_survivor_of_a_killed_process_ends_too(tiny, tmp_path):
  running = _start(tiny, tmp_path, 2, 2, train__num_steps=100_000)
  _wait_for_a_checkpoint(tmp_path, running)
  running[1].kill()
  try:
    running[0].wait(timeout=180)
  except subprocess.TimeoutExpired:
    running[0].kill()
    pytest.fail("The surviving process hangs.")
  assert running[0].returncode != 0
