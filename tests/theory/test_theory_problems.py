"""Problems against dense covariances, direct sums and sampled features."""

import numpy as np
import pytest
from oracles import linear_regression as oracle
from scipy import optimize

import theory


def _covariance(rng, d):
  basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
  return (basis * rng.uniform(0.1, 1.0, d)) @ basis.T


def _preconditioned_curve(C, H, P, etas, batch, sigma2):
  """Risks of d' = d - eta P g on Gaussian data, dense; any P >= 0."""
  risks = [np.trace(H @ C) / 2]
  for eta in etas:
    move = np.eye(len(H)) - eta * P @ H
    noise = oracle.fourth_moment(C, H) - H @ C @ H + sigma2 * H
    C = move @ C @ move.T + eta**2 / batch * P @ noise @ P
    risks.append(np.trace(H @ C) / 2)
  return np.array(risks)


def test_sketched_model_is_sgd_in_the_span_of_the_sketch():
  """theta on S x is w = S' theta on x, moved by S' S times the gradient."""
  rng = np.random.default_rng(0)
  H, S = _covariance(rng, 9), rng.standard_normal((4, 9)) / 3
  wstar = rng.standard_normal(9)
  problem = theory.sketched(H, S, wstar, 0.3)
  etas = 0.2 / np.sqrt(1 + np.arange(60))
  dense = _preconditioned_curve(
    np.outer(wstar, wstar), H, S.T @ S, etas, 3, 0.3
  )
  curve = theory.risk_scan(problem, theory.schedule(etas, 3)).total
  unexplained = (problem.sigma2 - 0.3) / 2
  assert unexplained > 0.05 * dense[0]  # The target is not in the span.
  np.testing.assert_allclose(curve + unexplained, dense, rtol=1e-11)


def test_sketched_noise_is_what_least_squares_leaves():
  rng = np.random.default_rng(1)
  H, S = _covariance(rng, 7), rng.standard_normal((3, 7))
  wstar = rng.standard_normal(7)
  root = np.linalg.cholesky(H).T  # |root v|^2 = v' H v.
  theta, rest, *_ = np.linalg.lstsq(root @ S.T, root @ wstar, rcond=None)
  problem = theory.sketched(H, S, wstar, 0.5)
  assert problem.sigma2 == pytest.approx(0.5 + rest[0], rel=1e-10)
  explained = np.sum((root @ S.T @ theta) ** 2)
  assert problem.lam @ problem.m0 == pytest.approx(explained, rel=1e-10)
  values = np.linalg.eigvalsh(S @ H @ S.T)[::-1]
  np.testing.assert_allclose(problem.lam, values, rtol=1e-10)


def test_sketched_takes_a_diagonal_and_a_square_sketch_loses_nothing():
  rng = np.random.default_rng(2)
  lam, wstar = rng.uniform(0.1, 1, 5), rng.standard_normal(5)
  S = rng.standard_normal((5, 5))
  one = theory.sketched(lam, S, wstar, 0.2)
  two = theory.sketched(np.diag(lam), S, wstar, 0.2)
  for a, b in zip(one, two, strict=True):
    np.testing.assert_array_equal(a, b)
  assert one.sigma2 == pytest.approx(0.2, abs=1e-9)
  assert one.lam @ one.m0 == pytest.approx(lam @ wstar**2, rel=1e-9)


def _left_by_a_sketch(rng, lam, features):
  """tr of what a Gaussian sketch leaves of H: its mean over w* ~ N(0, I)."""
  S = rng.standard_normal((features, lam.size))
  cross = S * lam
  gain = np.linalg.solve(cross @ S.T, cross)
  return lam.sum() - np.sum(cross * gain)


@pytest.mark.parametrize("decay", [0.3, 1.0])
def test_sketch_error_is_the_mean_over_sampled_sketches(decay):
  rng = np.random.default_rng(3)
  lam = np.arange(1.0, 121) ** -(1 + decay)
  draws = np.array([_left_by_a_sketch(rng, lam, 40) for _ in range(60)])
  stderr = draws.std() / np.sqrt(draws.size)
  found = theory.sketch_error(lam, 40)
  # The equivalent is for n to infinity; at n = 40 it is right to 3 %.
  assert abs(found - draws.mean()) < 4.5 * stderr + 0.03 * found


