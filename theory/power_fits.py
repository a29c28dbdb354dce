"""Power laws: k x^p, c + k x^p and E1 + K (x - E0)^kappa.

Rows that do not determine a law raise `UndeterminedError` (`identifiability`).
"""

import numpy as np

from .fits import Fit
from .identifiability import (
  PRECISION,
  explained,
  logs_of,
  positive,
  require_determined,
  require_rows,
  require_values,
)

# Standard errors allowed to a shifted power law, whose offsets are bounded:
# larger than 1, since four free parameters are weakly identified by any rows.
_WIDEST = 1.0
_SHIFTED = "L1 = E1 + K (L0 - E0)^kappa"


def power_law_fit(x, y, *, offset=False) -> Fit:
  """y = k x^p, or y = c + k x^p with 0 <= c < min y, by least squares in logs.

  Args:
    x: [R] positive.
    y: [R] positive.
    offset: Whether to fit c.

  Returns:
    Fit with params k, p (and c); `predict(x)`, x a number or an array. r2 is 0
    if y does not vary.

  Raises:
    UndeterminedError: For fewer than two distinct x, or three with an offset;
      with an offset also if the rows leave c, k and p free to trade.
  """
  lx, ly = logs_of(x=x, y=y)
  text = "y = c + k x^p" if offset else "y = k x^p"
  names = ("k", "p", "c") if offset else ("k", "p")
  require_rows(text, lx.size, names)
  free = "the exponent p is free"

  def enough(rows):
    require_values(text, len(names), free, x=lx[rows])

  def regress(rows, c=0.0):
    p, log_k = np.polyfit(lx[rows], np.log(np.exp(ly[rows]) - c), 1)
    value = np.log(c + np.exp(log_k + p * lx[rows]))
    loss = np.mean((value - ly[rows]) ** 2)
    return loss, {"k": float(np.exp(log_k)), "p": float(p), "c": float(c)}

  def solve(rows):
    enough(rows)
    if not offset:
      return regress(rows)
    low = np.exp(ly[rows].min())
    grid = low * np.linspace(0, 0.999, 400)
    best = min(range(grid.size), key=lambda i: regress(rows, grid[i])[0])
    return _golden(
      lambda c: regress(rows, c),
      grid[max(best - 1, 0)],
      grid[min(best + 1, grid.size - 1)],
    )

  every = np.arange(lx.size)
  loss, params = solve(every)

  def predict(x):
    return params.get("c", 0.0) + params["k"] * positive("x", x) ** params["p"]

  residual = np.log(predict(np.exp(lx))) - ly
  if offset:
    value = np.exp(residual + ly)
    share = 1 - params["c"] / value  # Of k x^p in the prediction.
    columns = {
      "k": share,
      "p": params["p"] * share * (lx - lx.mean()),
      "c": np.exp(ly.min()) / value,
    }
    require_determined(text, columns, residual, "Add x of a wider range.")
  else:
    params.pop("c")
  return Fit(
    params,
    float(loss),
    explained(residual, ly),
    predict,
    lambda rows: solve(rows)[1],
    lx.size,
  )


def cbs_law(x, critical, *, offset=False) -> Fit:
  """CBS = k x^p of data or model size: `power_law_fit` by its other name."""
  return power_law_fit(x, critical, offset=offset)


def shifted_power(L0, L1, *, E0=None, E1=None) -> Fit:
  """L1 = E1 + K (L0 - E0)^kappa between two losses of the same models.

  With both offsets given, the fit is a regression in logs. Take the offsets
  from the scaling law of each loss, and say which law: kappa depends on it.
  Without offsets, the fit is a grid over E0 and E1, each >= 0 and below its
  smallest loss, and a bounded least-squares fit from the best cell. Four
  parameters are weakly identified: see `kappa_profile`.

  Args:
    L0: [R] losses of the first kind.
    L1: [R] losses of the second kind.
    E0: Irreducible part of L0, or None.
    E1: Irreducible part of L1, or None.

  Returns:
    Fit with params K, kappa, E0, E1; `predict(L0)`, a number or an array,
    which raises ValueError for an L0 below E0.

  Raises:
    UndeterminedError: For fewer distinct L0 than parameters, or if the rows
      leave a combination of the parameters free. On a straight line (kappa =
      1) E0 and E1 are free to trade.
  """
  lx, _ = logs_of(L0=L0, L1=L1)
  names = ("K", "kappa") if E0 is not None else ("K", "kappa", "E0", "E1")
  require_rows(_SHIFTED, lx.size, names)
  free = "the parameters " + ", ".join(names) + " are free to trade"

  def enough(rows):
    require_values(_SHIFTED, len(names), free, L0=lx[rows])

  x, y = np.asarray(L0, float), np.asarray(L1, float)
  if (E0 is None) != (E1 is None):
    raise ValueError("shifted_power wants both of E0 and E1, or neither.")
  if E0 is not None and (np.min(x) <= E0 or np.min(y) <= E1):
    raise ValueError(
      f"E0={E0} and E1={E1} must lie below every loss ({np.min(x):.4g}, "
      f"{np.min(y):.4g})."
    )

  def solve(rows, start=None):
    enough(rows)
    if E0 is not None:
      return _regress(x[rows], y[rows], E0, E1)
    return _polish(x[rows], y[rows], start)

  every = np.arange(x.size)
  loss, params = solve(every)

  def predict(L0):
    L0 = positive("L0", L0)
    if np.any(L0 < params["E0"]):
      raise ValueError(
        f"L0={np.min(L0):.6g} is below the fitted E0={params['E0']:.6g}: the "
        "law has no value there. Predict from losses of at least E0."
      )
    over = L0 - params["E0"]
    return params["E1"] + params["K"] * over ** params["kappa"]

  residual = np.log(predict(x)) - np.log(y)
  if E0 is None:
    _settle_shifted(x, y, params, residual)
  return Fit(
    params,
    float(loss),
    explained(residual, np.log(y)),
    predict,
    lambda rows: solve(rows, params)[1],
    x.size,
  )


