"""Which runs a study needs follows from the losses, and from them alone."""

import json
import math
import random

import numpy as np
import planted_study as planted
import pytest

from lm.study import plan
from lm.study.methods import METHODS
from lm.study.tuning import RATE


def _octaves(choice, method):
  return math.log2(choice.settings[RATE] / METHODS[method].tuned[RATE].start)


@pytest.mark.parametrize("trials", [6, 9])
@pytest.mark.parametrize("offset", np.linspace(-3, 3, 13).tolist())
def test_the_rate_is_within_half_a_step_of_the_planted_one(offset, trials):
  study = planted.study(trials=trials)
  made = planted.Memory(study, planted.losses({"muon": offset})).finish()
  choice = made.planned().choices["muon", "one", 1.0]
  assert choice.done
  assert not choice.tuned.edge
  assert abs(_octaves(choice, "muon") - offset) <= 0.5 + 1e-3
  assert len(choice.tried) == trials


@pytest.mark.parametrize("offset", [-6, -4, 4, 6])
def test_a_rate_beyond_the_trials_is_marked_and_not_ranked(offset):
  claims = (
    {"claim": "lower", "threshold": 0.5},
    {"claim": "faster", "threshold": 1.0},
    {"claim": "equal", "margin": 0.5},
  )
  study = planted.study(claims=claims, horizons=planted.HORIZONS, trials=9)
  made = planted.Memory(study, planted.losses({"muon": offset}, bend=1e-4))
  found = made.finish().results()
  assert made.row("muon")["edge"]
  assert not made.row("adamw")["edge"]
  assert [c["verdict"] for c in found["claims"]] == ["undecided"] * 3
  assert all("not ranked" in c["rule"] for c in found["claims"])
  assert all("of muon" in c["rule"] for c in found["claims"])


def test_a_reference_at_an_edge_ranks_nobody():
  study = planted.study(claims=({"claim": "lower", "threshold": 0.5},))
  made = planted.Memory(study, planted.losses({"adamw": 5}, bend=1e-4))
  (claim,) = made.finish().results()["claims"]
  assert claim["verdict"] == "undecided"
  assert "not ranked: at an edge is the best rate of adamw" in claim["rule"]


def test_the_order_in_which_runs_end_changes_nothing():
  study = planted.study(
    horizons=planted.HORIZONS,
    claims=({"claim": "faster", "threshold": 0.9},),
    trials=9,
    auxiliary=True,
  )
  train = planted.losses({"muon": 1.3}, {"muon": 1.3}, sd=0.01)
  texts = []
  for seed in range(4):
    dice = random.Random(seed)

    def some(wave, dice=dice):
      return dice.sample(wave, dice.randint(1, len(wave)))

    made = planted.Memory(study, train)
    made.finish(some if seed else lambda wave: wave)
    texts.append(json.dumps(made.results()))
  assert len({*texts}) == 1


def test_every_method_has_as_many_trials_on_seeds_that_never_report():
  arms = ("adamw", "muon", "soap", "signum", "lion", "gauss_newton")
  study = planted.study(arms=arms, trials=9, tuning_seeds=(100, 101))
  found = planted.Memory(study, planted.losses(sd=0.02)).finish().results()
  counts = dict.fromkeys(arms, 0)
  seeds = {"tuning": set(), "report": set()}
  for run in found["runs"]:
    for use in run["uses"]:
      counts[use["arm"]] += use["role"] == "tuning"
      seeds[use["role"]].add(run["seed"])
  assert counts == dict.fromkeys(arms, 18)
  assert seeds == {"tuning": {100, 101}, "report": {0, 1, 2}}
  assert {row["trials"] for row in found["table"]} == {9}
  assert not found["missing"]
  assert not found["waiting"]


def test_reports_choose_nothing_and_trials_do():
  study = planted.study(trials=6)
  train = planted.losses(sd=0.01)

  def chosen(change):
    made = planted.Memory(study, train, change).finish()
    return made, made.planned().choices["muon", "one", 1.0].settings

  made, before = chosen(None)
  first = [r for r in made.planned().runs if r.arm == "muon"]
  report = [r for r in first if r.role == plan.REPORT]
  other = next(
    r for r in first if r.role == plan.TUNING and r.settings != before
  )

  def lower(which):
    return lambda run, points: points - (run.id in which) * np.array([0, 2.0])

  assert chosen(lower({r.id for r in report}))[1] == before
  assert chosen(lower({other.id}))[1] == other.settings != before


