"""Claims of the notebooks on averages and on critical batches, by loops.

In the eigenbasis, with Gaussian features and label noise sigma2,

    z' = (1 - eta lam)^2 z + (eta^2 / B) lam (lam z + lam.z + sigma2)

is the second moment of the error. The error of a mean needs the moments between
two times as well: for s < t they are (1 - eta lam)^(t - s) z_s.
"""

import numpy as np
import pytest
from scipy import optimize

import theory

A = 1.5
INDEX = np.arange(1.0, 41)
LAM = INDEX**-A


def _mean_risk(b, eta, batch, first, last, sigma2):
  """Risk of the mean of w_first, ..., w_last, as a loop over updates."""
  z = INDEX ** (A - b)
  cross, total = np.zeros(LAM.size), np.zeros(LAM.size)
  keep = 1 - eta * LAM
  for t in range(last + 1):
    if t >= first:
      # E e_t (e_first + ... + e_(t-1)) is `cross`.
      total += z + 2 * cross
      cross = keep * (cross + z)
    noise = LAM * z + LAM @ z + sigma2
    z = keep**2 * z + eta**2 / batch * LAM * noise
  return LAM @ total / (last - first + 1) ** 2 / 2


@pytest.mark.parametrize("first", [0, 1000])
def test_bias_of_a_mean_is_that_of_the_loop(first):
  eta, last = 0.1, 1999
  problem = theory.from_spectrum(LAM, INDEX ** (A - 5), 1.0)
  count = last - first + 1
  bias = theory.tail_average_at(problem, eta, 1, first, count).bias
  looped = _mean_risk(5.0, eta, 1, first, last, 0.0)
  assert bias == pytest.approx(looped, rel=1e-9)
  # At an infinite batch only the signal is left; here that is much less.
  signal = theory.tail_average_at(problem, eta, np.inf, first, count).bias
  assert signal == pytest.approx(
    _mean_risk(5.0, eta, np.inf, first, last, 0.0), rel=1e-9
  )
  assert signal < 0.8 * bias


@pytest.mark.parametrize("average", ["uniform", "tail"])
def test_noise_of_features_outlasts_the_signal(average):
  """For b > 2a the bias falls as T^-(2 - 1/a), whatever is averaged."""
  a, b = 1.5, 5.0
  problem = theory.power_law(1e9, a, b, 1.0, nodes=4)
  eta = 0.1 / (problem.lam @ problem.mult)
  T = np.round(np.logspace(7, 8, 5))
  half = np.ceil(T / 2)
  first, count = (0, T) if average == "uniform" else (T - half, half)
  bias = theory.tail_average_at(problem, eta, 1, first, count).bias
  slope = theory.slope(T, bias)
  assert slope == pytest.approx(-(2 - 1 / a), abs=0.01)
  known = theory.exponents(a, b, average=average, noise=False).bias
  assert slope == pytest.approx(known, abs=0.01)
  # The exponent of the signal alone is another one.
  signal = theory.tail_average_at(problem, eta, np.inf, first, count).bias
  power = {"uniform": -2.0, "tail": -(b - 1) / a}[average]
  assert theory.slope(T, signal) == pytest.approx(power, abs=0.01)
  known = theory.exponents(a, b, average=average).bias
  assert known == pytest.approx(power)


def _critical(best_risk, samples, low, high):
  """Batch whose 1.2 D samples reach the best risk of D samples at batch 1."""
  target = best_risk(1.0, samples)
  return np.exp(
    optimize.brentq(
      lambda x: best_risk(np.exp(x), 1.2 * samples) - target,
      np.log(low),
      np.log(high),
      xtol=0.02,
    )
  )


def _looped_best(b, sigma2):
  def best_risk(batch, samples):
    steps = int(samples / batch)
    count = max(round(0.5 * steps), 1)

    def risk(log_eta):
      first = steps - count + 1
      return _mean_risk(b, np.exp(log_eta), batch, first, steps, sigma2)

    # Below the stability limit of every batch that is tried.
    top = np.log(min(1.9, 2 / (1 + LAM.sum() / batch)))
    return optimize.minimize_scalar(
      risk, bounds=(top - 7, top), method="bounded", options={"xatol": 0.01}
    ).fun

  return best_risk


def _exact_best(problem):
  def best_risk(batch, samples):
    steps = np.floor(samples / batch)
    return theory.best_step(problem, batch, steps, "tail:0.5").risk

  return best_risk


def _slope(batches, samples):
  return np.log(batches[1] / batches[0]) / np.log(samples[1] / samples[0])


@pytest.mark.parametrize("b", [3.0, 5.0])
def test_critical_batch_of_little_data_grows_faster_than_the_law(b):
  """With few steps at B* the law D^(1 - a/b) is not yet reached."""
  samples = (300.0, 3000.0)
  best_risk = _looped_best(b, 0.25)
  batches = [_critical(best_risk, D, 2, D / 4) for D in samples]
  assert _slope(batches, samples) > 1 - A / b + 0.08
  # The loop's best risk is the closed form's.
  problem = theory.from_spectrum(LAM, INDEX ** (A - b), 0.25)
  found = _exact_best(problem)(batches[0], 1.2 * samples[0])
  looped = best_risk(batches[0], 1.2 * samples[0])
  assert found == pytest.approx(looped, rel=2e-3)


def test_critical_batch_of_much_data_follows_the_law():
  """At b = 5 the slope is 0.70 only where B* leaves hundreds of steps."""
  best_risk = _exact_best(theory.power_law(1e4, A, 5.0, 0.25, nodes=2))
  batch = 3.85e6  # B* at D = 1e9, to 4 %; B* at 1e10 is 10^0.70 times larger.
  assert 1e9 / batch > 200
  for samples, middle in ((1e9, batch), (1e10, batch * 10**0.70)):
    target = best_risk(1.0, samples)
    assert best_risk(middle / 1.04, 1.2 * samples) < target
    assert best_risk(middle * 1.04, 1.2 * samples) > target
