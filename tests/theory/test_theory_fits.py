"""Scaling-law fits: planted parameters and published constants."""

import numpy as np
import pytest

import theory

N, TOKENS = (
  x.ravel() for x in np.meshgrid(np.logspace(7, 9.5, 8), np.logspace(9, 11, 8))
)
CHINCHILLA = 1.7 + 400 * N**-0.34 + 410 * TOKENS**-0.28


def test_chinchilla_recovers_planted_parameters():
  fit = theory.chinchilla(N, TOKENS, CHINCHILLA)
  planted = {"A": 400, "B": 410, "E": 1.7, "alpha": 0.34, "beta": 0.28}
  assert fit.params == pytest.approx(planted, rel=1e-6)
  assert fit.r2 == pytest.approx(1)
  assert fit.predict(N, TOKENS) == pytest.approx(CHINCHILLA, rel=1e-9)


def test_bootstrap_intervals_cover_the_truth_under_noise():
  rng = np.random.default_rng(0)
  noisy = CHINCHILLA * np.exp(0.003 * rng.standard_t(3, N.size))
  fit = theory.chinchilla(N, TOKENS, noisy)
  assert fit.params["alpha"] == pytest.approx(0.34, abs=0.03)
  intervals = fit.bootstrap(40, seed=1, level=0.98)
  low, high = intervals["alpha"]
  assert low < 0.34 < high < low + 0.15
  assert intervals == fit.bootstrap(40, seed=1, level=0.98)


def test_kaplan_recovers_planted_parameters():
  al, be = 0.3, 0.25
  planted = 1.5 + ((1e6 / N) ** (al / be) + 1e7 / TOKENS) ** be
  fit = theory.kaplan(N, TOKENS, planted)
  assert fit.params["alpha"] == pytest.approx(al, abs=0.01)
  assert fit.params["E"] == pytest.approx(1.5, rel=0.01)
  assert fit.objective < 1e-9


def test_gradients_of_both_laws_are_exact():
  from theory import fits

  seen = []

  def spy(law, y, starts, *rest):
    seen.append((law, starts[0]))
    return real(law, y, starts, *rest)

  real, fits._finish = fits._finish, spy
  try:
    theory.kaplan(N, TOKENS, CHINCHILLA)
  finally:
    fits._finish = real
  rows = np.arange(5)
  for law, theta in seen:
    for k in range(5):
      h = 1e-6 * np.eye(5)[k]
      slope = (law(theta + h, rows)[0] - law(theta - h, rows)[0]) / 2e-6
      np.testing.assert_allclose(law(theta, rows)[1][k], slope, atol=1e-8)
  assert len(seen) == 2


def test_shifted_power_law_with_and_without_known_offsets():
  x = np.linspace(2.5, 4, 30)
  y = 1.2 + 0.8 * (x - 1.9) ** 1.1
  known = theory.shifted_power(x, y, E0=1.9, E1=1.2)
  assert known.params["kappa"] == pytest.approx(1.1)
  assert known.params["K"] == pytest.approx(0.8)
  free = theory.shifted_power(x, y)
  assert free.params["kappa"] == pytest.approx(1.1, abs=0.01)
  assert free.predict(x) == pytest.approx(y, rel=1e-6)
  profile = theory.kappa_profile(x, y, [0.9, 1.1, 1.3])
  assert profile.argmin() == 1
  with pytest.raises(ValueError, match="below every loss"):
    theory.shifted_power(x, y, E0=2.6, E1=1.0)


def test_noisy_offsets_stay_in_bounds():
  rng = np.random.default_rng(2)
  x = np.linspace(2.8, 3.6, 25)
  y = (1.2 + 0.8 * (x - 1.9) ** 1.6) * np.exp(0.001 * rng.standard_normal(25))
  params = theory.shifted_power(x, y).params
  assert 0 <= params["E0"] < x.min()
  assert 0 <= params["E1"] < y.min()


def test_published_critical_batch_law():
  """Sizes in millions, batches of arXiv 2410.21676's released curve."""
  sizes = [85, 151, 302, 604, 1200]
  critical = [745.3, 955.2, 1393.7, 1888.5, 2533.4]
  fit = theory.cbs_law(sizes, critical)
  assert fit.params["k"] == pytest.approx(93.20, rel=1e-3)
  assert fit.params["p"] == pytest.approx(0.4683, rel=1e-3)


def test_power_law_with_an_offset():
  x = np.logspace(0, 3, 20)
  fit = theory.power_law_fit(x, 0.5 + 3 * x**-0.4, offset=True)
  assert fit.params == pytest.approx({"k": 3, "p": -0.4, "c": 0.5}, rel=1e-5)
  exact = theory.power_law_fit(x, 3 * x**-0.4)
  assert exact.params == pytest.approx({"k": 3, "p": -0.4})
  low, high = exact.bootstrap(20)["p"]
  assert low == pytest.approx(high)


# Smallest steps to the target loss at batch 64, 128, ..., 16384, printed by
# plots/chinchilla.ipynb of github.com/hlzhang109/critical-batch-size (MIT).
STEPS = {
  85: [46000, 23000, 13282, 7000, 3840, 2500, 1800, 1600, 1600],
  151: [96000, 49000, 24000, 11951, 7128, 4200, 2760, 2400, 2300],
  302: [196000, 90000, 46000, 23400, 13300, 7224, 4980, 3400, 2879],
  604: [311000, 166000, 81000, 37440, 21320, 11400, 7199, 4700, 3800],
  1200: [643000, 331000, 176000, 94000, 46500, 25000, 15360, 8900, 6500],
}
PUBLISHED = {85: 745.3, 151: 955.2, 302: 1393.7, 604: 1888.5, 1200: 2533.4}


@pytest.mark.parametrize("size", STEPS)
def test_steps_fit_reproduces_the_published_batches(size):
  fit = theory.steps_fit(2.0 ** np.arange(6, 15), STEPS[size])
  # The two smallest published values are not those of the printed counts.
  tolerance = 0.015 if size < 200 else 1e-3
  assert fit.critical == pytest.approx(PUBLISHED[size], rel=tolerance)


def test_steps_fit_recovers_planted_parameters():
  batches = 2.0 ** np.arange(6, 15)
  fit = theory.steps_fit(batches, 1000 + 3e6 / batches)
  assert fit.steps_min == pytest.approx(1000, rel=1e-6)
  assert fit.critical == pytest.approx(1.2 * 256 + 0.2 * 3000, rel=1e-6)


def test_parabola_is_right_when_centred_and_biased_when_not():
  true = 1e8
  loss = lambda n: (n / true) ** -0.34 / 0.34 + (n / true) ** 0.28 / 0.28  # noqa: E731
  centred = theory.isoflop_optimum(true * np.logspace(-0.5, 0.5, 9), loss(true * np.logspace(-0.5, 0.5, 9)))  # fmt: skip  # noqa: E501
  grid = true * np.logspace(-1.2, 0.2, 9)
  off = theory.isoflop_optimum(grid, loss(grid))
  assert abs(np.log(centred / true)) < 0.05 < abs(np.log(off / true))


def test_bad_columns_are_named():
  with pytest.raises(ValueError, match="L must be finite and positive"):
    theory.chinchilla([1.0, 2], [1.0, 2], [1.0, -1])
  with pytest.raises(ValueError, match="one length"):
    theory.kaplan([1.0, 2], [1.0], [1.0, 2])
