"""Gauss-Newton outer steps of a small network, in NumPy float64.

Written from the equations with dense Jacobians: the inner iterate is absolute,
the loop is a Python loop, and nothing is shared with the package.
"""

import numpy as np


def outputs(theta, x, shapes):
  """z = tanh(x A) B, [n, V]."""
  a, b = _matrices(theta, shapes)
  return np.tanh(x @ a) @ b


def jacobian(theta, x, shapes):
  """d z / d theta, [n, V, P], by the chain rule."""
  a, b = _matrices(theta, shapes)
  n, v = len(x), b.shape[1]
  h = np.tanh(x @ a)
  of_a = np.einsum("ni,nh,hv->nvih", x, 1 - h**2, b)
  of_b = np.einsum("nh,vw->nvhw", h, np.eye(v))
  return np.concatenate(
    [of_a.reshape(n, v, -1), of_b.reshape(n, v, -1)], axis=-1
  )


def cross_entropy(z, y, w):
  """Weighted mean."""
  shifted = z - z.max(-1, keepdims=True)
  lse = np.log(np.exp(shifted).sum(-1)) + z.max(-1)
  return np.sum(w * (lse - z[np.arange(len(y)), y])) / w.sum()


def softmax(z):
  """Along the last axis."""
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


class HostLoop:
  """Outer steps with AdamW inside; `groups` are boolean masks of theta."""

  def __init__(self, theta, shapes, options, groups=None):
    """Options: mode, rate(t, i), wd, damping, alphas, warm, clip, reset."""
    self.theta, self.shapes, self.o = theta.copy(), shapes, options
    self.groups = groups or [np.ones(len(theta), bool)]
    self.count = 0
    self.iterate = theta.copy()
    self._reset()

  def _reset(self):
    self.m = np.zeros_like(self.theta)
    self.v = np.zeros_like(self.theta)
    self.k = 0

  def _inner_gradient(self, batch):
    x, y, w = batch
    z = outputs(self.theta, x, self.shapes)
    jac = jacobian(self.theta, x, self.shapes)
    d = self.iterate - self.theta
    labels = np.eye(z.shape[1])[y]
    grad = np.zeros_like(d)
    for mask in self.groups:
      u = jac @ np.where(mask, d, 0)
      if self.o["mode"] == "quadratic":
        p = softmax(z)
        product = p * u - p * np.sum(p * u, -1, keepdims=True)
        ct = p - labels + product
      else:
        ct = softmax(z + u) - labels
      ct = ct * w[:, None] / w.sum()
      grad += np.where(mask, np.einsum("nv,nvp->p", ct, jac), 0)
    return grad + self.o["damping"] * d

  def _adamw(self, grad, rate):
    norm = np.linalg.norm(grad)
    if self.o["clip"]:
      grad = grad * min(1, self.o["clip"] / norm)
    self.k += 1
    self.m = 0.9 * self.m + 0.1 * grad
    self.v = 0.99 * self.v + 0.01 * grad**2
    direction = (self.m / (1 - 0.9**self.k)) / (
      np.sqrt(self.v / (1 - 0.99**self.k)) + 1e-8
    )
    decayed = direction + self.o["wd"] * self.iterate
    self.iterate = self.iterate - rate * decayed

  def loss(self, theta, batches):
    """Mean over the weights of all batches."""
    total = sum(
      w.sum() * cross_entropy(outputs(theta, x, self.shapes), y, w)
      for x, y, w in batches
    )
    return total / sum(w.sum() for _, _, w in batches)

  def step(self, batches, ls_batches):
    """One outer step; returns (alpha, losses)."""
    for i, batch in enumerate(batches):
      rate = self.o["rate"](self.count, i)
      self._adamw(self._inner_gradient(batch), rate)
    d = self.iterate - self.theta
    losses = [
      self.loss(self.theta + a * d, ls_batches) for a in self.o["alphas"]
    ]
    alpha = self.o["alphas"][int(np.argmin(losses))]
    self.theta = self.theta + alpha * d
    if self.o["warm"] < 1:
      self.iterate = self.theta + self.o["warm"] * d
    if self.o["reset"]:
      self._reset()
    self.count += 1
    return alpha, losses


def _matrices(theta, shapes):
  (i, h), (_, v) = shapes
  return theta[: i * h].reshape(i, h), theta[i * h :].reshape(h, v)
