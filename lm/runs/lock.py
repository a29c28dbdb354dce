"""One run at a time in a folder: `lock.json` says who has it open.

Two things keep a second run out:

* `flock` on the file. The kernel keeps it while the process lives and drops it
  with the process, so on one machine the second run is refused at once, and a
  run that was killed goes on at once.
* A sign of life: the file's time is renewed every `BEAT` seconds. Other
  machines may not see the `flock` (object storage, some network file systems).
  They watch the file: if its time changes, the run is refused; if it stays the
  same for `STALE` seconds, its process is lost with its machine and the run
  goes on.

Process 0 of a run holds the lock; its other processes wait for the verdict.
Programs that only read a run do not ask for the lock.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Generator
from concurrent import futures
from typing import IO, Any

import jax

from ..config.errors import BAD_INPUT, InputError
from ..processes import distributed

FILE = "lock.json"
BEAT = 15.0  # Seconds between two signs of life.
STALE = 90.0  # Seconds without one; network file systems cache times for 60.
_OLD = 10 * STALE  # A sign this old needs no watching, whatever the clocks.
_ROUND = 5.0  # Seconds between two words of process 0 to the others.
_OPEN = "open"
_HELD = (errno.EWOULDBLOCK, errno.EACCES)  # By a process that lives.


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Generator[None]:
  """Keeps other runs out of `folder` while the block runs.

  To be entered by every process of a run, after `distributed.initialize`.

  Args:
    folder: Of the run; must exist and be writable.

  Raises:
    InputError: On all processes, if another run is open in the folder.
  """
  with contextlib.ExitStack() as stack:
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
      stack.enter_context(Lock(folder))
    else:
      _taken_by_first(folder, stack)
    yield


def _taken_by_first(folder: pathlib.Path, stack: contextlib.ExitStack) -> None:
  """Has process 0 take the lock; the others hear of it every few seconds.

  A collective gives up before a lock is stale, so one cannot wait for all that
  time.

  Raises:
    InputError: On all processes, if process 0 is refused.
  """
  first, verdict = jax.process_index() == 0, ""
  with futures.ThreadPoolExecutor(1) as thread:
    taking = thread.submit(stack.enter_context, Lock(folder)) if first else None
    while not verdict:
      if taking and not futures.wait([taking], timeout=_ROUND).not_done:
        error = taking.exception()
        if error and not isinstance(error, InputError):
          raise error
        verdict = str(error or _OPEN)
      verdict = distributed.said_by_first(verdict)
  if verdict != _OPEN:
    raise InputError(verdict)


class Lock:
  """The lock of a folder in one process; a context manager."""

  def __init__(
    self, folder: pathlib.Path, *, beat: float = BEAT, stale: float = STALE
  ):
    """Takes the folder; locks nothing yet.

    Args:
      folder: Of the run.
      beat: Seconds between two signs of life.
      stale: Seconds without one after which another machine's lock is void.
    """
    self._path, self._beat, self._stale = folder / FILE, beat, stale
    self._file: IO[str] | None = None
    self._token = uuid.uuid4().hex
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._live, daemon=True)

  def __enter__(self) -> "Lock":
    """Takes the lock.

    Raises:
      InputError: If another run has it.
    """
    try:
      contested = self._open()
      self._write()
      if contested:  # Another machine may have watched, too.
        self._ended.wait(self._beat)
        if not self._mine():
          raise self._refusal()
    except BaseException:
      self._close()
      raise
    self._thread.start()
    return self

  def __exit__(self, *unused: Any) -> None:
    """Gives the lock back."""
    self._ended.set()
    self._thread.join()
    with contextlib.suppress(OSError):
      if self._mine():
        self._path.unlink()
    self._close()

  def _open(self) -> bool:
    """Opens the file and locks it; returns whether it was taken over.

    Raises:
      InputError: If it is the lock of a run that lives.
    """
    while True:
      self._close()  # The file of a run that ended in between.
      try:
        self._file, new = self._path.open("x"), True
      except FileExistsError:
        try:
          self._file, new = self._path.open("r+"), False
        except FileNotFoundError:
          continue
      alone = self._flock(self._file)
      if not self._is_there(self._file):
        continue
      if new or self._ended_here(alone):
        return False
      if self._watch(self._file):
        return True

  def _flock(self, file: IO[str]) -> bool:
    """Locks the file; returns whether its file system can."""
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno in _HELD:
        raise self._refusal() from None
      return False
    return True

  def _is_there(self, file: IO[str]) -> bool:
    """Whether the file still has its name."""
    try:
      return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
    except FileNotFoundError:
      return False

  def _close(self) -> None:
    if self._file is not None:
      self._file.close()  # Ends the `flock` as well.
      self._file = None

  def _ended_here(self, alone: bool) -> bool:
    """Whether the lock is that of a process of this machine that ended."""
    found = holder(self._path.parent)
    here = found.get("machine") == _machine()
    return here and (alone or not _lives(found.get("pid")))

  def _watch(self, file: IO[str]) -> bool:
    """Waits until the lock is stale; returns False if it was given back.

    Raises:
      InputError: If it shows a sign of life.
    """
    first = _time_of(self._path)
    if time.time() - first > _OLD:
      return True
    print(
      f"{_described(self._path)}, perhaps lost with its machine: waiting "
      f"{self._stale:.0f} s for a sign of life.",
      file=sys.stderr,
      flush=True,
    )
    end = time.monotonic() + self._stale
    while time.monotonic() < end:
      self._ended.wait(min(self._beat, self._stale) / 8)
      if not self._is_there(file):
        return False
      if _time_of(self._path) != first:
        raise self._refusal()
    return True

  def _write(self) -> None:
    facts = {
      "host": socket.gethostname(),
      "pid": os.getpid(),
      "since": time.strftime("%Y-%m-%d %H:%M:%S%z"),
      "machine": _machine(),
      "token": self._token,
    }
    try:
      with self._path.open("r+") as file:  # Object storage writes at its end.
        file.truncate()
        json.dump(facts, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      self._path.unlink(missing_ok=True)  # Empty, it would look like a start.
      path = os.fspath(self._path)
      raise OSError(error.errno, error.strerror, path) from None

  def _mine(self) -> bool:
    return holder(self._path.parent).get("token") == self._token

  def _live(self) -> None:
    """Shows signs of life; ends the process when the lock is another's."""
    missed = 0
    while not self._ended.wait(self._beat):
      try:
        missed = 0 if self._mine() else missed + 1
        if not missed:
          os.utime(self._path)
      except OSError:
        continue  # A full or slow disk is for others to tell.
      if missed > 1:
        sys.stderr.write(
          f"error: {self._path} was removed or taken over while this run was "
          "open, so another run may write to its folder. This one stops; its "
          "last checkpoint counts.\n"
        )
        sys.stderr.flush()
        os._exit(BAD_INPUT)

  def _refusal(self) -> InputError:
    return InputError(
      f"{_described(self._path)}. Wait for its end or stop it, or use another "
      f"--workdir. If its machine is lost, run this again {self._stale:.0f} s "
      "after its last sign of life."
    )


def holder(folder: pathlib.Path) -> dict[str, Any]:
  """What the lock of a folder says of the run that has it open.

  Args:
    folder: Of a run.

  Returns:
    "host", "pid", "since" and more; {} without a lock, or with one that is
    being written.
  """
  try:
    found = json.loads((folder / FILE).read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def describe(folder: pathlib.Path) -> str:
  """Who has a folder open, e.g. "process 17 on a.local since ..."."""
  found = holder(folder)
  if not found:
    return "a process that is just starting"
  return (
    f"process {found.get('pid')} on {found.get('host')} since "
    f"{found.get('since')}"
  )


def _described(path: pathlib.Path) -> str:
  return (
    f"A run is open in --workdir={path.parent}, by {describe(path.parent)} "
    f"({path.name})"
  )


def _time_of(path: pathlib.Path) -> float:
  """When the lock was renewed last, as its file system says."""
  try:
    with path.open() as file:  # Makes network file systems ask their server.
      return os.fstat(file.fileno()).st_mtime
  except OSError:
    return 0.0


def _machine() -> str:
  """Changes with the machine, its boot and the container's process numbers."""
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:  # Not Linux.
    return socket.gethostname()


def _lives(pid: Any) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except (OSError, TypeError):
    return True
  return True
