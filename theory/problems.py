"""Least-squares problems: constructors and exact reductions to a `Problem`.

Everything here runs once, in NumPy float64 on the host.
"""

import numpy as np

from . import quadrature
from .checks import check_problem
from .types import Problem


def power_law(d, a, b, sigma2=1.0, *, nodes=8, head=64) -> Problem:
  """lam_i = i^-a with signal lam_i (w*_i)^2 = i^-b, for i = 1, ..., d.

  Indices below `head` are kept. Above, a Gauss rule replaces each octave of
  indices (`quadrature.gauss_of_integers`); signal and noise share the nodes.
  The relative error of every risk is about 1e-6, 1e-9, 1e-12 with 4, 6, 8
  nodes. 151 nodes stand for d = 1e5, and fewer than 400 for d = 1e12.

  Args:
    d: Number of directions, >= 1.
    a: Capacity exponent; > 1 for a finite trace as d grows.
    b: Source exponent; b > a is the easy regime.
    sigma2: Label-noise variance.
    nodes: Gauss nodes per octave; None keeps all d directions.
    head: First index that is compressed.

  Returns:
    A problem started at w_0 = 0, with Gaussian features.
  """
  d = int(d)
  if d < 1:
    raise ValueError(f"d={d} must be at least 1 direction.")
  if nodes is None:
    index, mult = np.arange(1.0, d + 1), np.ones(d)
  else:
    edges = [1, min(head, d + 1)]
    while edges[-1] <= d:
      edges.append(min(2 * edges[-1], d + 1))
    rules = [quadrature.gauss_of_integers(1, edges[1], edges[1])]
    for low, high in zip(edges[1:-1], edges[2:], strict=True):
      rules.append(quadrature.gauss_of_integers(low, high, nodes))
    index, mult = (np.concatenate(part) for part in zip(*rules, strict=True))
  return _checked(Problem(index**-a, mult * index ** (a - b), mult, sigma2))


def from_spectrum(
  lam, delta0_sq, sigma2, *, mult=None, kappa=2.0, tau=1.0
) -> Problem:
  """Any eigenvalues, in any order; equal ones are merged into one node.

  Args:
    lam: [D] eigenvalues >= 0.
    delta0_sq: [D] E[(w_0 - w*)^2] along each eigenvector.
    sigma2: Label-noise variance.
    mult: [D] multiplicities, default 1; `delta0_sq` is then a node's sum.
    kappa: Fourth moment, see `Problem`; a vector is not merged.
    tau: Fourth moment, see `Problem`.

  Returns:
    The problem, eigenvalues descending.
  """
  lam = np.asarray(lam, np.float64)
  mult = np.ones_like(lam) if mult is None else np.asarray(mult, np.float64)
  m0 = np.asarray(delta0_sq, np.float64)
  problem = _checked(Problem(lam, m0, mult, sigma2, kappa, tau))
  if np.ndim(kappa):
    return problem
  values, where = np.unique(-lam, return_inverse=True)

  def total(x):
    return np.bincount(where, weights=x, minlength=values.size)

  return problem._replace(lam=-values, m0=total(m0), mult=total(mult))


def from_covariance(H, w0, wstar, sigma2) -> Problem:
  """Gaussian features with any covariance H.

  Exact: the off-diagonal entries of C_0 in the eigenbasis never change the
  diagonal, so only the squares of the rotated error enter.

  Args:
    H: [D, D] symmetric, positive semi-definite.
    w0: [D] start.
    wstar: [D] target.
    sigma2: Label-noise variance.

  Returns:
    The problem in the eigenbasis of H.
  """
  H = np.asarray(H, np.float64)
  if H.ndim != 2 or H.shape[0] != H.shape[1] or not np.allclose(H, H.T):
    raise ValueError(
      f"H of shape {H.shape} must be square and symmetric; pass (H + H.T)/2."
    )
  lam, basis = np.linalg.eigh(H)
  floor = -1e-12 * max(lam[-1], 0)
  if lam[0] < floor:
    raise ValueError(
      f"H has the eigenvalue {lam[0]:.3g} < 0; a covariance has none."
    )
  delta = basis.T @ (np.asarray(w0, np.float64) - np.asarray(wstar))
  return from_spectrum(np.maximum(lam, 0), delta**2, sigma2)