def test_all_trials_may_diverge():
  def train(method, settings, horizon, batch, seed):
    bad = method == "muon" and seed == 100
    return [[horizon, math.nan if bad else 4.0]]

  study = planted.study(claims=({"claim": "lower", "threshold": 0.0},))
  made = planted.Memory(study, train).finish()
  row = made.row("muon")
  assert row["trials"] == 6
  assert {loss for _, loss in row["tried"]} == {"inf"}
  assert row["edge"]
  (claim,) = made.results()["claims"]
  assert claim["verdict"] == "undecided"


def test_a_diverged_trial_loses():
  half = planted.losses()

  def train(method, settings, horizon, batch, seed):
    points = half(method, settings, horizon, batch, seed)
    high = settings[RATE] > METHODS[method].tuned[RATE].start
    return points * [1, math.inf if high else 1.0]

  choice = (
    planted.Memory(planted.study(trials=9), train)
    .finish()
    .planned()
    .choices["muon", "one", 1.0]
  )
  assert not choice.tuned.edge
  assert _octaves(choice, "muon") == pytest.approx(0, abs=1e-3)


def test_a_held_out_cell_takes_settings_and_has_a_curve_of_its_own():
  cells = {
    "one": {"batch": 4, "tokens": planted.TOKENS},
    "held": {
      "batch": 4, "tokens": planted.TOKENS, "settings_of": "one",
      "overrides": {"data.mixture": (("stdlib", 1.0),)},
    },
  }  # fmt: skip
  study = planted.study(
    cells=cells,
    horizons=planted.HORIZONS,
    claims=({"claim": "faster", "threshold": 0.9, "cells": ("held",)},),
  )
  train = planted.losses({"muon": 2}, {"muon": 1.3})
  made = planted.Memory(study, train).finish()
  row = made.row("muon", "held")
  assert row["trials"] == 0
  assert row["settings"] == made.row("muon")["settings"]
  assert row["speed"]["estimate"] == pytest.approx(1.3, abs=0.01)
  (claim,) = made.results()["claims"]
  assert (claim["cell"], claim["verdict"]) == ("held", "reproduced")
  for place in plan.places(study):
    runs = [
      r for r in made.planned().runs if (r.arm, r.cell, r.horizon) == place
    ]
    assert len(runs) == plan.count(study, place)


def test_an_edge_goes_with_the_settings_to_other_cells():
  cells = {
    "one": {"batch": 4, "tokens": planted.TOKENS},
    "held": {"batch": 4, "tokens": 2 * planted.TOKENS, "settings_of": "one"},
  }
  made = planted.Memory(
    planted.study(cells=cells), planted.losses({"muon": 5})
  ).finish()
  assert made.row("muon", "held")["edge"]
  assert not made.row("adamw", "held")["edge"]


def test_a_larger_cell_starts_at_the_best_rate_with_trials_of_its_own():
  cells = {
    "one": {"batch": 4, "tokens": planted.TOKENS},
    "big": {
      "batch": 4, "tokens": 2 * planted.TOKENS, "start_of": "one", "trials": 3,
    },
  }  # fmt: skip
  study = planted.study(cells=cells, auxiliary=True, trials=9)
  made = planted.Memory(study, planted.losses({"muon": 2})).finish()
  best = made.row("muon")["settings"][RATE]
  rates = {settings[RATE] for settings, _ in made.row("muon", "big")["tried"]}
  assert rates == {best / 2, best, best * 2}


def test_the_length_of_a_row_may_be_of_the_study():
  study = planted.study(overrides={"data.seq_length": 128})
  run = plan.first(study, ("adamw", "one", 1.0))
  assert run.job.overrides["train.num_steps"] == planted.TOKENS // (4 * 128)
  assert run.tokens == planted.TOKENS
