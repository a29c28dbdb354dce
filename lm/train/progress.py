"""How far a run is: a bar on a terminal, plain lines elsewhere, or nothing.

The loop calls `update` after every step with the newest loss it knows; how
often that becomes visible is decided here, in seconds, so that a fast run does
not flood a log file and a slow one does not look dead.
"""

import sys
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol, TextIO

import jax

from ..cli import text

KINDS = ("auto", "bar", "plain", "none")
_WINDOW = 60.0  # Seconds.


class Progress(Protocol):
  """What the training loop reports to."""

  def update(self, step: int, tokens: int, loss: float | None = None) -> None:
    """Says that `step` updates, over `tokens` tokens, are done."""
    ...

  def log(self, message: str) -> None:
    """Prints a line without tearing a bar."""
    ...

  def close(self) -> None:
    """Shows the last state and gives the terminal back."""
    ...


def make_progress(
  kind: str,
  num_steps: int,
  *,
  start_step: int = 0,
  stream: TextIO | None = None,
) -> Progress:
  """Returns the progress display called `kind`.

  Args:
    kind: bar | plain | none | auto (bar on a terminal, else plain lines). Only
      process 0 shows anything.
    num_steps: Steps of the whole run.
    start_step: Steps done before, in an earlier life of the run.
    stream: Where to write; None is standard error.

  Returns:
    A `Progress`.

  Raises:
    ValueError: If there is no such kind.
  """
  stream = sys.stderr if stream is None else stream
  if kind not in KINDS:
    raise ValueError(
      f"config.log.progress={kind!r} is unknown; choose one of {KINDS}."
    )
  if kind == "none" or jax.process_index() != 0:
    return NoProgress()
  if kind == "bar" or (kind == "auto" and stream.isatty()):
    return BarProgress(num_steps, start_step, stream)
  return PlainProgress(num_steps, start_step, stream)


class NoProgress:
  """Shows nothing at all."""

  def update(self, step: int, tokens: int, loss: float | None = None) -> None:
    """Does nothing."""

  def log(self, message: str) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


class PlainProgress:
  """One line every few seconds, and one for the last step."""

  def __init__(
    self,
    num_steps: int,
    start_step: int = 0,
    stream: TextIO = sys.stderr,
    *,
    interval: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Prints to a stream.

    Args:
      num_steps: Steps of the whole run.
      start_step: Steps done before.
      stream: Where the lines go.
      interval: Least seconds between two lines.
      clock: Seconds from an arbitrary origin.
    """
    self._num_steps = num_steps
    self._stream = stream
    self._interval = interval
    self._clock = clock
    self._meter = _Meter(num_steps, clock)
    self._shown_step = start_step
    self._shown_time = -float("inf")

  def update(self, step: int, tokens: int, loss: float | None = None) -> None:
    """Prints a line if the last one is long enough ago or the run is done."""
    self._meter.update(step, tokens, loss)
    due = self._clock() - self._shown_time >= self._interval
    if due or step >= self._num_steps:
      self._show()

  def log(self, message: str) -> None:
    """Prints the message."""
    print(message, file=self._stream, flush=True)

  def close(self) -> None:
    """Prints the last step if its line is missing."""
    self._show()

  def _show(self) -> None:
    step = self._meter.step
    if step <= self._shown_step:
      return
    self._shown_step, self._shown_time = step, self._clock()
    share = 100 * step / max(self._num_steps, 1)
    head = f"step {step}/{self._num_steps} ({share:.0f}%)"
    tail = f"ETA {self._meter.eta()}"
    self.log(", ".join([head, *self._meter.facts(), tail]))


class BarProgress:
  """A tqdm bar with the loss, the speed in tokens and the time left."""

  def __init__(
    self, num_steps: int, start_step: int = 0, stream: TextIO = sys.stderr
  ):
    """Draws the bar at once, so that compilation does not look like a hang.

    Args:
      num_steps: Steps of the whole run.
      start_step: Steps done before.
      stream: A terminal.
    """
    import tqdm  # Here, since only an interactive run needs it.

    self._meter = _Meter(num_steps, time.monotonic)
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=start_step,
      file=stream,
      dynamic_ncols=True,
      bar_format=(
        "{percentage:3.0f}%|{bar}| step {n_fmt}/{total_fmt}{postfix}"
      ),
    )
    self._bar.set_postfix_str("compiling")

  def update(self, step: int, tokens: int, loss: float | None = None) -> None:
    """Moves the bar; tqdm redraws at most ten times a second."""
    self._meter.update(step, tokens, loss)
    left = f"ETA {self._meter.eta()}"
    postfix = ", ".join([*self._meter.facts(), left])
    self._bar.set_postfix_str(postfix, refresh=False)
    self._bar.update(step - self._bar.n)

  def log(self, message: str) -> None:
    """Prints the message above the bar."""
    self._bar.write(message, file=self._bar.fp)

  def close(self) -> None:
    """Draws the last state and leaves the cursor below the bar."""
    self._bar.refresh()
    self._bar.close()


class _Mark(NamedTuple):
  """A moment of the run."""

  seconds: float
  step: int
  tokens: int


class _Meter:
  """Speed and time left, over the last one to two minutes.

  The clock starts at the first update: the time before it is compilation,
  which would spoil both numbers.
  """

  def __init__(self, num_steps: int, clock: Callable[[], float]):
    self.step = 0
    self._num_steps = num_steps
    self._clock = clock
    self._loss: float | None = None
    self._marks: list[_Mark] = []  # Start of the window, its middle, now.

  def update(self, step: int, tokens: int, loss: float | None) -> None:
    self.step = step
    self._loss = self._loss if loss is None else loss
    now = _Mark(self._clock(), step, tokens)
    if not self._marks:
      self._marks = [now, now, now]
    start, middle, _ = self._marks
    if now.seconds - middle.seconds > _WINDOW:
      start, middle = middle, now
    self._marks = [start, middle, now]

  def _rates(self) -> tuple[float, float] | None:
    """Steps and tokens per second, once two updates are known."""
    if not self._marks:
      return None
    start, _, now = self._marks
    seconds = now.seconds - start.seconds
    if seconds <= 0 or now.step <= start.step:
      return None
    steps, tokens = now.step - start.step, now.tokens - start.tokens
    return steps / seconds, tokens / seconds

  def facts(self) -> list[str]:
    facts = []
    if self._loss is not None:
      facts.append(f"loss {self._loss:.4f}")
    rates = self._rates()
    if rates:
      facts.append(f"{text.human(rates[1])} tokens/s")
    return facts

  def eta(self) -> str:
    rates = self._rates()
    if rates is None:
      return "?"
    return text.clock_text((self._num_steps - self.step) / rates[0])