def test_sketch_error_solves_its_equation():
  lam = np.arange(1.0, 51) ** -1.4
  root = optimize.brentq(
    lambda k: np.sum(lam / (lam + k)) - 12.0, 1e-9, 1e3, xtol=1e-15
  )
  assert theory.sketch_error(lam, 12) == pytest.approx(12 * root, rel=1e-9)
  few = theory.sketch_error(lam, 12, samples=30)
  assert few == pytest.approx(12 * root / (1 - 12 / 30), rel=1e-9)


def test_sketch_error_of_few_samples_is_that_of_a_fit():
  """Ridgeless least squares on D rows of n features, out of sample."""
  rng = np.random.default_rng(4)
  lam, n, rows = np.arange(1.0, 61) ** -1.2, 12, 90
  errors = []
  for _ in range(300):
    S, wstar = rng.standard_normal((n, 60)), rng.standard_normal(60)
    x = rng.standard_normal((rows, 60)) * np.sqrt(lam)
    theta, *_ = np.linalg.lstsq(x @ S.T, x @ wstar, rcond=None)
    errors.append(np.sum(lam * (S.T @ theta - wstar) ** 2))
  stderr = np.std(errors) / np.sqrt(len(errors))
  found = theory.sketch_error(lam, n, samples=rows)
  assert abs(found - np.mean(errors)) < 4.5 * stderr + 0.03 * found
  assert found > 1.1 * theory.sketch_error(lam, n)


SMOOTH = {
  "trace": lambda lam: lam,
  "square": lambda lam: lam**2,
  "ridge": lambda lam: lam / (lam + 1e-3),
  "descent": lambda lam: lam * np.exp(-200 * lam),
  "one": lambda lam: 1 + 0 * lam,
}


@pytest.mark.parametrize("name", SMOOTH)
def test_compressed_power_law_sums_like_all_its_directions(name):
  f, d = SMOOTH[name], 20_000
  i = np.arange(1.0, d + 1)
  lam, m0 = i**-1.4, i ** (1.4 - 2.3)
  for nodes, tolerance in ((4, 1e-5), (8, 1e-11)):
    small = theory.power_law(d, 1.4, 2.3, nodes=nodes)
    assert small.lam.size < 140
    assert small.mult @ f(small.lam) == pytest.approx(
      np.sum(f(lam)), rel=tolerance
    )
    assert small.m0 @ f(small.lam) == pytest.approx(m0 @ f(lam), rel=tolerance)


@pytest.mark.parametrize("d", [1, 5, 63, 64, 65, 100, 129])
def test_power_law_has_d_directions(d):
  i = np.arange(1.0, d + 1)
  full = theory.power_law(d, 1.5, 2.5, 0.7, nodes=None)
  np.testing.assert_allclose(full.lam, i**-1.5)
  np.testing.assert_allclose(full.lam * full.m0, i**-2.5)
  assert full.sigma2 == 0.7
  small = theory.power_law(d, 1.5, 2.5, 0.7)
  assert small.mult.sum() == pytest.approx(d, rel=1e-12)
  np.testing.assert_allclose(small.lam[: min(d, 63)], full.lam[:63])
  np.testing.assert_array_equal(small.mult[: min(d, 63)], 1)


def test_power_law_head_is_kept_entry_by_entry():
  wide = theory.power_law(1000, 1.5, 2.0, head=16, nodes=3)
  np.testing.assert_allclose(wide.lam[:15], np.arange(1.0, 16) ** -1.5)
  # 15 kept, octaves from 16, 32, ..., 512: six rules of three nodes.
  assert wide.lam.size == 15 + 6 * 3


def test_compress_keeps_the_measures_of_noise_and_signal():
  rng = np.random.default_rng(5)
  lam = rng.uniform(1e-3, 1, 900)
  full = theory.from_spectrum(lam, rng.standard_normal(900) ** 2, 0.3)
  small = theory.compress(full)
  assert small.lam.size < 200
  for f in SMOOTH.values():
    for weight in ("mult", "m0"):
      assert getattr(small, weight) @ f(small.lam) == pytest.approx(
        getattr(full, weight) @ f(full.lam), rel=1e-10
      )
  assert np.all((small.mult == 0) | (small.m0 == 0) | (small.mult == 1))


