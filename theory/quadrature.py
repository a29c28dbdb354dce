"""Gauss rules for sums over eigenvalues: ten nodes instead of a million.

Every curve of this package is a sum over directions of functions smooth in
the eigenvalue, so over one octave a p-point Gauss rule of the *discrete*
measure replaces any number of directions. Weights stay positive, hence the
compressed problem is itself a least-squares problem. NumPy on the host.
"""

import numpy as np


def gauss_from_jacobi(diagonal, off_diagonal, mass):
  """Nodes and weights of the Gauss rule with this Jacobi matrix.

  Golub and Welsch (1969): nodes are the eigenvalues, weights the mass times
  the squared first components of the eigenvectors.

  Args:
    diagonal: [P] recurrence coefficients of the orthogonal polynomials.
    off_diagonal: [P - 1] square roots of the others.
    mass: Total weight of the measure.

  Returns:
    nodes [P], weights [P].
  """
  jacobi = np.diag(diagonal)
  jacobi += np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
  nodes, vectors = np.linalg.eigh(jacobi)
  return nodes, mass * vectors[0] ** 2


def gauss_of_integers(low, high, points):
  """Gauss rule for sum_{i=low}^{high-1} f(i), at cost O(points^2).

  The polynomials orthogonal on n equispaced points (Gram, discrete
  Chebyshev) have constant diagonal and off-diagonal
  sqrt(j^2 (n^2 - j^2) / (4 (4 j^2 - 1))).

  Args:
    low: First integer.
    high: One past the last.
    points: Size of the rule; exact for polynomials below degree 2 points.

  Returns:
    nodes, weights; the integers themselves if they are at most `points`.
  """
  count = high - low
  if count <= points:
    return np.arange(low, high, dtype=np.float64), np.ones(count)
  j = np.arange(1, points, dtype=np.float64)
  off = np.sqrt(j**2 * (float(count) ** 2 - j**2) / (4 * (4 * j**2 - 1)))
  nodes, weights = gauss_from_jacobi(np.zeros(points), off, float(count))
  return nodes + (low + (count - 1) / 2), weights


def gauss_of_points(x, weight, points):
  """Gauss rule of the discrete measure sum_i weight_i delta(x_i), by Lanczos.

  Args:
    x: [D] points.
    weight: [D] non-negative weights.
    points: Size of the rule.

  Returns:
    nodes, weights; the measure itself if it has at most `points` points.
  """
  x, weight = x[weight > 0], weight[weight > 0]
  if x.size <= points:
    return x, weight
  centre, scale = x.mean(), np.ptp(x) or 1.0
  y = (x - centre) / scale
  basis = [np.sqrt(weight / weight.sum())]
  diagonal, off = [], []
  for _ in range(points):
    q = y * basis[-1]
    diagonal.append(basis[-1] @ q)
    for _ in range(2):  # Twice is enough for full orthogonality.
      stacked = np.stack(basis)
      q = q - stacked.T @ (stacked @ q)
    norm = np.linalg.norm(q)
    if norm < 1e-13:  # Fewer distinct points than asked for.
      break
    off.append(norm)
    basis.append(q / norm)
  size = len(diagonal)
  nodes, weights = gauss_from_jacobi(diagonal, off[: size - 1], weight.sum())
  return centre + scale * nodes, weights
