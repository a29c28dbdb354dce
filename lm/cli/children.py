"""Child processes that stop when their parent is told to."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from typing import Any

_POLL = 0.05  # Seconds.


def num_cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def shares_of_cores(count: int) -> list[set[int]]:
  """Cores for each of `count` programs at once; empty sets for no limit.

  There is no limit for a single program, for more programs than cores, and on
  systems without one (macOS).
  """
  if not hasattr(os, "sched_getaffinity"):
    return [set() for _ in range(count)]
  cores = sorted(os.sched_getaffinity(0))
  limited = 1 < count <= len(cores)
  return [set(cores[i::count]) if limited else set() for i in range(count)]


class Children:
  """Starts programs and passes SIGINT and SIGTERM on to them.

  A context manager, to be entered in the main thread. The first signal within
  the block is passed on as SIGTERM, on which a run saves and stops. Every
  further signal is passed on as SIGKILL.
  """

  def __init__(self):
    """No children yet."""
    self.stopping = False  # Whether a signal has come.
    self._running: dict[str, subprocess.Popen] = {}
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> "Children":
    for number in (signal.SIGINT, signal.SIGTERM):
      previous = signal.signal(number, self._forward)
      self._stack.callback(signal.signal, number, previous)
    return self

  def __exit__(self, *_) -> None:
    with self._stack:
      for process in self._running.values():  # Only after an exception.
        process.terminate()
        process.wait()

  def __len__(self) -> int:
    """How many are running."""
    return len(self._running)

  def start(
    self,
    name: str,
    command: Sequence[str],
    log: pathlib.Path | None = None,
    cores: Collection[int] = (),
  ) -> None:
    """Starts a program.

    Args:
      name: What `wait` calls it.
      command: Program and arguments.
      log: File its output is appended to; None leaves it on the terminal.
      cores: That it may use; empty for all.
    """
    with contextlib.ExitStack() as stack:
      output: Any = None
      if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = stack.enter_context(log.open("ab"))
      # In a session of its own the child gets Ctrl-C only from this process.
      self._running[name] = subprocess.Popen(
        command,
        stdout=output,
        stderr=output and subprocess.STDOUT,
        start_new_session=True,
      )
    if cores:  # Before the child makes threads.
      with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(self._running[name].pid, cores)
    if self.stopping:  # The signal came while it was being started.
      self._running[name].terminate()

  def wait(self) -> tuple[str, int]:
    """Waits until one of the programs ends; returns its name and exit code.

    A program killed by signal N has the exit code 128 + N, as in a shell.
    """
    while True:
      for name, process in self._running.items():
        code = process.poll()
        if code is not None:
          del self._running[name]
          return name, code if code >= 0 else 128 - code
      time.sleep(_POLL)

  def _forward(self, number: int, frame: Any) -> None:
    for process in list(self._running.values()):
      if self.stopping:
        process.kill()
      else:
        process.terminate()
    self.stopping = True
