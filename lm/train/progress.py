"""How far a run is: a bar on a terminal, plain lines elsewhere, or nothing.

tqdm keeps the time. It decides when to draw, and derives speed and time left
from the tokens that are done.
"""

import datetime
import sys
from typing import TextIO

import jax
import tqdm

from ..cli import text

_LINE = "{desc}{rate_fmt}, ETA {remaining}"


class _Lines(tqdm.tqdm):
  """Prints a line where a bar would be drawn again."""

  shown: str | None = None

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    """Prints the state unless it is that of the last line."""
    if self.desc and self.desc != self.shown:
      self.shown = self.desc
      print(self, file=self.fp, flush=True)

  def close(self) -> None:
    """Prints the last state; tqdm's own end would add an empty line."""
    if not self.disable:
      self.display()
      self.disable = True


class Progress:
  """What the training loop reports to; only process 0 shows anything."""

  def __init__(
    self,
    kind: str,
    num_steps: int,
    num_tokens: int,
    *,
    start_step: int = 0,
    start_tokens: int = 0,
    stream: TextIO | None = None,
  ):
    """Draws a bar at once, so that compilation does not look like a hang.

    Args:
      kind: bar | plain | none | auto (bar on a terminal, else plain lines).
      num_steps: Steps of the whole run.
      num_tokens: Tokens of the whole run.
      start_step: Steps done before, in an earlier life of the run.
      start_tokens: Tokens done before.
      stream: Where to write; None is standard error.
    """
    stream = sys.stderr if stream is None else stream
    self._stream, self._num_steps = stream, num_steps
    self._num_tokens = num_tokens
    self._loss: float | None = None
    self._begun = False
    self._silent = kind == "none" or jax.process_index() != 0
    lines = kind == "plain" or (kind == "auto" and not stream.isatty())
    self._bar = (_Lines if lines else tqdm.tqdm)(
      total=num_tokens,
      initial=start_tokens,
      desc=None if lines else f"step {start_step}/{num_steps}, compiling, ",
      file=stream,
      disable=self._silent,
      dynamic_ncols=True,
      mininterval=10.0 if lines else 0.1,
      miniters=1,
      unit=" tokens",
      unit_scale=True,
      bar_format=_LINE if lines else f"{{percentage:3.0f}}%|{{bar}}| {_LINE}",
    )

  def update(self, step: int, tokens: int, loss: float | None = None) -> None:
    """Says that `step` updates, over `tokens` tokens, are done.

    What is shown changes at most every 10 s (lines) or 0.1 s (a bar).
    """
    if self._silent:
      return
    self._loss = self._loss if loss is None else loss
    share = 100 * step / max(self._num_steps, 1)
    words = f"step {step}/{self._num_steps} ({share:.0f}%), "
    words += "" if self._loss is None else f"loss {self._loss:.4f}, "
    self._bar.set_description_str(words, refresh=False)
    if self._begun:
      self._bar.update(tokens - self._bar.n)
      return
    # The time before is compilation, and does not count for the speed.
    self._begun = True
    self._bar.n = self._bar.initial = self._bar.last_print_n = tokens
    self._bar.unpause()
    self._bar.refresh()

  def foresee(self, done: int, tokens: int, seconds: float) -> None:
    """Says how long the rest takes at the speed so far, and when it ends.

    Args:
      done: Tokens of the whole run that are done.
      tokens: Tokens that the speed was measured over.
      seconds: What they took.
    """
    left = seconds / tokens * (self._num_tokens - done)
    if left <= 0:
      return
    now = datetime.datetime.now()
    end = now + datetime.timedelta(seconds=left)
    when = f"{end:%H:%M}" if end.date() == now.date() else f"{end:%F %H:%M}"
    self.log(
      f"About {text.duration(left)} of training to go, until {when}; "
      "evaluations come on top."
    )

  def log(self, message: str) -> None:
    """Prints a line without tearing a bar."""
    if self._silent:
      return
    if isinstance(self._bar, _Lines):
      print(message, file=self._stream, flush=True)
    else:
      self._bar.write(message, file=self._stream)

  def close(self) -> None:
    """Shows the last state and gives the terminal back."""
    self._bar.close()
