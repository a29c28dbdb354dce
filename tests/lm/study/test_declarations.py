"""Every declared study: it loads, its runs resolve, and it comes to an end."""

import math
import pathlib

import numpy as np
import pytest

from lm.config import load
from lm.study import declare, plan, results
from lm.study.session import Session
from lm.study.tuning import RATE
from lm.tools import sweeps

NAMES = sorted(
  path.stem for path in pathlib.Path(declare.FOLDER).glob("[!_]*.py")
)


def _tiers(name: str) -> list[str]:
  path = f"{declare.FOLDER}/{name}.py"
  return list(load.import_file(path).TIERS)


@pytest.mark.parametrize("name", NAMES)
def test_every_tier_loads_and_its_runs_resolve(name):
  for tier in _tiers(name):
    study = declare.load(name, tier)
    assert plan.plan(study, lambda _: None).runs
    for place in plan.places(study):
      run = plan.first(study, place)
      assert run.id
      assert run.tokens > 0


def train(method, settings, horizon, batch, seed):
  """Steps to a loss are a + b / B with b / a = 15; the best rate is .01."""
  own = np.random.default_rng([seed, *map(ord, method), batch, horizon])
  tokens = np.linspace(1 / 24, 1, 24) * horizon
  rate = math.log2(settings[RATE] / 0.01)
  loss = 3 + 60 * (tokens / (1 + batch / 15)) ** -0.3 + 0.03 * rate**2
  loss += 0.01 * np.random.default_rng(seed).normal() + 0.002 * own.normal()
  return np.stack([tokens, loss], 1)


def test_a_cell_sets_arguments_of_every_optimizer_of_a_run():
  study = declare.load("cbs", "full")
  run = plan.first(study, ("muon", "0.3M, 8 rows", 1.0))
  config = sweeps.resolve(run.job.config, run.job.overrides)
  rest, hidden = dict(config.optim.kwargs), dict(config.optim.by_role)["hidden"]
  assert (rest["b1"], rest["b2"]) == (0.95, 0.9795)
  muon = dict(dict(hidden)["kwargs"])
  assert (rest["weight_decay"], muon["weight_decay"]) == (0, 0)
  assert "b2" not in muon


def test_an_arm_may_be_longer_than_its_cell():
  study = declare.load("gauss_newton", "small")
  runs = [
    plan.first(study, (arm, "60 rows", 1.0)) for arm in ("soap", "gauss_newton")
  ]
  assert [run.tokens // (60 * 256) for run in runs] == [32, 16]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "leaderboard"])
def test_a_planted_trainer_carries_a_small_tier_to_its_end(name, tmp_path):
  study = declare.load(name, "small")
  s = Session(study, tmp_path / "runs", f"{__file__}:train")
  for _ in range(40):
    found = s.planned()
    wave = found.missing(s.find)
    if not wave:
      break
    s.make(wave, 1)
  assert not wave
  assert not found.waiting
  assert len({run.id for run in found.runs}) <= 60
  end = results.results(study, found, s.find)
  assert all(row["done"] for row in end["table"])
  claimed = {(c["claim"], c["arm"], c["than"]) for c in end["claims"]}
  asked = [c for c in study.claims if c.arm in study.arms]
  assert {(c.claim, c.arm) for c in asked} == {c[:2] for c in claimed}
  for laws in end["critical_batch"].values():
    ratios = [fit["ratio"]["estimate"] for fit in laws["fits"]]
    assert ratios == pytest.approx([15] * len(ratios), rel=0.3)
