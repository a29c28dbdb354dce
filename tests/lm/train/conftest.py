"""Runs of several processes, and what one compares of them."""

import socket
import subprocess
import time

import pytest
import waiting

from lm.runs import checkpoint, metrics


class Group:
  """The processes of one run, each `python -m lm.main`."""

  def __init__(self, tiny):
    """Takes the tiny run; starts nothing."""
    self._tiny = tiny

  def start(self, folder, processes, devices, odd=(0, {}), **changes):
    """Starts the program on `processes` times `devices`.

    `odd` is the index of a process and what differs in its configuration.
    """
    env = {"JAX_NUM_CPU_DEVICES": str(devices)}
    coordinator = f"127.0.0.1:{_free_port()}"
    flags = [
      "--distributed=explicit",
      f"--coordinator={coordinator}",
      f"--num_processes={processes}",
    ]
    if processes == 1:
      return [self._tiny.start(folder, env=env, **changes)]
    return [
      self._tiny.start(
        folder,
        *flags,
        f"--process_id={i}",
        env=env,
        **changes | (odd[1] if i == odd[0] else {}),
      )
      for i in range(processes)
    ]

  def join(self, running):
    """Waits for all of them; returns exit codes and outputs."""
    try:
      outputs = [p.communicate(timeout=waiting.LONG)[0] for p in running]
    except subprocess.TimeoutExpired:
      outputs = [self.kill(p) for p in running]
      pytest.fail("\n".join(["Still running:", *outputs]))
    return [p.returncode for p in running], outputs

  def run(self, folder, processes, devices, **changes):
    """Runs it to its end, which must be a good one."""
    running = self.start(folder, processes, devices, **changes)
    codes, outputs = self.join(running)
    assert codes == [0] * processes, "\n".join(outputs)

  def kill(self, process):
    """Kills one process; returns its output."""
    process.kill()
    return process.communicate()[0]

  def wait_for_a_checkpoint(self, folder, running):
    """Until there is one; fails if a process ends before."""
    while not checkpoint.list_steps(folder):
      if any(p.poll() is not None for p in running):
        pytest.fail("\n".join(self.kill(p) for p in running))
      time.sleep(0.05)


def _free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def losses(folder):
  """Every loss of a run, by key."""
  columns = metrics.read(folder)
  return {k: columns[k].values.tolist() for k in columns if "loss" in k}


@pytest.fixture(scope="session")
def group(tiny) -> Group:
  """Starts tiny runs of several processes."""
  return Group(tiny)