def test_compress_keeps_small_octaves_and_drops_flat_directions():
  problem = theory.from_spectrum([1.0, 0.3, 0.01, 0.0], [1, 2, 3, 4], 0.1)
  small = theory.compress(problem)
  np.testing.assert_allclose(small.lam, [1.0, 0.3, 0.01])
  np.testing.assert_allclose(small.m0, [1, 2, 3])
  with pytest.raises(ValueError, match="scalar kappa"):
    theory.compress(problem._replace(kappa=np.full(4, 2.0)))


def test_equal_eigenvalues_are_merged_and_sorted():
  lam, m0, mult = [0.2, 1.0, 0.2, 0.5], [1.0, 2, 3, 4], [1.0, 2, 5, 1]
  problem = theory.from_spectrum(lam, m0, 0.3, mult=mult)
  totals = {}
  for x, m, k in zip(lam, m0, mult, strict=True):
    old = totals.get(x, (0, 0))
    totals[x] = (old[0] + m, old[1] + k)
  keys = sorted(totals, reverse=True)
  np.testing.assert_array_equal(problem.lam, keys)
  np.testing.assert_array_equal(problem.m0, [totals[k][0] for k in keys])
  np.testing.assert_array_equal(problem.mult, [totals[k][1] for k in keys])
  kept = theory.from_spectrum(lam, m0, 0.3, kappa=np.ones(4))
  np.testing.assert_array_equal(kept.lam, lam)  # A vector kappa: as given.


def test_isotropic_is_one_node():
  problem = theory.isotropic(12, 3.0, 0.4, lam=0.5)
  full = theory.from_covariance(
    0.5 * np.eye(12), np.full(12, 0.5), np.zeros(12), 0.4
  )
  for one, other in zip(problem, full, strict=True):
    np.testing.assert_allclose(one, other)


def test_preconditioned_sgd_is_the_dense_one():
  rng = np.random.default_rng(6)
  lam, m0 = np.array([1.0, 0.6, 0.2, 0.05]), rng.uniform(1, 2, 4)
  p = np.array([0.5, 1.0, 3.0, 8.0])
  problem = theory.precondition(theory.from_spectrum(lam, m0, 0.4), p)
  etas = np.linspace(0.2, 0.05, 24)
  dense = _preconditioned_curve(
    np.diag(m0), np.diag(lam), np.diag(p), etas, 2, 0.4
  )
  curve = theory.risk_scan(problem, theory.schedule(etas, 2)).total
  np.testing.assert_allclose(curve, dense, rtol=1e-12)
  for bad in (0.0, -1.0, np.inf, np.nan):
    with pytest.raises(ValueError, match="finite p > 0"):
      theory.precondition(problem, [1, 1, 1, bad])


def _three_points(rng, shape, k4):
  """Zero or +-sqrt(k4), of variance 1 and fourth moment k4 >= 1."""
  return np.sqrt(k4) * rng.choice(
    [-1.0, 0.0, 1.0], shape, p=[0.5 / k4, 1 - 1 / k4, 0.5 / k4]
  )


