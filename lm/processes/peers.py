"""An end in bounded time when another process of the run is lost.

The processes of a run wait for one another in every update. When one of them is
killed, the others can only stop, and all are started again. A process notices
the loss

* by a collective that fails, at once, where the transport sees it;
* by the broken connection to process 0, which hosts the service of
  `jax.distributed`, at once;
* by this service, `distributed.HEARTBEAT` seconds after the last sign of life.

In the last two cases native code calls `abort()`: no Python runs any more, and
the exit code says nothing. Only a handler of SIGABRT can still print a message.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ..config import errors
from . import distributed

# What the transports and the service write into their errors.
_SIGNS = ("Gloo", "NCCL", "heartbeat timeout", "CoordinationService")

# If all processes fail alike, process 0 ends last: without the service of
# process 0 the others would report its loss instead of their own error.
_GRACE = 5.0  # Seconds.

Tell = Callable[[BaseException], int]
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_handlers: list[Callable] = []  # The C library keeps no more than an address.


class Watch:
  """Ends the process when another is lost; a context manager.

  To be entered before `distributed.initialize`. An exception out of the block
  ends a process of several at once. An orderly end would wait for the others,
  which wait for this process. The handler of SIGABRT stays after the block,
  since processes wait for one another in `atexit` as well.
  """

  def __init__(self, tell: Tell, goes_on_from: Callable[[], str] | None):
    """Takes what the message needs.

    Args:
      tell: Prints an error that is no loss of a process; returns its exit code.
      goes_on_from: Names the step that the same command goes on from; None for
        a program that saves nothing.
    """
    self._tell = tell
    self._goes_on_from = goes_on_from
    self._leaving = threading.Lock()

  def __enter__(self) -> "Watch":
    handler = _Handler(
      lambda number: self._lost("Aborted, see above, most likely because ")
    )
    _handlers.append(handler)
    install = ctypes.CDLL(None).signal
    install.argtypes = (ctypes.c_int, _Handler)
    install.restype = ctypes.c_void_p
    install(signal.SIGABRT, handler)
    return self

  def __exit__(self, kind, error, trace) -> None:
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    if error is None or not several:
      return
    sign = sign_of_loss(error)
    if sign is not None:
      self._lost(f"{sign}: ")
    code = self._tell(error)
    if jax.process_index() == 0:
      time.sleep(_GRACE)
    sys.stdout.flush()
    os._exit(code)

  def _lost(self, how: str) -> None:
    """Says what happened and what to do, and ends the process.

    If two threads notice the loss, one prints and the other waits.
    """
    self._leaving.acquire()
    try:
      message = (
        f"error: {how}another process of this run has ended or cannot be "
        "reached. This process stops, too. Run the same command again on all "
        f"of them{self._resumption()}.\n"
      )
      os.write(2, message.encode())  # A thread may hold the lock of stderr.
    finally:
      os._exit(errors.PEER_LOST)

  def _resumption(self) -> str:
    """The end of the message: where the same command goes on, if it does."""
    if self._goes_on_from is None:
      return ""
    return f": the run goes on from {self._goes_on_from()}"


@contextlib.contextmanager
def joined(
  args: Any, tell: Tell, goes_on_from: Callable[[], str] | None = None
) -> Iterator[None]:
  """Connects this process to the others for the length of the block.

  Args:
    args: Values of the flags `lm.cli.flags.DISTRIBUTED`.
    tell: As for `Watch`.
    goes_on_from: As for `Watch`.

  Raises:
    ValueError: If the arguments do not say who this process is.
  """
  alone = args.distributed == "none"
  with contextlib.nullcontext() if alone else Watch(tell, goes_on_from):
    distributed.initialize(
      args.distributed, args.coordinator, args.num_processes, args.process_id
    )
    yield


def sign_of_loss(error: BaseException) -> str | None:
  """The line of an error that shows that another process is lost, if any.

  Args:
    error: Searched with everything that it was raised from.
  """
  for cause in errors.causes(error):
    for line in str(cause).splitlines():
      if any(sign in line for sign in _SIGNS):
        return line.strip()[:200]
  return None
