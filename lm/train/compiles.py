"""Counts compilations, so that one inside the training loop is noticed."""

import types
from collections.abc import Iterator
from contextlib import contextmanager

import jax.monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"


@contextmanager
def counting() -> Iterator[types.SimpleNamespace]:
  """Counts every compilation of this process within the block, as `count`."""
  found = types.SimpleNamespace(count=0)

  def listen(event: str, duration_secs: float, **unused: int | str) -> None:
    found.count += event == _EVENT

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
