"""Fits refuse rows that do not determine them, and only those."""

import warnings

import numpy as np
import pytest

import theory
from theory import identifiability

SIZES = np.logspace(7, 9, 6)
GRID = tuple(x.ravel() for x in np.meshgrid(SIZES, np.logspace(9, 11, 6)))
LAWS = {"chinchilla": theory.chinchilla, "kaplan": theory.kaplan}


def _law(N, D):
  return 1.69 + 406.4 * N**-0.34 + 410.7 * D**-0.28


def _noise(size, scale, seed=0):
  return np.exp(scale * np.random.default_rng(seed).standard_normal(size))


def _twelve(N, D):
  return N, D, _law(N, D)


LINE = np.logspace(7, 9.5, 12)
REFUSED = {  # rows, what the message names
  "four rows": (
    tuple(x[:4] for x in _twelve(*GRID)),
    "data have 4 rows. Add at least 1 more row",
  ),
  "one N": (
    _twelve(np.full(6, 3e7), SIZES * 100),
    "N takes 1 distinct value, .* needs 3",
  ),
  "one D": (
    _twelve(SIZES, np.full(6, 3e9)),
    "D takes 1 distinct value, .* the D term, its exponent and E are free",
  ),
  "two N": (
    _twelve(np.repeat([1e7, 1e9], 6), np.tile(SIZES * 100, 2)),
    "N takes 2 distinct values, .* Add at least 1 more value of N",
  ),
  "N known to rounding": (
    _twelve(3e7 * (1 + 1e-12 * np.arange(6)), SIZES * 100),
    "N takes 1 distinct value",
  ),
  "a line": (_twelve(LINE, 20 * LINE), "exponents of N and D are free"),
  "another line": (_twelve(LINE, 1e5 * LINE**0.5), "lie on one line"),
  "a rounded line": (
    _twelve(LINE, np.round(20 * LINE, -6)),
    "change places. Add rows off the line",
  ),
  "a noisy line": (
    (LINE, 20 * LINE * _noise(12, 0.03),
     _law(LINE, 20 * LINE) * _noise(12, 0.003, 1)),
    "free",
  ),
  "no dependence on N": (
    (*GRID, 2 + 410.7 * GRID[1] ** -0.28),
    "alpha.* of its parameters .* is free",
  ),
  "noise alone": ((*GRID, 2 * _noise(36, 0.01)), "is free, .*standard error"),
  "one loss": ((*GRID, 2 + 0 * GRID[0]), "L takes 1 distinct value"),
}  # fmt: skip


@pytest.mark.parametrize("rows", REFUSED)
@pytest.mark.parametrize("name", LAWS)
def test_laws_of_size_and_data_name_what_is_free(name, rows):
  columns, message = REFUSED[rows]
  with pytest.raises(theory.UndeterminedError, match=message):
    LAWS[name](*columns)
  assert issubclass(theory.UndeterminedError, ValueError)


@pytest.mark.parametrize("scale", [0.0, 0.003, 0.01, 0.03])
@pytest.mark.parametrize("name", LAWS)
def test_noisy_grids_are_not_refused(name, scale):
  fit = LAWS[name](*GRID, _law(*GRID) * _noise(36, scale, 3))
  assert fit.r2 > 0.9
  assert 0.1 < fit.params["alpha"] < 0.8


def test_outliers_do_not_make_a_grid_uninformative():
  losses = _law(*GRID) * _noise(36, 0.002)
  losses[[3, 20]] *= 2.0  # Runs that diverged.
  fit = theory.chinchilla(*GRID, losses)
  assert fit.params["beta"] == pytest.approx(0.28, abs=0.05)


def test_laws_without_a_floor_are_determined():
  N, D = GRID
  fit = theory.chinchilla(N, D, 406.4 * N**-0.34 + 410.7 * D**-0.28)
  assert fit.params["E"] < 1e-5
  assert fit.params["alpha"] == pytest.approx(0.34, rel=1e-4)


def test_as_many_rows_as_parameters_are_solved():
  """N at three values and D at three: five equations, five unknowns."""
  N = np.array([1e7, 1e8, 1e9, 1e7, 1e7])
  D = np.array([1e9, 1e9, 1e9, 1e10, 1e11])
  fit = theory.chinchilla(N, D, _law(N, D))
  assert fit.params["alpha"] == pytest.approx(0.34, rel=1e-3)
  assert fit.predict(1e10, 1e12) == pytest.approx(_law(1e10, 1e12), rel=1e-3)


