"""Metrics one step late: numbers are fetched while the next update runs."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from ..runs.metrics import Writer
from ..runs.resume import Clock, Stopwatch
from ..step import flops
from ..step.parts import Parts
from .progress import Progress

_FORESEEN = 20  # Updates, after which the time of the rest is told.


class Reporter:
  """Turns the metrics of due steps into lines, and times the steps."""

  def __init__(
    self,
    parts: Parts,
    writer: Writer,
    progress: Progress,
    stopwatch: Stopwatch,
    clock: Clock,
  ):
    """Begins at `clock`."""
    self._parts = parts
    self._writer = writer
    self._progress = progress
    self._stopwatch = stopwatch
    self._pending: tuple[Clock, dict[str, Any]] | None = None
    self._begun, self._foreseen = clock, False
    self._timed = clock
    self._since = time.monotonic()
    self._waited = self._waited_before = 0.0
    self._flops = flops.train_flops_per_token(parts.config.model)
    self.last: dict[str, float] = {}
    self.halted = False

  def push(
    self,
    clock: Clock,
    metrics: dict[str, Any],
    waited: float,
    *,
    measured: bool = False,
  ) -> None:
    """Takes the metrics of the update just dispatched; writes older ones.

    Args:
      clock: After the update.
      metrics: Arrays still being computed; fetched by a later call.
      waited: Seconds that the loop has waited for data so far.
      measured: Whether a probe was due: written whatever `config.log.every`.
    """
    self._waited = waited
    self.flush()
    if measured or clock.step % self._parts.config.log.every == 0:
      self._pending = (clock, metrics)
    self._progress.update(clock.step, clock.tokens, self.last.get("train/loss"))

  def flush(self) -> None:
    """Fetches and writes what is pending; sets `halted`."""
    if self._pending is None:
      return
    clock, metrics = self._pending
    self._pending = None
    values = {k: v.item() for k, v in jax.device_get(metrics).items()}
    self.halted = bool(values.pop("halted"))
    values.pop("step")
    if self.halted:
      return
    self.last = values | self._performance(clock)
    self.write(clock, self.last)
    self._foresee(clock)

  def write(self, clock: Clock, values: dict[str, float]) -> None:
    """Writes values of any kind with the clock beside them."""
    where = {"tokens": clock.tokens, "seconds": self._stopwatch.seconds()}
    self._writer.write(clock.step, where | values)

  def _foresee(self, clock: Clock) -> None:
    """Tells the time left, once: `clock` is done on the devices, and now."""
    if self._foreseen or clock.step - self._begun.step < _FORESEEN:
      return
    self._foreseen = True
    self._progress.foresee(
      clock.tokens,
      clock.tokens - self._begun.tokens,
      self._stopwatch.seconds() - self._begun.seconds,
    )

  def sync(self) -> None:
    """Has everything written so far on the disk."""
    self._writer.sync()

  @contextlib.contextmanager
  def paused(self, clock: Clock) -> Iterator[None]:
    """Leaves the time of the block out of the step times."""
    self.flush()
    self._stopwatch.stop()
    yield
    self.start(clock)

  def start(self, clock: Clock) -> None:
    """Begins to time the steps after `clock`."""
    self._restart(clock)
    self._stopwatch.run()

  def _restart(self, clock: Clock) -> None:
    self._timed, self._since = clock, time.monotonic()
    self._waited_before = self._waited

  def _performance(self, clock: Clock) -> dict[str, Any]:
    seconds = max(time.monotonic() - self._since, 1e-9)
    steps = clock.step - self._timed.step
    if steps <= 0:
      return {}
    speed = (clock.tokens - self._timed.tokens) / seconds
    device = self._parts.mesh.devices.flat[0]
    count = self._parts.mesh.size
    values = {
      "perf/step_ms": 1e3 * seconds / steps,
      "perf/tokens_per_s": speed,
      "perf/tflops": speed * self._flops / count / 1e12,
      "perf/data_wait_ms": 1e3 * (self._waited - self._waited_before) / steps,
    }
    share = flops.mfu(speed, self._flops, count, device.device_kind)
    if share is not None:
      values["perf/mfu"] = share
    memory = device.memory_stats() if jax.process_count() == 1 else None
    if memory and "peak_bytes_in_use" in memory:
      values["perf/peak_bytes"] = memory["peak_bytes_in_use"]
    self._restart(clock)
    return values
