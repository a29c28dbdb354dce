"""Studies of planted losses, in memory or in a folder of runs."""

import math
import zlib

import numpy as np

from lm.study import declare, plan, results
from lm.study.methods import METHODS
from lm.study.records import Record
from lm.study.tuning import RATE

TOKENS = 65_536
HORIZONS = (0.5, 1, 2, 4)


def study(name="planted", **changes):
  """AdamW and Muon in a cell of 64 updates; `changes` are of the study."""
  plain = {
    "title": "Planted",
    "cells": {"one": {"batch": 4, "tokens": TOKENS}},
    "arms": ("adamw", "muon"),
    "claims": (),
    "seeds": (0, 1, 2),
    "trials": 6,
  }
  return declare.study(plain | changes, name, "small")


def losses(
  offsets=None, speeds=None, sd=0.0, shared=0.0, bend=0.05, replicate=0
):
  """A trainer of 3 + 60 (speed tokens)^-.3 + bend octaves^2 + noise.

  Args:
    offsets: log2 of the best rate over the start of the method; default 0.
    speeds: By method; default 1.
    sd: Of the noise of each run.
    shared: Of the noise that all runs of a seed have.
    bend: Nats per octave^2.
    replicate: Another number gives other noise.
  """
  offsets, speeds = offsets or {}, speeds or {}

  def train(method, settings, horizon, batch, seed):
    name = repr((method, sorted(settings.items()), horizon, batch, seed))
    own = np.random.default_rng([replicate, seed, zlib.crc32(name.encode())])
    both = np.random.default_rng([replicate, seed])
    noise = sd * own.normal() + shared * both.normal()
    start = METHODS[method].tuned[RATE].start
    off = math.log2(settings[RATE] / start) - offsets.get(method, 0)
    tokens = np.linspace(0.05, 1, 20) * horizon
    falls = 60 * (speeds.get(method, 1) * tokens) ** -0.3
    return np.stack([tokens, 3 + falls + bend * off**2 + noise], 1)

  return train


class Memory:
  """A study whose runs are records in memory, by id."""

  def __init__(self, study, train, change=None):
    """`change(run, points)` may change what the trainer returns."""
    self.study, self._train, self.found = study, train, {}
    self._change = change or (lambda run, points: points)

  def find(self, id_):
    return self.found.get(id_)

  def planned(self):
    return plan.plan(self.study, self.find)

  def make(self, run):
    study = self.study
    arm, cell = study.arms[run.arm], study.cells[run.cell]
    points = self._train(
      arm.trains, run.settings, round(run.horizon * cell.tokens), run.batch,
      run.seed,
    )  # fmt: skip
    tokens, values = np.transpose(self._change(run, points))
    length = plan.row_tokens(study, run.cell)
    clock = tuple(
      np.append(0, x) for x in (tokens, tokens / run.batch / length)
    )
    loss = float(values[-1]) if math.isfinite(values[-1]) else math.inf
    scores = study.scores
    self.found[run.id] = Record(
      clock, dict.fromkeys(scores, loss),
      dict.fromkeys(scores, (tokens, values)), 1.0, math.nan, "planted", 0,
    )  # fmt: skip

  def finish(self, choose=lambda wave: wave):
    """Makes wave after wave; `choose` picks runs of a wave, in an order."""
    while wave := self.planned().missing(self.find):
      for run in choose(wave):
        self.make(run)
    return self

  def results(self):
    return results.results(self.study, self.planned(), self.find)

  def row(self, arm, cell="one", horizon=1):
    """The row of the table."""
    where = arm, cell, horizon
    (row,) = [
      row
      for row in self.results()["table"]
      if (row["arm"], row["cell"], row["horizon"]) == where
    ]
    return row
