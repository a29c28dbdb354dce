"""Waiting for other processes and threads, on a machine of any speed."""

import time

LONG = 900  # Seconds; only what hangs takes as long.


def until(condition, process=None):
  """Waits until `condition()` holds.

  Raises:
    AssertionError: If the process ends before, or after `LONG` seconds.
  """
  end = time.monotonic() + LONG
  while not condition():
    ended = process is not None and process.poll() is not None
    assert not ended or condition(), "The process ended before."
    assert time.monotonic() < end, f"Not even after {LONG} seconds."
    time.sleep(0.02)
