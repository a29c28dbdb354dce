"""Fits of scaling laws, on the host in NumPy and SciPy (imported lazily).

Losses are fitted in logs by a Huber loss. A and B are fitted as logarithms.
Every fit raises `UndeterminedError` (a ValueError) if its rows do not determine
the law: too few rows, too few distinct values, or a direction of the
parameters that the rows do not notice (`identifiability`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .identifiability import (
  UndeterminedError,
  distinct,
  explained,
  logs_of,
  noise,
  positive,
  require_determined,
  require_off_line,
  require_rows,
  require_values,
)

_REDRAWS = 100  # Of one resample whose rows determine nothing.
_NAMES = ("A", "B", "E", "alpha", "beta")
_GRID = "Add rows on a grid of N and D, over a wider range of both."


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

    A resample with too few distinct values for the law is drawn again, so the
    intervals are given that the rows determine the law.

    Args:
      replicates: Number of resamples.
      seed: Of the resampling.
      level: Coverage.

    Returns:
      Name -> (low, high).

    Raises:
      UndeterminedError: If nearly no resample determines the law.
    """
    rng = np.random.default_rng(seed)
    draws = [self._redraw(rng) for _ in range(replicates)]
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {
      name: tuple(np.quantile([d[name] for d in draws], tails))
      for name in self.params
    }

  def _redraw(self, rng):
    """Parameters of the first resample that determines the law."""
    reason = None
    for _ in range(_REDRAWS):
      try:
        return self.refit(rng.integers(0, self.rows, self.rows))
      except UndeterminedError as error:
        reason = error
    raise UndeterminedError(
      f"none of {_REDRAWS} resamples of {self.rows} rows determines the law "
      f"({reason}). Give more rows."
    ) from reason


def chinchilla(N, D, L, *, delta=1e-3) -> Fit:
  """L = E + A N^-alpha + B D^-beta.

  A grid over the exponents, with non-negative least squares for A, B and E,
  finds the starts. BFGS with exact gradients then minimises the mean Huber loss
  of log L from the five best starts. The loss is scaled by 1e6 so that BFGS
  does not stop early (Besiroglu et al., arXiv 2404.10102).

  Args:
    N: [R] parameters.
    D: [R] tokens.
    L: [R] losses > 0.
    delta: Huber threshold in log L.

  Returns:
    Fit with params A, B, E, alpha, beta; `predict(N, D)`, numbers or arrays.

  Raises:
    UndeterminedError: If the rows do not determine the law. They need three
      distinct values of N and of D, and N and D must not lie on one line in
      logs.
  """
  text = "L = E + A N^-alpha + B D^-beta"
  n, d, _ = _rows(text, N, D, L)
  fit, theta = _fit_chinchilla(N, D, L, delta)
  a, b, e, alpha, beta = theta
  n, d = n - n.mean(), d - d.mean()
  parts = np.exp([a - alpha * n, b - beta * d, e + 0 * n])
  wa, wb, _ = parts / parts.sum(0)
  columns = _relative(
    L, parts.sum(0), wa, wb, (-alpha * wa * n, -beta * wb * d)
  )
  _settle("L = E + A N^-alpha + B D^-beta", N, D, L, fit, columns)
  return fit


def _fit_chinchilla(N, D, L, delta):
  """The fit and its centred log parameters, whatever the rows determine."""
  n, d, y = logs_of(N=N, D=D, L=L)
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
    p, N, D = params, positive("N", N), positive("D", D)
    return p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"]

  return _finish(law, y, starts, delta, name, predict, _few(n, d))


def kaplan(N, D, L, *, delta=1e-3) -> Fit:
  """L = E + ((A / N)^(alpha / beta) + B / D)^beta, from Chinchilla's optimum.

  Args:
    N: [R] parameters.
    D: [R] tokens.
    L: [R] losses > 0.
    delta: Huber threshold in log L.

  Returns:
    Fit with params A, B, E, alpha, beta; `predict(N, D)`, numbers or arrays.

  Raises:
    UndeterminedError: As of `chinchilla`.
  """
  text = "L = E + ((A / N)^(alpha / beta) + B / D)^beta"
  n, d, y = _rows(text, N, D, L)
  c = _fit_chinchilla(N, D, L, delta)[0].params
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
    p, N, D = params, positive("N", N), positive("D", D)
    inner = (p["A"] / N) ** (p["alpha"] / p["beta"]) + p["B"] / D
    return p["E"] + inner ** p["beta"]

  fit, theta = _finish(law, y, [start], delta, name, predict, _few(n, d))
  value, (da, db, _, dalpha, dbeta) = law(theta, np.arange(y.size))
  a, b, _, alpha, beta = theta
  # The sizes of the terms at the mean row are held where exponents move.
  exponents = (
    alpha * dalpha - da * (a - n.mean()),
    beta * dbeta - db * (b - d.mean()),
  )
  columns = _relative(L, np.exp(value), da / alpha, db / beta, exponents)
  _settle(text, N, D, L, fit, columns)
  return fit


