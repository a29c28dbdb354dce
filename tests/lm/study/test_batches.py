"""Critical batches: released counts, planted fits, exact least squares."""

import math

import numpy as np
import pytest

import theory
from lm.study import batches as study
from lm.study import statistics

INF = math.inf
ROWS = 2.0 ** np.arange(7)
# Steps at batch 64, ..., 16384, as published with arXiv 2410.21676.
RELEASED = {
  85e6: [46000, 23000, 13282, 7000, 3840, 2528, 1917, 1600, 1600],
  151e6: [96000, 49000, 24000, 12000, 7128, 4350, 2940, 2400, 2300],
  302e6: [196000, 90000, 46000, 23400, 13300, 7224, 4980, 3400, 2879],
  604e6: [311000, 166000, 81000, 37440, 21320, 11400, 7199, 4700, 3800],
  1.2e9: [642000, 331000, 176000, 94000, 46500, 25000, 15360, 8900, 6500],
}


def _rng():
  return np.random.default_rng(0)


def test_released_counts_have_both_exponents():
  steps = np.array(list(RELEASED.values()), float)[:, None]
  law = study.data_law(
    2.0 ** np.arange(6, 15),
    steps,
    _rng(),
    512,
    x=list(RELEASED),
    reference=256,
    draws=10,
  )
  np.testing.assert_allclose(
    law.batch["ratio"], [2191, 3240, 5433, 7907, 11131], atol=0.5
  )
  np.testing.assert_allclose(
    law.batch["paper"], [745.3, 955.2, 1393.7, 1888.5, 2533.4], atol=0.05
  )
  assert law.slope["ratio"].estimate == pytest.approx(0.619, abs=5e-4)
  assert law.slope["paper"].estimate == pytest.approx(0.4683, abs=5e-5)
  for fit in law.fits:
    assert fit.free.estimate == pytest.approx(fit.ratio.estimate / 5)
    # Without the form: the same order, 5 % residuals, so up to 54 % off.
    assert abs(math.log(fit.measured.estimate / fit.paper.estimate)) < 0.45
    assert (fit.ratio.low, fit.ratio.high) == (0, INF)  # One seed.
  assert statistics.exponent(law.draws["paper"], 0.47, 0.12).kind == "undecided"


def _planted(rng, a=500, ratio=12, noise=0.05, seeds=3):
  steps = a * (1 + ratio / ROWS)
  return steps * np.exp(noise * rng.standard_normal((seeds, ROWS.size)))


def test_exact_steps_are_read_exactly():
  fit = study.fit(ROWS, _planted(_rng(), noise=0), _rng(), 2, 0.3, draws=20)
  assert fit.steps_min == pytest.approx(500, rel=1e-6)
  assert fit.samples_min == pytest.approx(6000, rel=1e-6)
  assert fit.ratio[:3] == pytest.approx([12] * 3, rel=1e-6)
  assert fit.free[:3] == pytest.approx([3.6] * 3, rel=1e-6)
  assert fit.paper[:3] == pytest.approx([2.6 + 3.6] * 3, rel=1e-6)
  # B (a + b / B) is straight in B, so the line reads the paper's batch.
  assert fit.measured[:3] == pytest.approx([2.6 + 3.6] * 3, rel=1e-6)
  assert fit.notes == ()


@pytest.mark.parametrize("seeds", [3, 5])
def test_planted_batches_are_covered(seeds):
  rng, hits = np.random.default_rng(seeds), dict.fromkeys(("ratio", "paper"), 0)
  for _ in range(40 if seeds == 5 else 100):
    fit = study.fit(ROWS, _planted(rng, seeds=seeds), rng, draws=200)
    hits["ratio"] += fit.ratio.low <= 12 <= fit.ratio.high
    hits["paper"] += fit.paper.low <= 1.2 + 2.4 <= fit.paper.high
  assert min(hits.values()) >= (32 if seeds == 5 else 80)


def test_censored_batches_are_counted_and_named():
  steps = _planted(_rng(), noise=0.01)
  steps[0, 5] = steps[0, 6] = steps[1, 6] = INF
  fit = study.fit(ROWS, steps, _rng(), draws=100)
  assert fit.notes == (
    "batch 32: 2 of 3 reached",
    "batch 64: 1 of 3 reached, left out of the fit",
  )
  # At 32 the median of three is the larger of two, so nothing is gained.
  assert fit.ratio.estimate == pytest.approx(12, rel=0.05)
  steps[:2, 0] = INF
  fit = study.fit(ROWS, steps, _rng(), draws=5)
  assert math.isnan(fit.measured.estimate)
  assert "left out" in fit.notes[0]


def test_a_batch_between_the_given_ones_is_covered_when_runs_are_censored():
  rng, rows, hits = np.random.default_rng(6), 4.0 ** np.arange(4), 0
  for _ in range(40):  # b / a = 7 lies between 4 and 16.
    noise = np.exp(0.04 * rng.standard_normal((3, 4)))
    steps = 300 * (1 + 7 / rows) * noise
    steps[rng.integers(3), rng.integers(4)] = INF
    found = study.fit(rows, steps, rng, draws=100)
    assert "2 of 3 reached" in found.notes[0]
    hits += found.ratio.low <= 7 <= found.ratio.high
  assert hits >= 32


