"""Being told to stop: SIGTERM, SIGINT, or another process's SIGTERM."""

import signal
import types

import jax


class StopSignals:
  """Remembers SIGTERM and SIGINT instead of dying; a context manager.

  A second SIGINT interrupts at once, as usual. With several processes
  `jax.distributed` handles SIGTERM and makes all of them stop at one step
  (`Checkpointer.reached_preemption`). SIGINT is passed on as SIGTERM.
  """

  def __init__(self):
    """Installs nothing yet."""
    self.received: str | None = None
    self._before: dict[int, object] = {}

  def __enter__(self) -> "StopSignals":
    several = jax.process_count() > 1
    for number in (
      (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    ):
      self._before[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)  # pyrefly: ignore

  def _remember(self, number: int, _: types.FrameType | None) -> None:
    if number == signal.SIGINT:
      signal.signal(number, signal.default_int_handler)
    if jax.process_count() > 1:
      # Otherwise this process would save at a step of its own.
      signal.raise_signal(signal.SIGTERM)
    else:
      self.received = signal.Signals(number).name