def isotropic(d, norm2=1.0, sigma2=1.0, *, lam=1.0) -> Problem:
  """H = lam I in d dimensions, |w_0 - w*|^2 = norm2: a single node."""
  return _checked(
    Problem(np.array([lam]), np.array([norm2]), np.array([d]), sigma2)
  )


def sketched(H, S, wstar, sigma2) -> Problem:
  """The model <theta, S x> trained from theta = 0, for Gaussian x.

  Exactly well specified with H~ = S H S^T, theta* = H~^{-1} S H w*, and the
  unexplained signal as noise: sigma2~ = sigma2 + w*' H w* - theta*' H~ theta*.
  Add (sigma2~ - sigma2) / 2 to its excess risk to compare with w*.

  Args:
    H: [V, V] covariance of x (or its [V] diagonal).
    S: [M, V] sketch.
    wstar: [V] target on x.
    sigma2: Label-noise variance.

  Returns:
    The M-dimensional problem.
  """
  H = np.asarray(H, np.float64)
  H = np.diag(H) if H.ndim == 1 else H
  S, wstar = np.asarray(S, np.float64), np.asarray(wstar, np.float64)
  if S.shape[1:] != wstar.shape or H.shape != 2 * wstar.shape:
    raise ValueError(
      f"shapes do not match: H {H.shape}, S {S.shape}, wstar {wstar.shape}; "
      "want [V, V], [M, V], [V]."
    )
  sketch_cov = S @ H @ S.T
  cross = S @ H @ wstar
  theta = np.linalg.solve(sketch_cov, cross)
  unexplained = max(wstar @ H @ wstar - theta @ cross, 0.0)
  return from_covariance(
    sketch_cov, np.zeros_like(theta), theta, sigma2 + unexplained
  )


def sketch_error(lam, features, samples=np.inf):
  """Mean of w*' (unexplained) w* for a random sketch, w* ~ N(0, I).

  The error is n k, with k the root of n = sum_i lam_i / (lam_i + k). This is
  the deterministic equivalent: APPROXIMATE at finite n, right to about 3 % at
  n = 40. The ridgeless fit on D samples divides it by 1 - n / D.

  Args:
    lam: [V] eigenvalues.
    features: n, rows of the Gaussian sketch, < V; a number or an array.
    samples: D > n, or infinity for the population; a number or an array.

  Returns:
    The mean squared prediction error, not halved, of the broadcast shape of
    features and samples.
  """
  if np.ndim(features) or np.ndim(samples):
    each = np.vectorize(lambda n, D: sketch_error(lam, n, D), otypes=[float])
    return each(features, samples)
  lam = np.asarray(lam, np.float64)
  if not 0 < features < lam.size or samples <= features:
    raise ValueError(
      f"features={features} must lie in (0, {lam.size}) and below "
      f"samples={samples}: with more features the fit interpolates."
    )
  low, high = -700.0, np.log(lam.sum() / features)
  for _ in range(200):
    middle = (low + high) / 2
    effective = np.sum(lam / (lam + np.exp(middle)))
    low, high = (middle, high) if effective > features else (low, middle)
  return features * np.exp(middle) / (1 - features / samples)


def precondition(problem: Problem, p) -> Problem:
  """SGD with the preconditioner diag(p) in the eigenbasis, as plain SGD.

  Exact: (lam, m0) becomes (p lam, m0 / p). p = lam^-1/2 is the inverse square
  root of Gauss-Newton, p = 1 / lam Gauss-Newton itself.

  Args:
    problem: Any problem.
    p: [D] positive multipliers of the gradient.

  Returns:
    The equivalent problem; its risks are those of the preconditioned run.
  """
  p = np.asarray(p, np.float64)
  if not np.all(np.isfinite(p) & (p > 0)):
    raise ValueError("precondition needs finite p > 0 in every direction.")
  return _checked(problem._replace(lam=p * problem.lam, m0=problem.m0 / p))


