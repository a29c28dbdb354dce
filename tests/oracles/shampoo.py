"""Grafted Shampoo for one matrix in NumPy float64, unstaggered.

From the description in the study of Shampoo's preconditioner: bias-corrected
averages, exponent -e on each side by an eigendecomposition every `frequency`
steps, length grafted from Adam. The dense functions form A itself.
"""

import numpy as np


def power(matrix, exponent, eps=0.0):
  """(matrix + eps)^exponent of a symmetric matrix."""
  w, v = np.linalg.eigh(matrix)
  return (v * (np.maximum(w, 0) + eps) ** exponent) @ v.T


def shampoo_directions(
  grads,
  *,
  b1,
  b2,
  beta,
  eps,
  exponent,
  matrix_eps,
  frequency,
  start,
  grafting="adam",
):
  """The directions of ascent at t = 1, 2, ..."""
  rows, columns = grads[0].shape
  left, right = np.zeros((rows, rows)), np.zeros((columns, columns))
  m = v = np.zeros((rows, columns))
  root_left, root_right = np.eye(rows), np.eye(columns)
  directions = []
  for t, g in enumerate(grads, 1):
    g = np.asarray(g, np.float64)
    left = beta * left + (1 - beta) * g @ g.T
    right = beta * right + (1 - beta) * g.T @ g
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    correction = 1 - beta**t
    if t % frequency == 0:
      root_left = power(left / correction, -exponent, matrix_eps)
      root_right = power(right / correction, -exponent, matrix_eps)
    mean = m / (1 - b1**t)
    adam = mean / (np.sqrt(v / (1 - b2**t)) + eps)
    preconditioned = root_left @ mean @ root_right
    if grafting == "adam":
      size = np.linalg.norm(adam) / np.linalg.norm(preconditioned)
      early = adam
    else:
      size = (np.trace(left) / correction) ** (2 * exponent - 0.5)
      early = mean
    directions.append(size * preconditioned if t >= start else early)
  return directions


def dense_second_moment(grads):
  """A = mean vec(G) vec(G)^T, [I O, I O], row-major vec."""
  flat = np.asarray(grads, np.float64).reshape(len(grads), -1)
  return flat.T @ flat / len(grads)


def best_kronecker(matrix, rows, columns):
  """Best L x R in the Frobenius norm, by the SVD of the rearrangement."""
  rearranged = (
    matrix.reshape(rows, columns, rows, columns)
    .transpose(0, 2, 1, 3)
    .reshape(rows**2, columns**2)
  )
  u, s, vt = np.linalg.svd(rearranged)
  return s[0] * np.kron(u[:, 0].reshape(rows, rows), vt[0].reshape(columns, -1))


def cosine(a, b):
  """Of two matrices, in the Frobenius inner product."""
  return np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