DRAWS = {
  "gaussian": ({}, lambda rng, s: rng.standard_normal(s)),
  "rademacher": (
    {"law": "rademacher"},
    lambda rng, s: rng.choice([-1.0, 1.0], s),
  ),
  "uniform": (
    {"law": "uniform"},
    lambda rng, s: rng.uniform(-(3**0.5), 3**0.5, s),
  ),
  "laplace": (
    {"law": "laplace"},
    lambda rng, s: rng.laplace(size=s) / 2**0.5,
  ),
  "k4": ({"k4": 2.2}, lambda rng, s: _three_points(rng, s, 2.2)),
  "elliptic": (
    {"elliptic": 1.4},
    # rho^2 is 0 or 1.4, so E rho^2 = 1 and E rho^4 = 1.4.
    lambda rng, s: (
      rng.standard_normal(s)
      * np.sqrt(1.4 * (rng.uniform(size=(s[0], 1)) < 1 / 1.4))
    ),
  ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_fourth_moments_of_features_are_sampled(name):
  """E[x x' M x x']_ii = kappa lam_i^2 M_ii + tau lam_i tr(H M)."""
  options, draw = DRAWS[name]
  rng = np.random.default_rng(7)
  lam = np.array([1.0, 0.5, 0.1])
  root = rng.standard_normal((3, 3))
  M = root @ root.T
  problem = theory.with_features(
    theory.from_spectrum(lam, np.ones(3), 0.1), **options
  )
  x = draw(rng, (400_000, 3)) * np.sqrt(lam)
  square = np.einsum("ri,ij,rj->r", x, M, x)[:, None] * x**2
  stderr = square.std(axis=0) / np.sqrt(len(x))
  wanted = problem.kappa * lam**2 * np.diag(M)
  wanted = wanted + problem.tau * lam * np.trace(M * lam)
  np.testing.assert_array_less(abs(square.mean(0) - wanted), 4.5 * stderr)
  np.testing.assert_allclose((x**2).mean(0), lam, rtol=0.02)


def test_one_hot_features_have_their_own_moment():
  lam = np.array([0.5, 0.3, 0.2])
  problem = theory.with_features(
    theory.from_spectrum(lam, np.ones(3), 0.1), "one-hot"
  )
  M = np.diag([1.0, 2.0, 3.0])
  exact = sum(
    p * np.outer(e, e) @ M @ np.outer(e, e)
    for p, e in zip(lam, np.eye(3), strict=True)
  )
  wanted = problem.kappa * lam**2 * np.diag(M)
  np.testing.assert_allclose(wanted, np.diag(exact))
  assert problem.tau == 0


def test_the_alpha_condition_bounds_gaussian_risks():
  base = theory.power_law(10, 1.3, 2.0, 0.5, nodes=None)
  bound = theory.with_features(base, alpha4=3.0)
  assert (bound.kappa, bound.tau) == (0.0, 3.0)
  etas = np.full(30, 0.1)
  exact, H = [], np.diag(base.lam)
  C = np.diag(base.m0)
  for eta in etas:
    exact.append(oracle.risk(C, H))
    C = oracle.sgd_step(C, H, eta, 1, 0.5)
  upper = theory.risk_scan(bound, theory.schedule(etas, 1)).total[:-1]
  assert np.all(upper >= np.array(exact) * (1 - 1e-12))
  assert upper[-1] > 1.02 * exact[-1]


BASE = theory.from_spectrum([1.0, 0.5], [1, 1], 0.1)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: theory.sketched(np.eye(3), np.ones((2, 4)), np.ones(4), 1),
     "shapes do not match"),
    (lambda: theory.sketch_error(np.ones(5), 5), "features=5"),
    (lambda: theory.sketch_error(np.ones(5), 3, samples=3), "samples=3"),
    (lambda: theory.with_features(BASE, elliptic=0.9), "elliptic=0.9"),
    (lambda: theory.with_features(BASE, k4=0.5), "k4=0.5"),
    (lambda: theory.with_features(BASE._replace(lam=np.array([1.0, 0])),
                                  "one-hot"), "sum 1"),
    (lambda: theory.from_covariance(np.triu(np.ones((3, 3))), 0, 0, 1),
     "symmetric"),
    (lambda: theory.from_spectrum([], [], 1.0), "non-empty"),
    (lambda: theory.from_spectrum([1.0], [-1.0], 1.0), "problem.m0=-1.0"),
    (lambda: theory.from_spectrum([1.0], [1.0], [1.0]), "must be a scalar"),
    (lambda: theory.from_spectrum([1.0], [1.0], 1.0, kappa=[1.0, 2]),
     "problem.kappa has shape"),
    (lambda: theory.from_spectrum([1.0], [1.0], 1.0, mult=[np.nan]),
     "problem.mult=nan"),
  ],
)  # fmt: skip
def test_bad_problems_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
