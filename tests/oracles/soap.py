"""SOAP for one tensor in NumPy float64, as the authors' code does it.

Momentum and second moment live in the rotated basis; at a refresh the columns
are sorted by their estimated eigenvalues, the second moment is permuted with
them (theirs) or turned as a diagonal and scaled (ours), and the momentum is
mapped back and forth. Nothing is shared with the package under test, which
permutes nothing and stacks everything.
"""

import numpy as np


def along(x, matrix, mode):
  """Multiplies mode `mode` of x by `matrix`: x_(mode) -> matrix x_(mode)."""
  moved = np.tensordot(matrix, x, axes=(1, mode))
  return np.moveaxis(moved, 0, mode)


def gram(x, mode):
  """x_(mode) x_(mode)^T of the unfolding."""
  unfolded = np.moveaxis(x, mode, 0).reshape(x.shape[mode], -1)
  return unfolded @ unfolded.T


class Soap:
  """One tensor's optimiser; `step(g)` returns the direction, zeros at first.

  Attributes:
    modes: Modes with a factor.
    factorized: Second moment as row and column means (matrices only).
    turn_squares: False permutes the second moment only, as the authors do.
  """

  def __init__(
    self,
    shape,
    *,
    b1=0.95,
    b2=0.95,
    shampoo_beta=None,
    eps=1e-8,
    frequency=10,
    modes=None,
    normalize=False,
    bias_correction=True,
    factorized=False,
    use_current=False,
    turn_squares=True,
  ):
    self.b1, self.b2, self.eps = b1, b2, eps
    self.beta = b2 if shampoo_beta is None else shampoo_beta
    self.frequency, self.normalize = frequency, normalize
    self.bias_correction, self.factorized = bias_correction, factorized
    self.use_current, self.turn_squares = use_current, turn_squares
    self.modes = tuple(range(len(shape))) if modes is None else modes
    self.factors = {k: np.zeros((shape[k],) * 2) for k in self.modes}
    self.bases = {}
    self.m, self.v = np.zeros(shape), np.zeros(shape)
    self.calls = self.t = 0

  def rotate(self, x):
    for k, q in self.bases.items():
      x = along(x, q.T, k)
    return x

  def back(self, x):
    for k, q in self.bases.items():
      x = along(x, q, k)
    return x

  def _observe(self, g):
    for k in self.modes:
      new = (1 - self.beta) * gram(g, k)
      self.factors[k] = self.beta * self.factors[k] + new

  def _refresh(self):
    momentum, power = self.back(self.m), self._power()
    for k, q in self.bases.items():
      image = self.factors[k] @ q
      order = np.argsort(-np.sum(q * image, axis=0), kind="stable")
      new = np.linalg.qr(image[:, order])[0]
      if self.turn_squares:  # The diagonal of Q diag(v) Q^T in the new basis.
        self.v = along(self.v, (new.T @ q) ** 2, k)
      else:
        self.v = np.take(self.v, order, axis=k)
      self.bases[k] = new
    self.m = self.rotate(momentum)
    if self.turn_squares:  # The norm of m / sqrt(v) is what it was.
      self.v = self.v * self._power() / power

  def _power(self):
    v = self._second_moment()
    some = v > 1e-20 * v.max()  # The rest is round-off.
    return np.sum(
      np.where(some, self.m**2 / np.where(some, v, 1), 0),
      axis=tuple(self.modes),
      keepdims=True,
    )

  def _second_moment(self):
    if not self.factorized:
      return self.v
    rows, columns = self.v.sum(axis=1), self.v.sum(axis=0)
    return np.outer(rows, columns) / rows.sum()

  def step(self, g):
    g = np.asarray(g, np.float64)
    if self.calls == 0:
      self._observe(g)
      for k, factor in self.factors.items():
        self.bases[k] = np.linalg.eigh(factor)[1][:, ::-1]
    self.calls += 1
    if self.calls == 1 and not self.use_current:
      return np.zeros_like(g)
    self.t += 1
    rotated = self.rotate(g)
    self.m = self.b1 * self.m + (1 - self.b1) * rotated
    self.v = self.b2 * self.v + (1 - self.b2) * rotated**2
    c1 = c2 = 1.0
    if self.bias_correction:
      c1, c2 = 1 - self.b1**self.t, 1 - self.b2**self.t
    # eps is Adam's: inside the corrected root.
    denominator = np.sqrt(self._second_moment()) + self.eps * np.sqrt(c2)
    direction = self.back(self.m / denominator)
    if self.normalize:
      direction /= 1e-30 + np.sqrt(np.mean(direction**2))
    if self.calls > 1:
      self._observe(g)
      if (self.calls - 1) % self.frequency == 0:
        self._refresh()
    return direction * np.sqrt(c2) / c1
