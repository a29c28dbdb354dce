"""The next trials of a method: a pure function of the trials that are done.

A method has K trials of one seed. They go, in this order, to

1. the rate: its start and a factor to either side, then one more factor at a
   time, until the best rate has a worse one on either side (at most 6 trials);
2. the other keys in the order of the entry: each value once at the best of all
   before, kept if better;
3. what is left: rates closer and closer to the best, half a factor first.

Every method has all of its K trials, whether it needs them or not. The
procedure is replayed from its start for each question, so the order in which
trials end does not matter, and trials that it has not asked for are not seen.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

RATE = "learning_rate"
MOST_RATES = 6
Settings = Mapping[str, Any]


class Log(NamedTuple):
  """A key that is tried at start, start * factor, start / factor, ..."""

  start: float
  factor: float = 2.0

  def at(self, place: float) -> float:
    """The value so many factors above the start, to 4 digits."""
    return float(f"{self.start * self.factor**place:.4g}")


class Tuned(NamedTuple):
  """What the trials have shown so far."""

  trials: list[dict[str, Any]]  # To be made now; empty when all K are done.
  best: dict[str, Any]  # Settings of least loss so far.
  loss: float  # Of these; inf before the first trial.
  edge: bool  # Whether the best rate of part 1 has no worse one on a side.


class _Missing(Exception):
  """Trials that the replay needs and does not find."""


def next_trials(
  space: Mapping[str, Any],
  done: Iterable[tuple[Settings, float]],
  budget: int,
) -> Tuned:
  """The trials to make now, and the best so far.

  Args:
    space: "learning_rate": a `Log`; other keys: tuples of values, the first of
      which is taken until the key is tuned.
    done: Settings and final loss of trials of one seed. A diverged trial has
      the loss inf or NaN. Trials are known by their settings in `space`.
    budget: K, the number of trials; at least 3.

  Returns:
    See `Tuned`. Of equal losses the earlier trial is the better, and of rates
    the lower.

  Raises:
    ValueError: If the budget is below 3, or the space has no rate.
  """
  if budget < 3:
    raise ValueError(f"budget={budget}: a rate needs 3 trials at least.")
  if not isinstance(space.get(RATE), Log):
    raise ValueError(f"space has no {RATE!r} of the form Log(start, factor).")
  replay = _Replay(space, done, budget)
  trials: list[dict[str, Any]] = []
  try:
    replay.rates()
    replay.others()
    replay.closer()
  except _Missing as missing:
    trials = list(missing.args[0])
  return Tuned(trials, replay.best, replay.loss, replay.edge)


class _Replay:
  """The procedure of the module's docstring, over what is known."""

  def __init__(self, space, done, budget):
    self._space, self._left = space, budget
    self._known = {self._key(settings): _loss(loss) for settings, loss in done}
    self._place = 0.0  # Of the best rate, in factors above the start.
    first = {k: v[0] for k, v in space.items() if k != RATE}
    self.best = {RATE: space[RATE].start, **first}
    self.loss, self.edge = math.inf, True

  def rates(self) -> None:
    most = min(MOST_RATES, self._left)
    losses = dict(zip((-1, 0, 1), self._ask_rates((-1, 0, 1)), strict=True))
    while True:
      place = min(losses, key=lambda p: (losses[p], p))
      beyond = {place - 1, place + 1} - set(losses)
      self.edge = bool(beyond)
      if not beyond or len(losses) == most:
        return
      (new,) = beyond
      losses[new] = self._ask_rates((new,))[0]

  def others(self) -> None:
    for name, values in self._space.items():
      if name != RATE:
        base = dict(self.best)
        self._ask([base | {name: v} for v in values if v != base[name]])

  def closer(self) -> None:
    step = 0.5
    while self._left:
      self._ask_rates((self._place - step, self._place + step))
      step /= 2

  def _ask_rates(self, places):
    log, base = self._space[RATE], dict(self.best)
    return self._ask([base | {RATE: log.at(p)} for p in places], places)

  def _ask(self, asked, places=None):
    """Losses of settings; keeps the best; raises if some are not known."""
    asked = asked[: self._left]
    missing = [s for s in asked if self._key(s) not in self._known]
    losses = [self._known.get(self._key(s), math.inf) for s in asked]
    for i, (settings, loss) in enumerate(zip(asked, losses, strict=True)):
      if loss < self.loss:
        self.best, self.loss = settings, loss
        self._place = self._place if places is None else places[i]
    if missing:
      raise _Missing(missing)
    self._left -= len(asked)
    return losses

  def _key(self, settings):
    return tuple(settings[name] for name in self._space)


def _loss(loss: float) -> float:
  return loss if math.isfinite(loss) else math.inf
