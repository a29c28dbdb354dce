"""Step-size schedules as plain NumPy arrays, and their conversion to stages.

Every schedule function returns eta [T] for updates 1, ..., T. The first
argument is the largest step size. `schedule(eta, batch)` adds a batch size.
Stages without a step are never dropped silently.
"""

import warnings

import numpy as np

from .checks import check_no_empty_stage, check_schedule, check_stages
from .types import Schedule, Stages


def schedule(eta, batch) -> Schedule:
  """Pairs step sizes [T] with batch sizes, a number or [T]."""
  eta = np.asarray(eta, np.float64)
  batch = np.broadcast_to(np.asarray(batch, np.float64), eta.shape)
  out = Schedule(eta, batch)
  check_schedule(out)
  return out


def constant(eta, T) -> np.ndarray:
  """eta throughout."""
  return np.full(T, float(eta))


def cosine(eta, T) -> np.ndarray:
  """Half cosine to zero, eta (1 + cos(pi x)) / 2 with x = t / T."""
  return eta * (1 + np.cos(np.pi * _progress(T))) / 2


def quarter_cosine(eta, T) -> np.ndarray:
  """Quarter cosine to zero, eta cos(pi x / 2); its mean is 2 / pi."""
  return eta * np.cos(np.pi * _progress(T) / 2)


def linear(eta, T) -> np.ndarray:
  """Linear decay to zero, eta (1 - x)."""
  return eta * (1 - _progress(T))


def power(eta, T, p) -> np.ndarray:
  """eta (1 - x)^p."""
  return eta * (1 - _progress(T)) ** p


def wsd(eta, T, decay=0.2, warmup=0.0) -> np.ndarray:
  """Warmup, stable, linear decay over the last fraction `decay`.

  Args:
    eta: Step size of the stable part.
    T: Number of updates.
    decay: Fraction of T that decays; 0 for none.
    warmup: Fraction of T that warms up; 0 for none.

  Returns:
    eta [T].

  Raises:
    ValueError: If the fractions do not fit, or if one of them is above 0 but
      less than one update of T.
  """
  if not 0 <= warmup <= 1 - decay <= 1:
    raise ValueError(
      f"warmup={warmup} and decay={decay} are fractions with a sum <= 1."
    )
  for name, part in (("warmup", warmup), ("decay", decay)):
    if 0 < part * T < 1:
      raise ValueError(
        f"{name}={part} of T={T} updates is less than one update: the stage "
        f"would be left out. Set {name}=0, or at least {1 / T:.3g}."
      )
  x = _progress(T)
  down = np.minimum(1, (1 - x) / decay) if decay else np.ones(T)
  up = np.minimum(1, (np.arange(T) + 1) / max(warmup * T, 1))
  return eta * down * up


def anytime(eta, T, gamma) -> np.ndarray:
  """Horizon-free eta t^-gamma; see `gamma_star`."""
  return eta * np.arange(1.0, T + 1) ** -gamma


def inv_sqrt(eta, T, alpha) -> np.ndarray:
  """Horizon-free eta sqrt(alpha / (t + alpha)), alpha in updates."""
  return eta * np.sqrt(alpha / (np.arange(1.0, T + 1) + alpha))


def step_decay(eta, steps, factor) -> np.ndarray:
  """Divides by `factor` after each of the given numbers of steps.

  Args:
    eta: Step size of the first stage.
    steps: [K] updates of each stage, whole and >= 1.
    factor: Ratio of one stage's step size to the next one's.

  Returns:
    eta [T], T the sum of the steps.

  Raises:
    ValueError: If a stage has no step, or a broken one.
  """
  steps = np.asarray(steps, np.float64)
  check_no_empty_stage(steps, "Merge them with a neighbour.")
  if np.any(steps != np.floor(steps)):
    raise ValueError(f"steps={steps} must be whole numbers of updates.")
  steps = steps.astype(int)
  return np.repeat(eta * float(factor) ** -np.arange(steps.size), steps)


def discretise(schedule: Schedule, factor) -> Stages:
  """Piecewise-constant approximation: a new stage whenever eta or B moves.

  Args:
    schedule: Any schedule.
    factor: Ratio > 1 of eta or B at which a stage ends. The eta of a stage is
      the mean (so that sum eta is kept), its 1 / B the mean of 1 / B.

  Returns:
    The stages, each of one update or more; about 2 ln(range) / ln(factor) of
    them.
  """
  if factor <= 1:
    raise ValueError(f"factor={factor} must be above 1, e.g. 1.1.")
  check_schedule(schedule)
  eta, batch = np.asarray(schedule.eta), np.asarray(schedule.batch)
  width = np.log(factor)
  tiny = np.finfo(float).tiny
  key = np.stack([np.log(np.maximum(eta, tiny)), np.log(batch)])
  starts, anchor = [0], key[:, 0]
  for t in range(1, eta.size):
    if np.any(np.abs(key[:, t] - anchor) > width):
      starts.append(t)
      anchor = key[:, t]
  steps = np.diff([*starts, eta.size])
  means = [np.add.reduceat(x, starts) / steps for x in (eta, 1 / batch)]
  return Stages(means[0], 1 / means[1], steps.astype(np.float64))


