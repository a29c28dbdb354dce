"""Bounds against loops over directions, as the statements are written."""

import numpy as np
import pytest
from oracles import linear_regression as oracle

import theory

LAM = np.array([1.0, 0.6, 0.2, 0.05])
M0 = np.array([1.0, 2.0, 3.0, 4.0])
MULT = np.array([1.0, 2.0, 1.0, 3.0])
SIGMA2 = 0.4


def _problem(kappa=2.0, tau=1.0):
  return theory.Problem(LAM, M0, MULT, SIGMA2, kappa, tau)


def _effective_dim(eta, N):
  total, head = 0.0, 0.0
  for lam, mult in zip(LAM, MULT, strict=True):
    if lam >= 1 / (eta * N):
      total, head = total + mult, head + mult
    else:
      total += mult * (N * eta * lam) ** 2
  return total, head


@pytest.mark.parametrize(
  ("eta", "N"), [(0.1, 1000), (0.05, 100), (0.1, 50), (0.01, 7), (0.5, 10)]
)
def test_effective_dimension_counts_heads_and_weighs_tails(eta, N):
  found = theory.effective_dim(_problem(), eta, N)
  np.testing.assert_allclose(found, _effective_dim(eta, N), rtol=1e-13)


def _zou(eta, s, N, alpha):
  """Section by section: EffBias, EffVar of s = 0 and of s > 0."""
  room = 1 - eta * alpha * np.sum(MULT * LAM)
  bias = energy = middle = rest = 0.0
  for lam, m0, mult in zip(LAM, M0, MULT, strict=True):
    faded = (1 - eta * lam) ** (2 * s) * m0
    head, wide = lam >= 1 / (eta * N), lam >= 1 / (eta * (s + N))
    bias += faded / (lam * (eta * N) ** 2) if head else lam * faded
    energy += m0 if wide else (s + N) * eta * lam * m0
    middle += mult * lam if wide and not head else 0.0
    rest += 0.0 if wide else mult * lam**2
  dim, k_star = _effective_dim(eta, N)
  if s == 0:
    additive = SIGMA2 * dim / N / room
    multiplicative = 2 * alpha * energy / (N * eta) * dim / N / room
  else:
    tail_dim = k_star / N + eta * middle + eta**2 * (s + N) * rest
    additive = SIGMA2 * tail_dim / room
    multiplicative = 4 * alpha * energy / (N * eta) * dim / N / room
  return 2 * bias, 2 * additive, 2 * multiplicative


@pytest.mark.parametrize("alpha", [3.0, 1.5])
@pytest.mark.parametrize(("s", "N"), [(0, 20), (0, 400), (30, 40), (500, 90)])
def test_published_bound_is_the_loop_over_directions(s, N, alpha):
  eta = 0.08
  found = theory.zou_bound(_problem(), eta, s, N, alpha)
  wanted = _zou(eta, s, N, alpha)
  np.testing.assert_allclose(
    (found.bias, found.additive, found.multiplicative), wanted, rtol=1e-12
  )
  assert found.total == pytest.approx(sum(wanted), rel=1e-12)


def test_published_bound_needs_a_small_step():
  limit = 1 / (3 * np.sum(MULT * LAM))
  assert np.isfinite(theory.zou_bound(_problem(), 0.999 * limit, 0, 50).total)
  beyond = theory.zou_bound(_problem(), 1.001 * limit, 0, 50)
  assert np.isinf(beyond).all()


def _chi(eta, batch, kappa, tau):
  c = 1 + (kappa - 1) / batch
  return eta * tau / batch * np.sum(MULT * LAM / (2 - c * eta * LAM))


