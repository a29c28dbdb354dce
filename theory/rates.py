"""Exponents of power-law problems, predicted and measured.

The problems have lam_i = i^-a and lam_i (w*_i)^2 = i^-b. With Gam = sum eta_t,
an average has the bias Gam^{-(b-1)/a} and the variance sigma2 Gam^{1/a} / T.
The predictions balance the two. Other notations: Paquette et al. have a =
2 alpha, b = 2 alpha + 2 beta; functional scaling laws have beta = a, s =
(b - 1) / a.
"""

from typing import NamedTuple

import numpy as np


class Exponents(NamedTuple):
  """Powers of T, T the number of updates at fixed batch.

  Attributes:
    bias: Power of the bias.
    variance: Power of the variance; 0 is a floor, -inf means no variance.
    risk: The larger of the two powers.
  """

  bias: float
  variance: float
  risk: float


def gamma_star(a, b) -> float:
  """Best horizon-free decay eta_t ~ t^-gamma under averaging: (1 - a/b)+.

  Source: arXiv 2602.03702 (exponent from a secondary page); the slope it
  gives, T^{-(b-1)/b}, was measured here.
  """
  return max(1 - a / b, 0.0)


def exponents(a, b, gamma=0.0, average="tail", *, noise=True, p=3.0):
  """Predicted power of T for eta_t ~ t^-gamma.

  Args:
    a: Capacity exponent > 1.
    b: Source exponent > 1.
    gamma: Decay of the step size in [0, 1), or "tuned": the step size is tuned
      to the horizon, and decays to zero or the iterates are averaged.
    average: "tail", "uniform", "poly" or "last". The bias of a uniform average
      falls no faster than Gam^-2, that of a polynomial one than Gam^-2(p+1).
    noise: Whether there is label noise. With label noise `bias` is the power of
      the signal alone. Without, `bias` also holds the noise of the features,
      which outlasts the signal for b > 2a: its power is -(1 - gamma)(2 - 1/a),
      whatever is averaged.
    p: Power of the polynomial average.

  Returns:
    `Exponents`.
  """
  if a <= 1 or b <= 1:
    raise ValueError(f"a={a} and b={b} must both exceed 1 (finite traces).")
  caps = {"tail": np.inf, "last": np.inf, "uniform": 2.0, "poly": 2 * (p + 1)}
  if average not in caps:
    raise ValueError(f"average={average!r} is none of {list(caps)}.")
  if gamma == "tuned":
    power = -(b - 1) / max(a, b)
    return Exponents(power, power if b > a else -np.inf, power)
  if not 0 <= gamma < 1:
    raise ValueError(f"gamma={gamma} must lie in [0, 1), or be 'tuned'.")
  grow = 1 - gamma  # Gam ~ T^(1 - gamma).
  bias = -grow * min((b - 1) / a, caps[average])
  if not noise:
    # Below the signal, the sampling noise of the features: kernel K_pp.
    bias = -grow * min((b - 1) / a, 2 - 1 / a)
    return Exponents(bias, -np.inf, bias)
  variance = -gamma if average == "last" else grow / a - 1
  return Exponents(bias, variance, max(bias, variance))


def slope(ts, risks, window=10.0) -> float:
  """Least-squares slope of log risk against log t over the last decade.

  Args:
    ts: [T] times > 0, increasing.
    risks: [T] positive risks.
    window: Ratio of the last to the first time used.

  Returns:
    The slope, each log-interval weighted alike.

  Raises:
    ValueError: If fewer than two positive risks lie in the window, or if the
      times do not increase.
  """
  ts, risks = np.asarray(ts, float), np.asarray(risks, float)
  if ts.ndim != 1 or ts.shape != risks.shape or not ts.size:
    raise ValueError(
      f"ts {ts.shape} and risks {risks.shape} must be vectors of one length."
    )
  if not (ts[0] > 0 and np.all(np.diff(ts) > 0)):
    raise ValueError(
      "ts must be > 0 and increase; sort the times and drop t = 0."
    )
  used = ts >= ts[-1] / window
  if used.sum() < 2 or not np.all(risks[used] > 0):
    raise ValueError(
      f"slope needs two or more positive risks within a factor {window} of "
      f"t={ts[-1]}; got {used.sum()}."
    )
  grid = np.linspace(np.log(ts[used][0]), np.log(ts[-1]), 50)
  values = np.interp(grid, np.log(ts[used]), np.log(risks[used]))
  return float(np.polyfit(grid, values, 1)[0])