def unroll(stages: Stages) -> Schedule:
  """One entry per update; every length must be whole and >= 1.

  Raises:
    ValueError: If a stage has no step, or a broken one.
  """
  check_stages(stages)
  check_no_empty_stage(
    stages.steps, "Merge them with a neighbour, or drop them yourself."
  )
  steps = np.asarray(stages.steps)
  if np.any(steps != np.floor(steps)):
    raise ValueError(f"stages.steps={steps} must be whole numbers to unroll.")
  count = steps.astype(int)
  return Schedule(
    np.repeat(np.asarray(stages.eta, np.float64), count),
    np.repeat(np.asarray(stages.batch, np.float64), count),
  )


def stages_of_steps(eta, batch, steps) -> Stages:
  """Stages from numbers or vectors, broadcast to one length."""
  arrays = np.broadcast_arrays(
    *(np.atleast_1d(np.asarray(x, np.float64)) for x in (eta, batch, steps))
  )
  out = Stages(*arrays)
  check_stages(out)
  return out


def seesaw(
  stages: Stages, alpha, *, rule="nsgd", whole=False, lr_power=None
) -> Stages:
  """Replaces step-size decay by batch growth, at the same samples per stage.

  A step decay eta / alpha^k at constant B becomes eta / a^k and B b^k. The rule
  "nsgd" keeps a sqrt(b) = alpha: normalised updates while noise dominates. At
  its boundary, a = sqrt(alpha) and b = alpha, the effective step does not grow.
  The rule "sgd" keeps a b = alpha: for small eta lam the risk as a function of
  samples depends on eta / B alone. Its default is a = b = sqrt(alpha).

  Args:
    stages: A decay; stage k's factor is read from its eta relative to the
      first, so any schedule from `discretise` will do.
    alpha: Reference decay per stage (> 1), used to scale `lr_power`; the
      conversion is exact for stages whose eta falls by powers of it.
    rule: "nsgd" or "sgd".
    whole: Round batches to whole samples and lengths to whole steps, carrying
      the remaining samples into the next stage. A stage whose samples do not
      fill one batch is left out with a warning; its samples go on.
    lr_power: a = alpha^lr_power; default 1/2.

  Returns:
    The new stages, fewer steps for the same samples.

  Raises:
    ValueError: If a stage has a step size of 0 (its batch would be infinite),
      or, with `whole`, if no stage fills one batch.

  References:
    Seesaw, arXiv 2510.14717.
  """
  if rule not in ("nsgd", "sgd"):
    raise ValueError(f"rule={rule!r} must be 'nsgd' or 'sgd'.")
  if alpha <= 1:
    raise ValueError(f"alpha={alpha} must be above 1.")
  check_stages(stages)
  if np.any(np.asarray(stages.eta) <= 0):
    raise ValueError(
      f"stages.eta={np.asarray(stages.eta)} must be > 0: a step size of 0 "
      "would become an infinite batch. Drop the last stage."
    )
  share = 0.5 if lr_power is None else lr_power
  decay = np.asarray(stages.eta) / stages.eta[0]  # = alpha^-k.
  eta = stages.eta[0] * decay**share
  growth = decay ** -((1 - share) * (2 if rule == "nsgd" else 1))
  batch = stages.batch * growth
  samples = np.asarray(stages.batch) * stages.steps
  if not whole:
    return Stages(eta, batch, samples / batch)
  batch = np.maximum(np.round(batch), 1.0)
  steps, carried = np.zeros_like(samples), 0.0
  for k in range(samples.size):
    steps[k] = np.floor((samples[k] + carried) / batch[k] + 1e-9)
    carried += samples[k] - steps[k] * batch[k]
  return _without_empty(Stages(eta, batch, steps))


def serial_fraction(before: Stages, after: Stages) -> float:
  """Serial steps of `after` relative to `before`."""
  return float(np.sum(after.steps) / np.sum(before.steps))


def _without_empty(stages: Stages) -> Stages:
  """Leaves out stages of 0 steps, and says so."""
  kept = stages.steps >= 1
  if not np.any(kept):
    check_no_empty_stage(stages.steps, "Give more samples or smaller batches.")
  if not np.all(kept):
    warnings.warn(
      f"{np.sum(~kept)} of {kept.size} stages (the first is stage "
      f"{np.argmin(kept)}) hold less than one batch and are left out; their "
      "samples go to later stages. Use fewer stages, e.g. a larger factor in "
      "discretise, to keep them all.",
      stacklevel=3,
    )
  return Stages(*(np.asarray(x)[kept] for x in stages))


def _progress(T):
  return np.arange(T) / T
