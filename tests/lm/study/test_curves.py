"""Crossings, speed-ups and profiles with known answers."""

import math

import numpy as np
import pytest

from lm.study import curves, statistics

INF, NAN = math.inf, math.nan
HORIZONS = np.array([0.5, 1, 2, 4])


def test_crossing_lies_on_the_straight_line():
  tokens, losses = [10, 20, 40, 80], [5.0, 4.0, 3.0, 2.0]
  assert curves.crossing(tokens, losses, 3.25) == (35, 0)
  assert curves.crossing(tokens, losses, 3.0) == (40, 0)
  assert curves.crossing(tokens, losses, 6.0) == (10, 0)
  assert curves.crossing(tokens, losses, 1.9) == (INF, 0)
  assert curves.crossing([7], [1.0], 1.5) == (7, 0)


def test_crossing_again_and_diverging_is_counted():
  tokens = np.arange(1.0, 9)
  losses = [5.0, 3.0, 4.5, 3.0, 3.0, 4.1, 5.0, 3.9]
  assert curves.crossing(tokens, losses, 4.0) == (1.5, 2)
  assert curves.crossing([1, 2, 3], [5, 3, NAN], 4) == (1.5, 1)
  assert curves.crossing([1, 2, 3], [5, NAN, 3], 4) == (3, 0)
  assert curves.crossing([1, 2, 3], [INF, 3, 2], 4) == (2, 0)
  assert curves.crossing([1, 2], [NAN, NAN], 4) == (INF, 0)


def _law(horizon, c=2.5, k=1.0, p=0.3):
  return c + k * np.asarray(horizon) ** -p


@pytest.mark.parametrize("c", [0.0, 2.5])
def test_speed_up_of_an_exact_curve(c):
  unit = 1e6
  losses = _law(HORIZONS, c)
  for s in (0.5, 0.8, 1.0, 1.3, 4.0):
    slack = 1e-9 * (s - 1)
    found = curves.speed_up(HORIZONS * unit, losses, _law(s, c) + slack, unit)
    assert found.value == pytest.approx(s, rel=1e-4)
    assert found.bound == ""
  shuffled = [2, 0, 3, 1]
  again = curves.speed_up(
    HORIZONS[shuffled] * unit, losses[shuffled], _law(1.3, c), unit
  )
  assert again.value == pytest.approx(1.3, rel=1e-4)


def test_speed_up_extrapolates_nothing():
  losses = _law(HORIZONS)
  speed = lambda loss: curves.speed_up(HORIZONS, losses, loss, 1.0)  # noqa: E731
  assert speed(_law(4.2)) == (INF, ">")
  assert speed(_law(0.48)) == (0, "<")
  assert speed(NAN) == speed(INF) == (0, "<")
  for broken in ([4, 3.5, 3.6, 3.0], [4, 3.5, 3.2, NAN], [4, 3, 3, 2.0]):
    value, bound = curves.speed_up(HORIZONS, broken, 3.3, 1.0)
    assert math.isnan(value)
    assert bound == ""


@pytest.mark.parametrize(
  ("c", "k", "p", "boards"), [(2.5, 1.0, 0.3, 24), (0.0, 4.0, 0.08, 12)]
)
def test_planted_leaderboards_are_covered(c, k, p, boards):
  """Ten methods, five seeds, paired sd .01: with an offset, and without one.

  One method is 1.3 times as fast as the reference, the others are equal to it.
  """
  rng, sd, seeds = np.random.default_rng(1), 0.01 / math.sqrt(2), range(5)
  covered, centres, false = [], [], 0
  for _ in range(boards):
    curve = _law(HORIZONS, c, k, p) + sd * rng.standard_normal((5, 4))
    verdicts = []
    for s in [1.3] + 9 * [1.0]:
      losses = _law(s, c, k, p) + sd * rng.standard_normal(5)
      speeds = [
        curves.speed_up(HORIZONS, curve[i], losses[i], 1) for i in seeds
      ]
      assert {bound for _, bound in speeds} == {""}
      log_ratio = -np.log([value for value, _ in speeds])
      verdicts.append(statistics.faster(log_ratio, 1 / 1.1))
    fast, *same = statistics.corrected(verdicts)
    assert fast.kind == statistics.REPRODUCED
    covered.append(fast.low <= 1 / 1.3 <= fast.high)
    centres.append(1 / fast.estimate)
    false += any(found.kind == statistics.REPRODUCED for found in same)
  # .87 of 100 leaderboards; the standard error here is .06 or .09.
  assert abs(np.mean(covered) - 0.9) < 4 * math.sqrt(0.09 / boards)
  assert np.mean(centres) == pytest.approx(1.3, rel=0.01)
  assert false == 0


def test_profile_by_hand():
  times = [[1.0, 4.0, INF, 6.0], [2.0, 2.0, INF, NAN], [8.0, 2.0, INF, 3.0]]
  found = curves.profile(times)
  assert found.factors.tolist() == [1, 2, 4]
  np.testing.assert_allclose(
    found.share,
    [[0.25, 0.75, 0.75], [0.25, 0.5, 0.5], [0.5, 0.5, 0.5]],
  )
  # The area under the steps from 1 to 4 by the trapezoid of a fine grid.
  grid = np.linspace(1, 4, 30001)
  at = np.searchsorted(found.factors, grid, side="right") - 1
  area = np.trapezoid(found.share[:, at], grid, axis=1) / 3
  np.testing.assert_allclose(found.integral, area, atol=1e-4)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: curves.crossing([1, 2], [1.0], 1.0), r"tokens \(2,\)"),
    (
      lambda: curves.crossing([2, 1], [1.0, 2], 1.0),
      "must increase and be finite",
    ),
    (lambda: curves.crossing([1], [1.0], NAN), "target=nan"),
    (lambda: curves.speed_up([1, 2, 3], [3, 2, 1], 2.0, 1), "4 or more"),
    (lambda: curves.speed_up(HORIZONS, _law(HORIZONS), 2.0, 0), "horizon=0"),
    (lambda: curves.profile([1.0]), r"times \(1,\)"),
    (lambda: curves.profile([[0.0]]), r"times \(1, 1\)"),
    (lambda: curves.profile([[1.0]], to=1), "to=1"),
  ],
)
def test_bad_input_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
