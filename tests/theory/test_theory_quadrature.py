"""Gauss rules against NumPy's own and against exact integer sums."""

import fractions

import numpy as np
import pytest

from theory import quadrature


def test_jacobi_matrix_of_legendre_gives_numpys_rule():
  j = np.arange(1.0, 7)
  found = quadrature.gauss_from_jacobi(
    np.zeros(7), j / np.sqrt(4 * j**2 - 1), 2.0
  )
  for one, other in zip(found, np.polynomial.legendre.leggauss(7), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-14)


def test_jacobi_matrix_of_hermite_gives_numpys_rule():
  found = quadrature.gauss_from_jacobi(
    np.zeros(6), np.sqrt(np.arange(1.0, 6)), np.sqrt(2 * np.pi)
  )
  for one, other in zip(
    found, np.polynomial.hermite_e.hermegauss(6), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-13)


@pytest.mark.parametrize("points", [2, 3, 5])
@pytest.mark.parametrize(("low", "high"), [(1, 9), (100, 200), (7, 1031)])
def test_rule_of_integers_is_exact_below_degree_2p(points, low, high):
  nodes, weights = quadrature.gauss_of_integers(low, high, points)
  assert nodes.size == points
  assert np.all(weights > 0)
  assert low - 1e-9 <= nodes.min() < nodes.max() <= high - 1 + 1e-9
  middle, half = fractions.Fraction(low + high - 1, 2), (high - low) // 2

  def exact(degree):  # Of ((i - middle) / half)^degree, in whole numbers.
    total = sum((i - middle) ** degree for i in range(low, high))
    return float(total / fractions.Fraction(half) ** degree)

  def ruled(degree):
    return weights @ ((nodes - float(middle)) / half) ** degree

  for degree in range(2 * points):
    assert ruled(degree) == pytest.approx(exact(degree), rel=1e-11, abs=1e-9)
  # One degree more is beyond a Gauss rule: the rule has not more nodes.
  assert abs(ruled(2 * points) / exact(2 * points) - 1) > 1e-7


def test_few_integers_are_their_own_rule():
  nodes, weights = quadrature.gauss_of_integers(3, 7, 4)
  np.testing.assert_array_equal(nodes, [3, 4, 5, 6])
  np.testing.assert_array_equal(weights, 1)


def test_rule_of_points_matches_their_moments():
  rng = np.random.default_rng(0)
  x, weight = rng.uniform(0.5, 1, 300), rng.uniform(0, 1, 300)
  nodes, weights = quadrature.gauss_of_points(x, weight, 5)
  assert nodes.size == 5
  assert np.all(weights > 0)
  for degree in range(10):
    assert weights @ nodes**degree == pytest.approx(
      weight @ x**degree, rel=1e-11
    )
  assert weights @ nodes**10 != pytest.approx(weight @ x**10, rel=1e-12)


def test_rule_of_points_ignores_weightless_and_repeated_ones():
  x = np.array([1.0, 2.0, 2.0, 3.0, 50.0, 1.0])
  weight = np.array([1.0, 1, 2, 1, 0, 4])
  nodes, weights = quadrature.gauss_of_points(x, weight, 4)
  np.testing.assert_allclose(np.sort(nodes), [1, 2, 3], atol=1e-12)
  np.testing.assert_allclose(weights[np.argsort(nodes)], [5, 3, 1])
  same = quadrature.gauss_of_points(x[:2], weight[:2], 4)
  np.testing.assert_array_equal(same, (x[:2], weight[:2]))
  one, mass = quadrature.gauss_of_points(np.full(9, 2.0), np.ones(9), 4)
  np.testing.assert_allclose(one, [2.0])
  np.testing.assert_allclose(mass, [9.0])