def test_standard_error_of_a_direction_is_that_of_regression():
  """A linear model: the covariance is sigma^2 (J' J)^-1."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal(40)
  J = np.stack([x, x + 1e-3 * rng.standard_normal(40)], axis=1)
  residual = 0.01 * rng.standard_normal(40)
  sigma = identifiability.noise(residual, 2)
  assert sigma == pytest.approx(0.01, rel=0.3)
  worst = np.sqrt(np.linalg.eigvalsh(sigma**2 * np.linalg.inv(J.T @ J))[-1])
  assert worst > 1
  columns = {"left": J[:, 0], "right": J[:, 1]}
  with pytest.raises(theory.UndeterminedError) as error:
    identifiability.require_determined("law", columns, residual, "More rows.")
  assert f"standard error of {worst:.2g} " in str(error.value)
  assert "0.71 right -0.71 left of its parameters" in str(error.value)
  identifiability.require_determined(
    "law", columns, residual, "", limit=1.01 * worst
  )


def test_noise_takes_the_smaller_of_two_estimates():
  residual = np.r_[np.full(20, 0.01), np.full(20, -0.01)]
  rms = 0.01 * np.sqrt(40 / 37)
  assert identifiability.noise(residual, 3) == pytest.approx(rms)
  outlier = np.r_[np.zeros(39), 1.0]
  assert identifiability.noise(outlier, 3) == identifiability.PRECISION
  few = identifiability.noise(np.ones(3), 3)  # Nothing left to judge by.
  assert few == identifiability.PRECISION


X = np.logspace(0, 3, 12)
POWERS = {
  "one row": (lambda: theory.power_law_fit([2.0], [3.0]), "1 row"),
  "one x": (
    lambda: theory.power_law_fit([2.0, 2, 2], [3.0, 4, 5]),
    "x takes 1 distinct value",
  ),
  "two x and an offset": (
    lambda: theory.cbs_law([1.0, 2, 1, 2], [1.0, 2, 1, 2], offset=True),
    "x takes 2 distinct values",
  ),
  "flat with an offset": (
    lambda: theory.power_law_fit(X, 0 * X + 3, offset=True),
    "is free",
  ),
  "noise with an offset": (
    lambda: theory.power_law_fit(X, 3 * _noise(12, 0.02), offset=True),
    "is free",
  ),
  "three losses": (
    lambda: theory.shifted_power(X[:3] + 1, X[:3] + 1),
    "data have 3 rows. Add at least 1 more row",
  ),
  "one loss": (
    lambda: theory.shifted_power(0 * X + 2, X + 1),
    "L0 takes 1 distinct value",
  ),
  "a straight line": (
    lambda: theory.shifted_power(X[:6] + 1, 0.3 + 0.8 * X[:6]),
    r"0\.\d+ E. \+0\.\d+ E. of its parameters",
  ),
  "a noisy line": (
    lambda: theory.shifted_power(
      np.linspace(2.5, 4, 30),
      (0.3 + 0.8 * np.linspace(2.5, 4, 30)) * _noise(30, 0.003),
    ),
    "Give E0 and E1",
  ),
  "one loss and known offsets": (
    lambda: theory.shifted_power([2.0, 2], [2.0, 3], E0=1.0, E1=1.0),
    "needs 2",
  ),
  "profile of three": (
    lambda: theory.kappa_profile(X[:3] + 1, X[:3] + 1, [1.0]),
    "data have 3 rows",
  ),
  "profile of one loss": (
    lambda: theory.kappa_profile(0 * X + 2, X + 1, [1.0]),
    "every exponent fits",
  ),
  "linear scaling": (
    lambda: theory.steps_fit(2.0 ** np.arange(9), 3e6 / 2.0 ** np.arange(9)),
    "1.00 steps_min of its parameters",
  ),
  "noisy linear scaling": (
    lambda: theory.steps_fit(
      2.0 ** np.arange(9), 3e6 / 2.0 ** np.arange(9) * _noise(9, 0.03)
    ),
    "steps_min",
  ),
  "no gain from batches": (
    lambda: theory.steps_fit(2.0 ** np.arange(9), np.full(9, 50.0)),
    "1.00 samples_min of its parameters",
  ),
  "one batch": (
    lambda: theory.steps_fit([8.0, 8.0], [4.0, 5.0]),
    "batches takes 1 distinct value",
  ),
}


@pytest.mark.parametrize("name", POWERS)
def test_power_laws_and_steps_name_what_is_free(name):
  call, message = POWERS[name]
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with pytest.raises(theory.UndeterminedError, match=message):
      call()


def test_flat_power_law_is_a_law_and_explains_nothing():
  fit = theory.power_law_fit(X, 0 * X + 3)
  assert fit.params["p"] == pytest.approx(0, abs=1e-12)
  assert fit.r2 == 0.0  # Not 0 / 0.


ISO = np.logspace(7, 9, 5)


@pytest.mark.parametrize(
  ("N", "L", "message"),
  [
    (ISO, [3, 2.9, 2.8, 2.7, 2.6], "no minimum inside .* Add larger"),
    (ISO, [3, 2.9, 2.801, 2.703, 2.606], "vertex outside .* Add larger"),
    (ISO, [2.606, 2.703, 2.801, 2.9, 3], "vertex outside .* Add smaller"),
    (ISO, [2.0, 2.5, 2.6, 2.5, 2.1], "do not curve upwards"),
    (ISO[:2], [2.0, 2.1], "data have 2 rows"),
    (ISO[[0, 0, 1, 1]], [2.0, 2.1, 2.0, 2.1], "N takes 2 distinct values"),
    (ISO, [2.0, 2.0, 2.0, 2.0, 2.0], "no minimum|flat within"),
    (ISO, [2.001, 2.01, 1.99, 2.01, 2.001], "flat within their noise"),
  ],
)
def test_parabolas_without_a_minimum_are_refused(N, L, message):
  with pytest.raises(theory.UndeterminedError, match=message):
    theory.isoflop_optimum(N, L)


def test_noisy_parabola_is_not_refused():
  x = np.log(ISO / 2e8)
  L = (3 + 0.1 * x**2) * _noise(5, 0.01)
  assert theory.isoflop_optimum(ISO, L) == pytest.approx(2e8, rel=0.3)


def test_predictions_outside_a_law_are_named():
  x = np.linspace(2.5, 4, 30)
  fit = theory.shifted_power(x, 1.2 + 0.8 * (x - 1.9) ** 1.1)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for below in (1.0, [3.0, 1.5], np.array(1.89)):
      with pytest.raises(ValueError, match="below the fitted E0=1.9"):
        fit.predict(below)
    with pytest.raises(ValueError, match="L0 must be finite and positive"):
      fit.predict(-1.0)
    power = theory.power_law_fit(X, 3 * X**-0.4)
    with pytest.raises(ValueError, match="x must be finite and positive"):
      power.predict([1.0, -2.0])
    law = theory.chinchilla(*GRID, _law(*GRID))
    with pytest.raises(ValueError, match="N must be finite and positive"):
      law.predict(-1e8, 1e9)
    with pytest.raises(ValueError, match="D must be finite"):
      law.predict(1e8, [1e9, np.nan])
  # Lists and arrays, broadcast.
  assert law.predict([1e7, 1e8], 1e10) == pytest.approx(
    [_law(1e7, 1e10), _law(1e8, 1e10)]
  )
  assert fit.predict([3.0]) == pytest.approx([1.2 + 0.8 * 1.1**1.1])


def test_bootstrap_redraws_resamples_that_say_nothing():
  """Of two rows half the resamples are one row twice."""
  fit = theory.power_law_fit([1.0, 10.0], [1.0, 5.0])
  low, high = fit.bootstrap(50)["p"]
  assert low == pytest.approx(high) == pytest.approx(np.log10(5))
  with pytest.raises(theory.UndeterminedError, match="x takes 1 distinct"):
    fit.refit(np.array([0, 0]))


@pytest.mark.parametrize(
  ("ts", "risks", "message"),
  [
    ([1.0, 1.0], [1.0, 2.0], "increase"),
    ([2.0, 1.0], [1.0, 2.0], "increase"),
    ([0.0, 1.0], [1.0, 2.0], "drop t = 0"),
    ([1.0, 2.0], [1.0], "one length"),
    ([1.0, 2.0], [1.0, np.nan], "positive risks"),
  ],
)
def test_slopes_of_nothing_are_refused(ts, risks, message):
  with pytest.raises(ValueError, match=message):
    theory.slope(ts, risks)