def with_features(
  problem: Problem, law="gaussian", *, k4=None, elliptic=None, alpha4=None
) -> Problem:
  """Changes the law of the features, keeping their covariance.

  Exact for each law. (kappa, tau) of `Problem` become (k4 - 1, 1) for
  independent coordinates with fourth moment k4 in the eigenbasis, (2 q, q) for
  elliptical features with E rho^4 = q, and (1 / lam_i, 0) for one-hot features,
  x = e_i with probability lam_i.

  Args:
    problem: Any problem.
    law: "gaussian", "rademacher", "uniform", "laplace" or "one-hot".
    k4: Fourth moment of independent coordinates; overrides `law`.
    elliptic: q >= 1 of x = rho H^1/2 z; overrides `law`.
    alpha4: The condition E[xx'Mxx'] <= alpha4 tr(HM) H of Zou et al.; risks
      become upper bounds (kappa = 0, tau = alpha4).

  Returns:
    The problem with `kappa` and `tau` replaced.
  """
  named = {"gaussian": 3.0, "rademacher": 1.0, "uniform": 1.8, "laplace": 6.0}
  if alpha4 is not None:
    return _checked(problem._replace(kappa=0.0, tau=alpha4))
  if elliptic is not None:
    if elliptic < 1:
      raise ValueError(f"elliptic={elliptic} is E rho^4, which is >= 1.")
    return _checked(problem._replace(kappa=2.0 * elliptic, tau=elliptic))
  if k4 is None and law == "one-hot":
    trace = np.sum(problem.mult * problem.lam)
    if abs(trace - 1) > 1e-9 or np.any(problem.lam <= 0):
      raise ValueError(
        f"one-hot features have probabilities lam > 0 with sum 1, here "
        f"{trace:.6g}; divide lam by its sum."
      )
    return _checked(problem._replace(kappa=1 / problem.lam, tau=0.0))
  if k4 is None and law not in named:
    raise ValueError(f"law={law!r} is none of {[*named, 'one-hot']}.")
  fourth = named[law] if k4 is None else k4
  if fourth < 1:
    raise ValueError(f"k4={fourth}: a unit-variance fourth moment is >= 1.")
  return _checked(problem._replace(kappa=fourth - 1.0, tau=1.0))


def compress(problem: Problem, nodes=8) -> Problem:
  """Replaces each octave of eigenvalues by Gauss rules.

  Noise (weights `mult`) and signal (weights `m0`) each have their own rule, so
  w* need not be smooth in the eigenvalue. Octaves with at most `nodes` entries
  are kept. The relative error of risks is about 2e-12 with 6 nodes and 1e-15
  with 8.

  Args:
    problem: Any problem with scalar `kappa`.
    nodes: Gauss nodes per octave and measure.

  Returns:
    The smaller problem; signal nodes have mult = 0.
  """
  problem = _checked(problem)
  if np.ndim(problem.kappa):
    raise ValueError(
      "compress needs a scalar kappa: a vector one is not smooth in lam."
    )
  lam, m0, mult = problem.lam, problem.m0, problem.mult
  keep = lam > 0  # Directions of zero curvature never carry risk.
  octave = np.floor(np.log2(lam, where=keep, out=np.zeros_like(lam)))
  parts = []
  for k in np.unique(octave[keep])[::-1]:
    inside = keep & (octave == k)
    if inside.sum() <= nodes:
      parts.append((lam[inside], m0[inside], mult[inside]))
      continue
    x, weight = quadrature.gauss_of_points(lam[inside], mult[inside], nodes)
    parts.append((x, np.zeros_like(x), weight))
    x, weight = quadrature.gauss_of_points(lam[inside], m0[inside], nodes)
    parts.append((x, weight, np.zeros_like(x)))
  columns = [np.concatenate(c) for c in zip(*parts, strict=True)]
  return problem._replace(lam=columns[0], m0=columns[1], mult=columns[2])


def _checked(problem: Problem) -> Problem:
  """Float64 NumPy leaves that obey `checks.check_problem`."""
  problem = Problem(*(np.asarray(x, np.float64) for x in problem))
  check_problem(problem)
  return problem