def kappa_profile(L0, L1, kappas) -> np.ndarray:
  """Best mean squared log error at each fixed kappa, over E0, E1, K.

  A flat profile means the exponent is not identified by the data.

  Args:
    L0: [R] losses of the first kind, four distinct ones or more.
    L1: [R] losses of the second kind.
    kappas: [M] exponents > 0.

  Returns:
    [M] errors; inf where no K > 0 fits.

  Raises:
    UndeterminedError: For fewer than four distinct L0: every exponent would
      fit.
  """
  lx, _ = logs_of(L0=L0, L1=L1)
  require_rows(_SHIFTED, lx.size, ("K", "kappa", "E0", "E1"))
  require_values(_SHIFTED, 4, "every exponent fits", L0=lx)
  kappas = positive("kappas", np.atleast_1d(kappas))
  x, y = np.asarray(L0, float), np.asarray(L1, float)
  shares = np.linspace(0, 0.995, 60)
  out = []
  for kappa in kappas:
    best = np.inf
    for e0 in shares * x.min():
      u = (x - e0) ** kappa
      # Linear in (E1, K): relative least squares with 0 <= E1 < min y.
      design = np.stack([1 / y, u / y], axis=1)
      e1, k = np.linalg.lstsq(design, np.ones(y.size), rcond=None)[0]
      if not 0 <= e1 < y.min():
        e1 = 0.0
        k = np.sum(u / y) / np.sum((u / y) ** 2)
      if k > 0:
        best = min(best, np.mean((np.log(e1 + k * u) - np.log(y)) ** 2))
    out.append(best)
  return np.array(out)


def _settle_shifted(x, y, params, residual):
  """Raises if the rows leave a combination of all four parameters free."""
  K, kappa, E0, E1 = (params[k] for k in ("K", "kappa", "E0", "E1"))
  value = E1 + K * (x - E0) ** kappa
  over = np.maximum(x - E0, PRECISION * x)
  signal = K * over**kappa / value
  columns = {
    "K": signal,
    "kappa": kappa * signal * (np.log(over) - np.log(over).mean()),
    "E0": -kappa * signal * x.min() / over,
    "E1": y.min() / value,
  }
  advice = "Give E0 and E1 from fits of each loss, or add rows."
  require_determined(_SHIFTED, columns, residual, advice, _WIDEST)


def _regress(x, y, e0, e1):
  """Log-linear regression at given offsets, scored in log L1."""
  kappa, log_k = np.polyfit(np.log(x - e0), np.log(y - e1), 1)
  value = e1 + np.exp(log_k) * (x - e0) ** kappa
  loss = np.mean((np.log(value) - np.log(y)) ** 2)
  named = {"K": np.exp(log_k), "kappa": kappa, "E0": e0, "E1": e1}
  return loss, {k: float(v) for k, v in named.items()}


def _polish(x, y, start):
  """Bounded soft-l1 fit of all four, from the best cell of an offset grid."""
  from scipy import optimize

  shares = np.linspace(0, 0.98, 25)
  if start is None:
    cells = [
      _regress(x, y, a * x.min(), b * y.min()) for a in shares for b in shares
    ]
    start = min(cells, key=lambda cell: cell[0])[1]

  def value(theta):
    log_k, kappa, e0, e1 = theta
    return e1 + np.exp(log_k) * (x - e0) ** kappa

  def residual(theta):
    return np.log(value(theta)) - np.log(y)

  top = [np.inf, 10.0, 0.999 * x.min(), 0.999 * y.min()]
  first = [np.log(start["K"]), start["kappa"], start["E0"], start["E1"]]
  first = np.clip(first, [-np.inf, 0.01, 0, 0], top)
  out = optimize.least_squares(
    residual,
    first,
    bounds=([-np.inf, 0.0, 0.0, 0.0], np.array(top) * 1.0000001),
    loss="soft_l1",
    f_scale=1e-2,
    x_scale=[1, 1, x.min(), y.min()],
    xtol=1e-14,
    ftol=1e-14,
    gtol=1e-14,
    max_nfev=2000,
  )
  log_k, kappa, e0, e1 = out.x
  named = {"K": np.exp(log_k), "kappa": kappa, "E0": e0, "E1": e1}
  loss = np.mean(residual(out.x) ** 2)
  return loss, {k: float(v) for k, v in named.items()}


def _golden(fn, low, high):
  """Golden-section search of fn(c)[0]; returns fn at the best point."""
  ratio = (5**0.5 - 1) / 2
  for _ in range(60):
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    if fn(left)[0] < fn(right)[0]:
      high = right
    else:
      low = left
  return fn((low + high) / 2)