def _chi_bound(eta, batch, s, N, kappa, tau):
  c, w, T = 1 + (kappa - 1) / batch, eta**2 / batch, s + N
  loop = 1 - _chi(eta, batch, kappa, tau)
  S0 = 0.0
  for lam, m0 in zip(LAM, M0, strict=True):
    decay = eta * lam * (2 - c * eta * lam)
    S0 += lam * m0 * sum((1 - decay) ** t for t in range(T)) / loop
  bias = additive = multiplicative = 0.0
  for lam, m0, mult in zip(LAM, M0, MULT, strict=True):
    x = eta * lam
    decay = x * (2 - c * x)
    # The mean of N iterates from s of gradient descent, one by one.
    mean = np.mean([(1 - x) ** t for t in range(s, s + N)])
    bias += lam * m0 * mean**2 / 2
    G = min(2 / x, 2 * N)
    additive += mult * lam**2 * min(1 / decay, T) * G
    # What the direction's own fourth moment feeds from its own mean.
    own = max(kappa - 1, 0) * sum(
      lam * m0 * (1 - x) ** (2 * t) for t in range(T)
    )
    source = mult * tau * S0 + own
    multiplicative += lam**2 * source * min(1 / decay, N) * G
  additive *= w * SIGMA2 / (2 * N * loop)
  multiplicative *= w / (2 * N**2)
  return bias, additive, multiplicative


@pytest.mark.parametrize("batch", [1.0, 4.0])
@pytest.mark.parametrize(
  ("kappa", "tau"), [(2.0, 1.0), (5.0, 1.0), (0.8, 1.0), (2.6, 1.3)]
)
@pytest.mark.parametrize(("s", "N"), [(0, 6), (30, 20), (0, 300)])
def test_chi_bound_is_the_loop_over_directions(s, N, kappa, tau, batch):
  eta = 0.15
  found = theory.chi_bound(_problem(kappa, tau), eta, batch, s, N)
  wanted = _chi_bound(eta, batch, s, N, kappa, tau)
  assert np.isfinite(found.total)
  np.testing.assert_allclose(
    (found.bias, found.additive, found.multiplicative), wanted, rtol=1e-11
  )
  assert found.total == pytest.approx(sum(wanted), rel=1e-11)


def test_chi_bound_ends_where_its_proof_does():
  problem = _problem(5.0)  # c_B = 1 + 4 / 8 = 1.5.
  edge = 1 / 1.5
  assert _chi(edge, 8.0, 5.0, 1.0) < 1
  inside = theory.chi_bound(problem, 0.9999 * edge, 8.0, 0, 20)
  assert np.isfinite(inside.total)
  assert np.isinf(theory.chi_bound(problem, 1.0001 * edge, 8.0, 0, 20)).all()
  # Gaussian features at batch 1: the noise loop closes before c_B x = 1.
  etas = np.linspace(0.4, 0.5, 101)
  first = next(e for e in etas if _chi(e, 1.0, 2.0, 1.0) >= 1)
  assert first < 0.5
  assert np.isinf(theory.chi_bound(_problem(), first, 1.0, 0, 20).total)


LAWS = {
  "gaussian": ({}, "gaussian", None),
  "laplace": ({"law": "laplace"}, "independent", 6.0),
  "elliptic": ({"elliptic": 1.4}, "elliptic", 1.4),
}


@pytest.mark.parametrize(("s", "N"), [(0, 3), (0, 40), (25, 15)])
@pytest.mark.parametrize("name", LAWS)
def test_chi_bound_is_above_the_dense_risk(name, s, N):
  options, law, value = LAWS[name]
  problem = theory.with_features(
    theory.from_spectrum(LAM, M0, SIGMA2), **options
  )
  H, C, moments = np.diag(LAM), np.diag(M0), []
  for _ in range(s + N):
    moments.append(C)
    C = oracle.sgd_step(C, H, 0.12, 2, SIGMA2, law, value)
  total = 0.0
  for j in range(s, s + N):  # E d_t d_s' = (I - eta H)^(t - s) C_s.
    for k in range(s, s + N):
      early, lag = min(j, k), abs(j - k)
      pull = np.diag((1 - 0.12 * LAM) ** lag)
      total += np.trace(H @ pull @ moments[early]) / (2 * N**2)
  bound = theory.chi_bound(problem, 0.12, 2.0, s, N).total
  assert total <= bound < 4 * total
