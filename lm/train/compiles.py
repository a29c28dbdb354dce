"""Counts compilations, so that one inside the training loop is noticed."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax.monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCount:
  """Compilations so far, and the seconds they took."""

  def __init__(self):
    """Starts at zero."""
    self.count = 0
    self.seconds = 0.0

  def __call__(
    self, event: str, duration_secs: float, **kwargs: int | str
  ) -> None:
    """Listens to jax's monitoring events."""
    if event == _EVENT:
      self.count += 1
      self.seconds += duration_secs


@contextmanager
def counting() -> Iterator[CompileCount]:
  """Counts every compilation of this process within the block."""
  count = CompileCount()
  jax.monitoring.register_event_duration_secs_listener(count)
  try:
    yield count
  finally:
    jax.monitoring.unregister_event_duration_listener(count)
