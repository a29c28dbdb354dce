"""Fits of scaling laws, on the host in NumPy and SciPy (imported lazily).

Losses are fitted in logs by a Huber loss; parameters that are products of
scales (A, B) are logarithms inside, and their intervals are in logs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fit:
  """A fitted law.

  Attributes:
    params: Name -> value.
    objective: Final value of the loss that was minimised.
    r2: Share of the variance of log y that is explained.
    predict: Maps new inputs to the law's value.
    refit: Maps row indices to the parameters of the refit, warm-started.
    rows: Number of rows.
  """

  params: dict[str, float]
  objective: float
  r2: float
  predict: Callable
  refit: Callable
  rows: int

  def bootstrap(self, replicates=200, seed=0, level=0.9) -> dict:
    """Percentile intervals from resampled rows, refitted from the optimum.

    Args:
      replicates: Number of resamples.
      seed: Of the resampling.
      level: Coverage.

    Returns:
      Name -> (low, high).
    """
    rng = np.random.default_rng(seed)
    draws = [
      self.refit(rng.integers(0, self.rows, self.rows))
      for _ in range(replicates)
    ]
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {
      name: tuple(np.quantile([d[name] for d in draws], tails))
      for name in self.params
    }


def chinchilla(N, D, L, *, delta=1e-3) -> Fit:
  """L = E + A N^-alpha + B D^-beta.

  Variable projection (a grid over the exponents, non-negative least squares
  for A, B, E) finds the basins; BFGS with exact gradients on the mean Huber
  loss of log L, scaled by 1e6 so that it does not stop early (Besiroglu et
  al., arXiv 2404.10102), finishes from the five best.

  Args:
    N: [R] parameters.
    D: [R] tokens.
    L: [R] losses > 0.
    delta: Huber threshold in log L.

  Returns:
    Fit with params A, B, E, alpha, beta; `predict(N, D)`.
  """
  n, d, y = _logs(N=N, D=D, L=L)
  n0, d0 = n.mean(), d.mean()
  starts = _project(n - n0, d - d0, np.exp(y))

  def law(theta, rows):
    a, b, e, alpha, beta = theta
    terms = np.stack(
      [
        np.full(rows.size, e),
        a - alpha * (n[rows] - n0),
        b - beta * (d[rows] - d0),
      ]
    )
    value = np.logaddexp.reduce(terms, axis=0)
    we, wa, wb = np.exp(terms - value)
    slope = np.stack([wa, wb, we, -wa * (n[rows] - n0), -wb * (d[rows] - d0)])
    return value, slope

  def name(theta):
    a, b, e, alpha, beta = theta
    return {
      "A": float(np.exp(a + alpha * n0)),
      "B": float(np.exp(b + beta * d0)),
      "E": float(np.exp(e)),
      "alpha": float(alpha),
      "beta": float(beta),
    }

  def predict(params, N, D):
    p = params
    return p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"]

  return _finish(law, y, starts, delta, name, predict)


def kaplan(N, D, L, *, delta=1e-3) -> Fit:
  """L = E + ((A / N)^(alpha / beta) + B / D)^beta, from Chinchilla's optimum.

  Args:
    N: [R] parameters.
    D: [R] tokens.
    L: [R] losses > 0.
    delta: Huber threshold in log L.

  Returns:
    Fit with params A, B, E, alpha, beta; `predict(N, D)`.
  """
  n, d, y = _logs(N=N, D=D, L=L)
  c = chinchilla(N, D, L, delta=delta).params
  start = np.array(
    [
      np.log(c["A"]) / c["alpha"],  # The same limits as D or N goes to inf.
      np.log(c["B"]) / c["beta"],
      np.log(c["E"]),
      c["alpha"],
      c["beta"],
    ]
  )

  def law(theta, rows):
    a, b, e, alpha, beta = theta
    far = a - n[rows]
    u, v = alpha / beta * far, b - d[rows]
    inner = np.logaddexp(u, v)
    wu, wv = np.exp(u - inner), np.exp(v - inner)
    value = np.logaddexp(e, beta * inner)
    q = np.exp(beta * inner - value)
    slope = np.stack(
      [
        q * wu * alpha,
        q * wv * beta,
        1 - q,
        q * wu * far,
        q * (inner - wu * u),
      ]
    )
    return value, slope

  def name(theta):
    logs = dict(zip(("A", "B", "E"), np.exp(theta[:3]), strict=True))
    named = {**logs, "alpha": theta[3], "beta": theta[4]}
    return {k: float(x) for k, x in named.items()}

  def predict(params, N, D):
    p = params
    inner = (p["A"] / N) ** (p["alpha"] / p["beta"]) + p["B"] / D
    return p["E"] + inner ** p["beta"]

  return _finish(law, y, [start], delta, name, predict)


def isoflop_optimum(N, L) -> float:
  """N at the vertex of a parabola in log N; biased when off-centre.

  For comparison only: the true profile is no parabola, and on a grid centred
  one decade off the optimum the vertex is wrong by a factor of 1.6 to 1.8.

  Args:
    N: [R] sizes at one compute budget.
    L: [R] losses.

  Returns:
    The vertex.
  """
  n, _ = _logs(N=N, L=L)
  quadratic = np.polyfit(n - n.mean(), np.asarray(L, float), 2)
  if quadratic[0] <= 0:
    raise ValueError("the losses curve downwards: no optimum inside the grid.")
  return float(np.exp(n.mean() - quadratic[1] / (2 * quadratic[0])))


def _logs(**columns):
  """Logs of positive vectors of one length, with named complaints."""
  arrays = {k: np.asarray(v, np.float64) for k, v in columns.items()}
  shapes = {k: v.shape for k, v in arrays.items()}
  if len(set(shapes.values())) != 1 or next(iter(arrays.values())).ndim != 1:
    raise ValueError(f"fits want vectors of one length, got {shapes}.")
  for k, v in arrays.items():
    if not np.all(np.isfinite(v) & (v > 0)):
      raise ValueError(f"{k} must be finite and positive to take its log.")
  return [np.log(v) for v in arrays.values()]


def _project(n, d, L):
  """The five best cells of an exponent grid, as log parameters."""
  from scipy import optimize

  found = []
  for alpha in np.arange(0.05, 1.2, 0.05):
    for beta in np.arange(0.05, 1.2, 0.05):
      design = np.stack([np.exp(-alpha * n), np.exp(-beta * d), 1 + 0 * n], 1)
      scale, rest = optimize.nnls(design / L[:, None], np.ones(L.size))
      logs = np.log(np.maximum(scale, 1e-6 * L.min()))
      found.append((rest, np.array([*logs, alpha, beta])))
  found.sort(key=lambda pair: pair[0])
  return [theta for _, theta in found[:5]]


def _finish(law, y, starts, delta, name, predict) -> Fit:
  """BFGS on 1e6 times the mean Huber loss of log residuals."""
  from scipy import optimize

  def minimise(start, rows):
    def objective(theta):
      value, slope = law(theta, rows)
      r = value - y[rows]
      small = np.abs(r) <= delta
      loss = np.where(small, r * r / 2, delta * (np.abs(r) - delta / 2))
      pull = np.clip(r, -delta, delta)
      return 1e6 * loss.mean(), 1e6 * (slope * pull).mean(axis=1)

    with np.errstate(over="ignore", invalid="ignore"):
      return optimize.minimize(
        objective, start, jac=True, method="BFGS", options={"maxiter": 2000}
      )

  every = np.arange(y.size)
  best = min((minimise(s, every) for s in starts), key=lambda out: out.fun)
  params = name(best.x)
  residual = law(best.x, every)[0] - y
  r2 = 1 - np.sum(residual**2) / np.sum((y - y.mean()) ** 2)
  return Fit(
    params,
    float(best.fun / 1e6),
    float(r2),
    lambda *x: predict(params, *x),
    lambda rows: name(minimise(best.x, rows).x),
    y.size,
  )
