"""NumPy float64: dense Gauss-Newton matrices, and steps with their diagonals.

The network is z = tanh(x W1) W2, its parameters flattened as (W1, W2), each
row by row.
"""

import numpy as np


def jacobian(x_BI, w1_IH, w2_HV):
  """J [B, V, P] of the network, by hand."""
  a_BH = np.tanh(x_BI @ w1_IH)
  d_BH = 1 - a_BH**2
  B, V = len(x_BI), w2_HV.shape[1]
  first = np.einsum("bi,bh,hv->bvih", x_BI, d_BH, w2_HV)
  second = np.einsum("bh,vu->bvhu", a_BH, np.eye(V))
  return np.concatenate(
    [first.reshape(B, V, -1), second.reshape(B, V, -1)], axis=2
  )


def hessian(z_BV, likelihood):
  """Of -log p(y | z) in z, [B, V, V]."""
  B, V = z_BV.shape
  if likelihood == "normal":
    return np.broadcast_to(np.eye(V), (B, V, V))
  if likelihood == "bernoulli":
    p_BV = 1 / (1 + np.exp(-z_BV))
    return np.einsum("bv,vu->bvu", p_BV * (1 - p_BV), np.eye(V))
  p_BV = np.exp(z_BV - z_BV.max(1, keepdims=True))
  p_BV /= p_BV.sum(1, keepdims=True)
  outer = p_BV[:, :, None] * p_BV[:, None, :]
  return np.einsum("bv,vu->bvu", p_BV, np.eye(V)) - outer


def ggn(x_BI, w1_IH, w2_HV, likelihood="categorical", weights=None):
  """G [P, P] of the weighted mean loss."""
  weights = np.ones(len(x_BI)) if weights is None else weights
  j_BVP = jacobian(x_BI, w1_IH, w2_HV)
  h_BVV = hessian(np.tanh(x_BI @ w1_IH) @ w2_HV, likelihood)
  share_B = weights / weights.sum()
  return np.einsum("b,bvp,bvu,buq->pq", share_B, j_BVP, h_BVV, j_BVP)


def preconditioned(grads, bases, estimates, *, power, decay, eps, damping):
  """[U (nu + damping)^power U^T g] with nu the normalised average of diagonals.

  Args:
    grads: g [P], a step each.
    bases: U [P, P], a step each; the average is moved between two of them as
      the diagonal of the matrix U diag(nu) U^T it stands for.
    estimates: Matrices [P, P] whose diagonal in the basis is averaged.
    power: -1 or -1/2.
    decay: Of the average.
    eps: Added to the root (or to nu, at power -1).
    damping: Added to nu.

  Returns:
    A direction a step.
  """
  nu, weight, old, result = np.zeros(len(grads[0])), 0.0, None, []
  for g, u, matrix in zip(grads, bases, estimates, strict=True):
    if old is not None:
      nu = np.diag(u.T @ (old * nu) @ old.T @ u)
    nu = decay * nu + (1 - decay) * np.diag(u.T @ matrix @ u)
    weight = decay * weight + 1 - decay
    scale = (nu / weight + damping) ** -power + eps
    result.append(u @ (u.T @ g / scale))
    old = u
  return result
