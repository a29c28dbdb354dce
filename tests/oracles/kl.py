"""KL-Shampoo and KL-SOAP of one tensor in NumPy float64, from the equations.

The momentum of KL-Shampoo is kept in no basis, whitening multiplies by the
inverse of a whole matrix. Columns are orthonormalised from the largest estimate
to the smallest and keep their places, as SOAP's do here (the authors do not
sort; the two agree unless estimates cross). Nothing is shared with the package
under test.
"""

import numpy as np
from oracles.soap import along


class KL:
  """One tensor's optimiser; `step(g)` returns the direction, zeros at first.

  Attributes:
    modes: Modes with a factor.
    second_moment: True is KL-SOAP, without corrections; False KL-Shampoo.
    start: l at the start; None is rms(G)^(2 / number of factors).
    damping: Variance of noise that is added to each gradient's.
  """

  def __init__(
    self,
    shape,
    *,
    b1=0.95,
    beta=0.95,
    eps=1e-8,
    frequency=3,
    modes=None,
    second_moment=False,
    start=None,
    damping=0.0,
  ):
    self.b1, self.beta, self.eps, self.frequency = b1, beta, eps, frequency
    self.modes = tuple(range(len(shape))) if modes is None else modes
    self.second_moment, self.start = second_moment, start
    self.damping = damping
    self.m, self.v = np.zeros(shape), np.zeros(shape)
    self.factors = {k: np.zeros((shape[k],) * 2) for k in self.modes}
    self.bases, self.l, self.calls = {}, {}, 0

  def _turn(self, x, transpose=True):
    for k, q in self.bases.items():
      x = along(x, q.T if transpose else q, k)
    return x

  def _average(self, g, inverses):
    for k in self.modes:
      white = g
      for j, inverse in inverses.items():
        if j != k:
          white = along(white, inverse, j)
      left = np.moveaxis(g, k, 0).reshape(g.shape[k], -1)
      right = np.moveaxis(white, k, 0).reshape(g.shape[k], -1)
      new = left @ right.T / left.shape[1]
      self.factors[k] = self.beta * self.factors[k] + (1 - self.beta) * new

  def _begin(self, g):
    start = self.start
    if start is None:
      start = np.mean(g**2) ** (1 / len(self.modes))
    self.l = {k: np.full(g.shape[k], start) for k in self.modes}
    self._average(g, {k: np.eye(g.shape[k]) / start for k in self.modes})
    for k, factor in self.factors.items():
      self.bases[k] = np.linalg.eigh(factor)[1][:, ::-1]

  def _observe(self, g):
    inverses = {k: q / self.l[k] @ q.T for k, q in self.bases.items()}
    self._average(g, inverses)
    turned, old = self._turn(g), dict(self.l)
    for k in self.modes:
      square = np.moveaxis(turned**2, k, 0)
      for j in self.modes:
        if j != k:
          place = j if j > k else j + 1
          shape = [1] * g.ndim
          shape[place] = -1
          square = square / old[j].reshape(shape)
      new = square.reshape(g.shape[k], -1).mean(axis=1)
      inverses = [np.mean(1 / l) for j, l in old.items() if j != k]
      new = new + self.damping * np.prod(inverses)
      self.l[k] = self.beta * old[k] + (1 - self.beta) * new

  def _refresh(self):
    momentum = self._turn(self.m, transpose=False)
    for k, q in self.bases.items():
      image = self.factors[k] @ q
      order = np.argsort(-np.sum(q * image, axis=0), kind="stable")
      self.bases[k] = np.empty_like(q)
      self.bases[k][:, order] = np.linalg.qr(image[:, order])[0]
    if self.second_moment:
      self.m = self._turn(momentum)

  def _root(self):
    root = np.ones_like(self.m)
    for k, l in self.l.items():
      shape = [1] * root.ndim
      shape[k] = -1
      root = root * np.sqrt(l).reshape(shape)
    return root

  def step(self, g):
    g = np.asarray(g, np.float64)
    self.calls += 1
    if self.calls == 1:
      self._begin(g)
      return np.zeros_like(g)
    if self.second_moment:
      turned = self._turn(g)
      self.m = self.b1 * self.m + (1 - self.b1) * turned
      self.v = self.beta * self.v + (1 - self.beta) * turned**2
      direction = self.m / (np.sqrt(self.v) + self.eps)
    else:
      self.m = self.b1 * self.m + (1 - self.b1) * g
      direction = self._turn(self.m) / (self._root() + self.eps)
    direction = self._turn(direction, transpose=False)
    self._observe(g)
    if (self.calls - 1) % self.frequency == 0:
      self._refresh()
    return direction