def test_measured_bridges_a_batch_that_never_arrives():
  steps = _planted(_rng(), noise=0)
  steps[:, 2] = INF  # Of 4; with B_ref 1 the reading, 3.6, is between 2 and 8.
  found = study.fit(ROWS, steps, _rng(), draws=5)
  assert found.measured[:3] == pytest.approx([3.6] * 3, rel=1e-6)
  assert found.notes == ("batch 4: 0 of 3 reached, left out of the fit",)
  nothing = study.fit(ROWS, np.full((3, 7), INF), _rng(), draws=5)
  assert math.isnan(nothing.ratio.estimate)
  assert any("no fit" in note for note in nothing.notes)


def test_undetermined_steps_are_nan_and_say_why():
  fit = study.fit(ROWS, 1000 / ROWS[None], _rng(), draws=5)
  assert math.isnan(fit.ratio.estimate)
  assert any("steps_min" in note for note in fit.notes)
  assert any("over linear scaling" in note for note in fit.notes)


def _runs(rng, seeds, noise):
  """Curves with log steps to loss L as planted: b = L^-2, b / a = b^.5 / 4."""
  losses = np.linspace(0.2, 0.02, 60)
  b = losses**-2 * 10
  clean = [b / row + 4 * b**0.5 for row in ROWS]
  return [
    [(x * np.exp(noise * rng.standard_normal()), losses) for x in clean]
    for _ in range(seeds)
  ]


def test_the_data_law_of_curves_is_covered_and_judged():
  targets, hits = [0.15, 0.1, 0.06, 0.04], 0
  for trial in range(8):
    rng = np.random.default_rng(trial)
    steps, again = study.crossings(_runs(rng, 3, 0.03), targets)
    assert steps.shape == again.shape == (4, 3, 7)
    assert not again.any()
    law = study.data_law(ROWS, steps, rng, 256, draws=200)
    hits += law.slope["ratio"].low <= 0.5 <= law.slope["ratio"].high
  assert hits >= 5
  np.testing.assert_allclose(
    law.data, 2560 / np.square(targets), rtol=0.15
  )  # b in tokens.
  assert statistics.exponent(law.draws["ratio"], 0.5, 0.12).kind == "reproduced"
  assert statistics.exponent(law.draws["ratio"], 0.9, 0.12).kind != "reproduced"
  assert law.batch["paper"] == pytest.approx(1.2 + 0.2 * law.batch["ratio"])


def test_crossings_have_targets_first():
  run = ([1, 2, 3, 4], [4.0, 2.0, 3.5, 2.0])
  steps, again = study.crossings([[run, run]], [3.0, 1.0])
  assert steps.tolist() == [[[1.5, 1.5]], [[INF, INF]]]
  assert again.tolist() == [[[1, 1]], [[0, 0]]]


def test_exact_least_squares_is_recovered_from_its_curves():
  """Exponents (1.5, 3): measured batches grow as D^.53 here, at last as D^.5.

  The form a + b / B is off by up to 25 % in steps, and reads .60.
  """
  samples, rows = np.logspace(4.2, 6.4, 23), np.logspace(0, 3.6, 9)
  problem = theory.power_law(1e5, 1.5, 3.0, 0.25, nodes=4)
  etas = theory.eta_grid(problem, rows, 9, 3e-3)
  table = theory.risk_table(problem, etas, rows, samples)
  risk = np.asarray(table).min(0)
  seed = [(samples / row, curve) for row, curve in zip(rows, risk, strict=True)]
  some = slice(3, 16, 3)  # Data of 3e4 to 5e5 at batch 1.
  steps, _ = study.crossings([seed], risk[0, some] * (1 + 1e-12))
  law = study.data_law(rows, steps, _rng(), 1, x=samples[some], draws=5)
  exact = theory.critical_batch(table, rows, samples)[some]
  np.testing.assert_allclose(law.batch["measured"], exact, rtol=0.05)
  wanted = theory.cbs_law(samples[some], exact).params["p"]
  assert law.slope["measured"].estimate == pytest.approx(wanted, abs=0.02)
  assert law.slope["measured"].estimate == pytest.approx(0.51, abs=0.05)
  assert law.slope["ratio"].estimate == pytest.approx(0.60, abs=0.04)


def test_theory_curve_is_that_of_the_table():
  samples, rows = np.array([1e4, 2e4, 4e4, 8e4]), np.array([1.0, 30, 300, 1000])
  found = study.theory_curve(samples, rows)
  assert 100 < found[0] < 400
  assert np.isnan(found[-1])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"batches": ROWS[::-1]}, "must be > 0 and increase"),
    ({"steps": np.ones((2, 3))}, r"steps \(2, 3\) .* \[S, 7\]"),
    ({"steps": np.zeros((2, 7))}, r"steps \(2, 7\) must be > 0"),
    ({"over": 0}, "over=0"),
  ],
)
def test_bad_input_is_named(change, message):
  call = {"batches": ROWS, "steps": np.ones((2, 7)), "rng": _rng()} | change
  with pytest.raises(ValueError, match=message):
    study.fit(**call)


@pytest.mark.parametrize("change", [{"row_tokens": 0}, {"x": [1.0, 2.0]}])
def test_bad_data_are_named(change):
  call = {"steps": np.ones((3, 2, 7)), "rng": _rng(), "row_tokens": 1} | change
  with pytest.raises(ValueError, match=r"row_tokens=.* x=.* must be > 0"):
    study.data_law(ROWS, **call)
