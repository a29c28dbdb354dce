"""Verdicts against scipy, planted arrays and numbers computed by hand."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from lm.study import statistics as study

INF, NAN = math.inf, math.nan


def _close(found, share, trials):
  """Within 4 standard errors of a share, or the printed digits of it."""
  error = 4 * math.sqrt(share * (1 - share) / trials) + 0.005
  assert abs(found - share) < error, (found, share, error)


@pytest.mark.parametrize("n", [2, 5, 8])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_mean_interval_is_that_of_scipy(n, level):
  x = np.random.default_rng(n).normal(1, 2, n)
  found = study.mean_interval(x, level)
  wanted = stats.ttest_1samp(x, 0).confidence_interval(level)
  np.testing.assert_allclose(found[1:3], wanted, rtol=1e-12)
  assert found.estimate == pytest.approx(x.mean(), rel=1e-14)
  assert f"{level:.0%} t-interval" in found.how


def test_order_interval_is_that_of_the_binomial_test():
  for n in (5, 8, 12):
    x = np.arange(n, dtype=float)
    x[-1] = INF
    found = study.mean_interval(x)
    cut = max(j for j in range(n) if 2 * stats.binom.cdf(j, n, 0.5) <= 0.1)
    assert (found.low, found.high) == (x[cut], x[n - 1 - cut])
    assert f"{1 - 2 * stats.binom.cdf(cut, n, 0.5):.1%}" in found.how
  assert "93.8%" in study.mean_interval([0, 1, 2, 3, INF]).how
  few = study.mean_interval([0, 1, 2, INF])
  assert few[:3] == (1.5, -INF, INF)
  # nan may lie anywhere: five values with one nan bound nothing.
  assert study.mean_interval([0, 1, 2, 3, NAN])[:3] == (1.5, -INF, INF)
  eight = study.mean_interval([0, 1, 2, 3, 4, 5, 6, NAN])
  assert (eight.low, eight.high) == (0, 6)


def test_medians_of_infinite_values_are_silent():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert study.mean_interval([INF] * 6)[:3] == (INF, INF, INF)
    assert math.isnan(study.mean_interval([-INF, INF]).estimate)
    assert math.isnan(study.mean_interval([NAN, NAN]).estimate)


def test_faster_has_the_three_verdicts_and_the_p_of_scipy():
  x = np.log([0.70, 0.72, 0.69, 0.71, 0.73])
  yes = study.faster(x, 0.775)
  assert yes.kind == study.REPRODUCED
  wanted = stats.ttest_1samp(x, math.log(0.775), alternative="less").pvalue
  assert yes.p == pytest.approx(wanted, rel=1e-10)
  assert yes.estimate == pytest.approx(np.exp(x.mean()))
  assert yes.low < yes.estimate < yes.high < 0.775
  assert study.faster(x, 0.6).kind == study.NOT
  assert study.faster(x, 0.71).kind == study.UNDECIDED
  assert "ratio <= 0.775" in yes.rule
  alone = study.faster([-3.0], 0.775)
  assert alone.kind == study.UNDECIDED
  assert (alone.low, alone.high) == (0, INF)
  assert math.isnan(alone.p)


def test_the_interval_and_p_turn_together():
  rng = np.random.default_rng(0)
  for n in (3, 5, 8):
    for _ in range(200):
      x = rng.normal(-0.3, 0.2, n)
      if rng.random() < 0.5:
        x[rng.integers(n)] = rng.choice([INF, -INF, NAN])
      found = study.faster(x, 0.8)
      assert (found.kind == study.REPRODUCED) == (found.p < study.ALPHA)


def test_censored_runs_count():
  x = [-1.0, -1.1, -0.9, -1.2, -0.8, -1.0, -1.0, INF]
  found = study.faster(x, 0.8)
  assert found.kind == study.REPRODUCED
  assert "7 of 8" in found.rule
  assert "8 of 8" in found.rule
  assert "sign test" in found.rule
  assert study.faster([-INF, *x[:4]], 0.8).kind == study.REPRODUCED
  for some in ([INF], [NAN]):  # The fifth of five decides.
    found = study.faster(x[:4] + some, 0.8)
    assert found.kind == study.UNDECIDED
    assert "4 of 5" in found.rule
  assert study.faster([INF] * 5, 0.8).kind == study.NOT
  four = study.faster([-5.0, -5, -5, -INF], 0.8)
  assert (four.kind, four.low, four.high) == (study.UNDECIDED, 0, INF)


def test_equal_pair_with_few_noisy_seeds_is_undecided():
  noise = np.array([-1.0, 0.0, 1.0]) * 0.02
  found = study.equal(noise, 0.01)
  assert found.kind == study.UNDECIDED
  assert found.high == pytest.approx(2.92 * 0.02 / math.sqrt(3), rel=1e-3)
  assert study.equal(noise / 20, 0.01).kind == study.REPRODUCED
  assert study.equal(noise + 0.1, 0.01).kind == study.NOT
  assert study.equal(noise - 0.1, 0.01).kind == study.NOT
  assert study.equal([0.0, 0.0, INF], 0.01).kind == study.UNDECIDED
  assert "succeeded in 2 of 3" in study.equal([0.0, 0.0, NAN], 0.01).rule


def test_equal_is_two_one_sided_tests():
  rng = np.random.default_rng(2)
  for _ in range(100):
    x = rng.normal(0.3, 0.5, 5)
    found = study.equal(x, 0.8)
    wanted = max(
      stats.ttest_1samp(x, 0.8, alternative="less").pvalue,
      stats.ttest_1samp(x, -0.8, alternative="greater").pvalue,
    )
    assert found.p == pytest.approx(wanted, rel=1e-9)
    assert (found.kind == study.REPRODUCED) == (wanted < study.ALPHA)


def test_lower_is_of_differences():
  x = np.array([-0.05, -0.04, -0.06])
  assert study.lower(x).kind == study.REPRODUCED
  assert study.lower(x, -0.2).kind == study.NOT
  assert study.lower(-x).p == pytest.approx(1 - study.lower(x).p)
  assert study.lower([0.0, 0.0]).kind == study.REPRODUCED  # At most 0.


@pytest.mark.parametrize(
  ("n", "power", "two_sd", "one_sd"),
  [(3, 0.52, 0.57, 0.12), (5, 0.86, 0.95, 0.29), (8, 0.98, 1.0, 0.63)],
)
def test_power_is_that_of_the_specified_tests(n, power, two_sd, one_sd):
  trials = 1500
  x = np.random.default_rng(n).standard_normal((trials, n))
  faster = [study.faster(row - 1.5, 1).kind == study.REPRODUCED for row in x]
  _close(np.mean(faster), power, trials)
  for margin, share in ((2, two_sd), (1, one_sd)):
    same = [study.equal(row, margin).kind == study.REPRODUCED for row in x]
    _close(np.mean(same), share, trials)


def test_exponent_counts_draws():
  draws = np.linspace(0.4, 0.6, 101)
  assert study.exponent(draws, 0.5, 0.095).kind == study.REPRODUCED
  assert study.exponent(draws, 0.5, 0.08).kind == study.UNDECIDED
  assert study.exponent(draws, 0.3, 0.105).kind == study.NOT
  found = study.exponent(draws, 0.5, 0.2)
  assert found[1:4] == pytest.approx((0.5, 0.41, 0.59))
  assert found.p == pytest.approx(1 / 102 / 2)
  failed = np.where(np.arange(101) < 20, NAN, draws)
  found = study.exponent(failed, 0.5, 0.2)
  assert found.kind == study.UNDECIDED
  assert (found.low, found.high) == (-INF, INF)
  assert "81 of them known" in found.rule


def test_sign_flips_are_those_of_scipy():
  rng = np.random.default_rng(3)
  a, b = rng.random(9), rng.random(9) + 0.2
  found = study.better_prediction(a, b)
  wanted = stats.permutation_test(
    (a, b),
    lambda a, b, axis: np.mean(a - b, axis),
    permutation_type="samples",
    vectorized=True,
    n_resamples=np.inf,
    alternative="less",
  ).pvalue
  assert found.p == pytest.approx(wanted, abs=1e-12)
  assert found.estimate == pytest.approx(np.mean(a - b))
  # The interval holds the shifts that the test does not reject.
  for shift, inside in ((found.high + 1e-9, False), (found.high - 1e-9, True)):
    assert (study.better_prediction(a - shift, b).p > study.ALPHA) == inside
  assert study.better_prediction(a, a + 0.1).kind == study.REPRODUCED
  assert study.better_prediction(a + 0.1, a).kind == study.NOT
  assert study.better_prediction(a, a).kind == study.UNDECIDED
  assert study.better_prediction(a, a).p == 1
  assert study.better_prediction(a[:4], a[:4] + 1).kind == study.UNDECIDED


def test_many_cells_draw_patterns():
  rng = np.random.default_rng(4)
  a, b = rng.random(20), rng.random(20) + 0.15
  found = study.better_prediction(a, b, np.random.default_rng(0))
  assert found == study.better_prediction(a, b, np.random.default_rng(0))
  assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue / 2, abs=0.02)
  assert study.better_prediction(a, b) == found


def test_holm_by_hand():
  # Sorted .01 x 4, .02 x 3, .03 x 2, .04: .04, .06, .06, .06 (never falling).
  found = study.holm([0.01, 0.04, 0.03, 0.02])
  np.testing.assert_allclose(found, [0.04, 0.06, 0.06, 0.06])
  # Holm's own steps of .01, .02, .04, .5: .04, .06, .08, .5.
  np.testing.assert_allclose(
    study.holm([0.5, NAN, 0.01, 0.04, 0.02]), [0.5, NAN, 0.04, 0.08, 0.06]
  )
  assert study.holm([0.6, 0.9]).tolist() == [1, 1]


def test_corrected_keeps_the_raw_kind():
  def verdict(kind, p):
    return study.Verdict(kind, 1.0, 0.9, 1.1, 5, "rule", p)

  raw = [
    verdict(study.REPRODUCED, 0.01),
    verdict(study.REPRODUCED, 0.04),
    verdict(study.NOT, 0.9),
    verdict(study.UNDECIDED, NAN),
  ]
  found = study.corrected(raw)
  assert [v.kind for v in found] == [
    study.REPRODUCED,
    study.UNDECIDED,
    study.NOT,
    study.UNDECIDED,
  ]
  assert "raw: reproduced, p by Holm 0.08" in found[1].rule
  assert [v.p for v in found[:3]] == [0.01, 0.04, 0.9]
  assert study.corrected([]) == []


@pytest.mark.parametrize("n", [3, 5])
def test_bootstrap_of_few_seeds_covers(n):
  rng, trials = np.random.default_rng(n), 300
  hits = 0
  for _ in range(trials):
    x = rng.standard_normal(n)
    draws = study.bootstrap(lambda s, x=x: x[s].mean(), n, 300, rng)
    found = study.percentiles(draws)
    hits += found.low <= 0 <= found.high
  assert 0.84 < hits / trials < 0.96  # .89 and .92 of 400; error .017.


def test_bootstrap_has_shapes_and_one_seed_has_none():
  rng = np.random.default_rng(0)
  x = rng.random((4, 2, 3))
  assert study.bootstrap(lambda s: x[s].mean(0), 4, 50, rng).shape == (50, 2, 3)
  with pytest.raises(ValueError, match="n_seeds=1 must be >= 2"):
    study.bootstrap(lambda s: 0.0, 1, 50, rng)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: study.faster([], 0.8), r"log_ratio has shape \(0,\)"),
    (lambda: study.faster([0.1], -1), "threshold=-1 must be finite and > 0"),
    (lambda: study.equal([[0.1]], 0.1), r"difference has shape \(1, 1\)"),
    (lambda: study.equal([0.1], NAN), "margin=nan"),
    (lambda: study.exponent([0.5], 0.5, 0), "tol=0"),
    (lambda: study.better_prediction([1.0], [1.0, 2.0]), "same cells"),
    (lambda: study.better_prediction([NAN], [1.0]), "must be finite"),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
