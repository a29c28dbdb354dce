"""Second moments of SGD on linear regression, the slow ways. NumPy only.

Everything is dense d x d in any basis, written from E[(I - eta Hhat) C
(I - eta Hhat)], with the batch covariance expanded into the fourth moment of
one sample. Nothing is shared with the package under test.
"""

import decimal

import numpy as np


def fourth_moment(M, H, law="gaussian", value=None):
  """E[x x^T M x x^T] for symmetric M; `value` is k4 or E rho^4.

  The laws "independent" and "one-hot" need a diagonal H.
  """
  if law == "gaussian":
    return 2 * H @ M @ H + np.trace(M @ H) * H
  if law == "elliptic":
    return value * fourth_moment(M, H)
  root = np.sqrt(np.diag(H))
  if law == "independent":
    N = root[:, None] * M * root
    inner = 2 * N + np.trace(N) * np.eye(len(N))
    inner += (value - 3) * np.diag(np.diag(N))
    return root[:, None] * inner * root
  return np.diag(np.diag(H) * np.diag(M))  # one-hot


def block_step(S, H, P, f, e, B, sigma2, law="gaussian", value=None):
  """One step of s' = P s - f g for every direction, [k d, k d] moments."""
  d = len(H)
  move = np.kron(P, np.eye(d)) - np.kron(np.outer(f, e), H)
  point = np.kron(e, np.eye(d))
  E = point @ S @ point.T
  noise = (fourth_moment(E, H, law, value) - H @ E @ H + sigma2 * H) / B
  return move @ S @ move.T + np.kron(np.outer(f, f), noise)


def sgd_step(C, H, eta, B, sigma2, law="gaussian", value=None):
  """One step of plain SGD on the d x d moments."""
  one = np.ones(1)
  return block_step(C, H, np.eye(1), eta * one, one, B, sigma2, law, value)


def risk(C, H):
  """tr(H C) / 2."""
  return np.trace(H @ C) / 2


def block_operator(H, P, f, e, B, law="gaussian", value=None):
  """The linear part of `block_step` as a (k d)^2 x (k d)^2 matrix."""
  size = len(P) * len(H)
  columns = []
  for j in range(size * size):
    unit = np.zeros(size * size)
    unit[j] = 1
    unit = unit.reshape(size, size)
    unit = (unit + unit.T) / 2
    columns.append(block_step(unit, H, P, f, e, B, 0.0, law, value).reshape(-1))
  return np.stack(columns, axis=1)


def radius(operator):
  """Spectral radius."""
  return np.abs(np.linalg.eigvals(operator)).max()


def average_risk(weights, C0, H, etas, batches, sigma2):
  """Risk of sum_t weights_t w_t by the double sum over all pairs."""
  moments = [C0]
  for eta, B in zip(etas, batches, strict=True):
    moments.append(sgd_step(moments[-1], H, eta, B, sigma2))
  identity, total = np.eye(len(H)), 0.0
  for s, C in enumerate(moments):
    cross = weights[s] ** 2 * C
    pull = identity
    for t in range(s + 1, len(moments)):
      pull = (identity - etas[t - 1] * H) @ pull
      cross = cross + 2 * weights[s] * weights[t] * pull @ C
    total += np.trace(H @ cross) / 2
  return total


def decimal_risk(lam, m0, sigma2, eta, B, times, digits=60):
  """Gaussian SGD with distinct lam at constant (eta, B), to many digits.

  Roots of the secular equation by bisection in decimal arithmetic; inputs
  are taken as the exact values of the floats.
  """
  with decimal.localcontext() as context:
    context.prec = digits
    D = decimal.Decimal
    lam, m0 = [D(float(x)) for x in lam], [D(float(x)) for x in m0]
    eta, B, sigma2 = D(float(eta)), D(float(B)), D(float(sigma2))
    c, rho = 1 + 1 / B, eta * eta / B
    s = [eta * x * (2 - c * eta * x) for x in lam]
    order = sorted(range(len(s)), key=lambda i: s[i])
    s = [s[i] for i in order]
    lam, m0 = [lam[i] for i in order], [m0[i] for i in order]
    v = [rho * x * x for x in lam]
    rates = []
    for k in range(len(s)):
      low = s[k - 1] if k else s[0] - sum(v)
      high = s[k]
      for _ in range(4 * digits):
        middle = (low + high) / 2
        g = 1 - sum(vi / (si - middle) for vi, si in zip(v, s, strict=True))
        low, high = (middle, high) if g > 0 else (low, middle)
      rates.append((low + high) / 2)
    out = []
    for t in times:
      bias = variance = D(0)
      for nu in rates:
        slope = sum(vi / (si - nu) ** 2 for vi, si in zip(v, s, strict=True))
        overlap = sum(
          x * m / (si - nu) for x, m, si in zip(lam, m0, s, strict=True)
        )
        decay = (1 - nu) ** D(float(t))
        bias += overlap / slope * decay / 2
        variance += sigma2 / slope * (1 - decay) / nu / 2
      out.append((float(bias), float(variance)))
    return np.array(out)


def simulate(rng, H, w0, wstar, sigma2, etas, batches, replicas, draw=None):
  """Plain SGD on sampled Gaussian data; risks [T + 1, replicas]."""
  root = np.linalg.cholesky(H)
  draw = draw or rng.standard_normal
  delta = np.tile(np.asarray(w0) - wstar, (replicas, 1))
  risks = [np.einsum("ri,ij,rj->r", delta, H, delta) / 2]
  for eta, B in zip(etas, batches, strict=True):
    x = draw((replicas, B, len(H))) @ root.T
    noise = np.sqrt(sigma2) * rng.standard_normal((replicas, B))
    residual = np.einsum("rbi,ri->rb", x, delta) - noise
    delta = delta - eta / B * np.einsum("rbi,rb->ri", x, residual)
    risks.append(np.einsum("ri,ij,rj->r", delta, H, delta) / 2)
  return np.stack(risks)