def isoflop_optimum(N, L) -> float:
  """N at the vertex of a parabola in log N; biased when off-centre.

  For comparison only: the true profile is no parabola. On a grid whose centre
  is half a decade off the optimum the vertex is wrong by a factor of 1.4.

  Args:
    N: [R] sizes at one compute budget, three distinct ones or more.
    L: [R] losses.

  Returns:
    The vertex.

  Raises:
    UndeterminedError: If the sizes do not enclose the vertex, or if the noise
      of the losses leaves the vertex anywhere on the grid.
  """
  n, _ = logs_of(N=N, L=L)
  L = np.asarray(L, np.float64)
  require_rows("a parabola in log N", n.size, ("height", "slope", "curvature"))
  require_values("a parabola", 3, "the curvature in {name} is free", N=n)
  x = n - n.mean()
  quadratic, slope, _ = np.polyfit(x, L, 2)
  low, high = x.min(), x.max()
  ends = f"the grid of N from {np.exp(n.min()):.3g} to {np.exp(n.max()):.3g}"
  if quadratic <= 0:
    raise UndeterminedError(
      f"the losses do not curve upwards in log N: no minimum inside {ends}. "
      f"Add {_side(slope)} sizes."
    )
  vertex = -slope / (2 * quadratic)
  if not low <= vertex <= high:
    raise UndeterminedError(
      f"the parabola has its vertex outside {ends}: no minimum inside the "
      f"grid. Add {_side(-vertex)} sizes."
    )
  design = np.stack([x**2, x, 1 + 0 * x], axis=1)
  residual = L - design @ np.linalg.lstsq(design, L, rcond=None)[0]
  sigma = noise(residual / L.mean(), 3) * L.mean()
  change = np.array([-vertex / quadratic, -1 / (2 * quadratic), 0.0])
  stderr = sigma * np.linalg.norm(np.linalg.pinv(design).T @ change)
  if stderr > (high - low) / np.sqrt(12):  # That of a guess on the grid.
    raise UndeterminedError(
      f"the losses are flat within their noise: the vertex has a standard "
      f"error of {stderr:.2g} in log N, no better than a guess on {ends}. "
      "Widen the grid, or add rows."
    )
  return float(np.exp(n.mean() + vertex))


def _side(slope) -> str:
  """Which sizes are missing where losses have this slope in log N."""
  return "larger" if slope < 0 else "smaller"


def _rows(text, N, D, L):
  """Logs of rows that are enough in number for a law of N and D."""
  n, d, y = logs_of(N=N, D=D, L=L)
  require_rows(text, y.size, _NAMES)
  free = "the {name} term, its exponent and E are free to trade"
  require_values(text, 3, free, N=n, D=d)
  require_off_line(text, 0.0, N=n, D=d)
  if distinct(y) == 1:
    raise UndeterminedError(
      f"L takes 1 distinct value, so the exponents of {text} are free."
    )
  return n, d, y


def _few(n, d):
  """Raises for resampled rows that take too few values of N or D."""

  def check(rows):
    require_values("a resample", 3, "it says nothing", N=n[rows], D=d[rows])

  return check


def _relative(L, value, wa, wb, exponents):
  """Derivatives of log L by relative changes; E in units of the least loss."""
  e = np.min(np.asarray(L, np.float64)) / value
  return dict(zip(_NAMES, (wa, wb, e, *exponents), strict=True))


def _settle(text, N, D, L, fit, columns):
  """Raises if the rows leave a combination of the parameters free."""
  n, d, y = logs_of(N=N, D=D, L=L)
  residual = np.log(fit.predict(N, D)) - y
  require_off_line(text, noise(residual, 5), N=n, D=d)
  require_determined(text, columns, residual, _GRID)


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


def _finish(law, y, starts, delta, name, predict, enough):
  """BFGS on 1e6 times the mean Huber loss of log residuals.

  Returns:
    The `Fit` and the log parameters it was found at.
  """
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

  def refit(rows):
    enough(rows)
    return name(minimise(best.x, rows).x)

  fit = Fit(
    params,
    float(best.fun / 1e6),
    explained(residual, y),
    lambda *x: predict(params, *x),
    refit,
    y.size,
  )
  return fit, best.x
