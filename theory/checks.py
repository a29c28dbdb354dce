"""Checks of concrete arguments, keyed by the argument's name.

An argument has the same name in every function of the package (`problem`,
`eta`, `batch`, `beta`, `t`, `schedule`, `stages`), so one table has the checks.
Nothing can be raised inside a transformation: there, bad values give
non-finite results.
"""

import numpy as np

MANY_NODES = 4096  # Beyond it the O(D^2) closed forms take seconds.


def check(arguments: dict) -> None:
  """Raises ValueError for the first argument that breaks its rule."""
  for name, value in arguments.items():
    if name in CHECKS:
      CHECKS[name](value)


def check_problem(problem) -> None:
  """Shapes agree, values are finite and non-negative."""
  lam = np.asarray(problem.lam)
  if lam.ndim != 1 or lam.size == 0:
    raise ValueError(
      f"problem.lam has shape {lam.shape}; it must be a non-empty vector. "
      "For many problems at once use jax.vmap inside theory.float64()."
    )
  for name in ("lam", "m0", "mult"):
    value = np.asarray(getattr(problem, name))
    if value.shape != lam.shape:
      raise ValueError(
        f"problem.{name} has shape {value.shape} but problem.lam has "
        f"{lam.shape}; give one value per eigenvalue."
      )
    _non_negative(f"problem.{name}", value)
  for name in ("sigma2", "tau"):
    value = np.asarray(getattr(problem, name))
    if value.ndim:
      raise ValueError(f"problem.{name} must be a scalar, got {value.shape}.")
    _non_negative(f"problem.{name}", value)
  kappa = np.asarray(problem.kappa)
  if kappa.shape not in ((), lam.shape):
    raise ValueError(
      f"problem.kappa has shape {kappa.shape}; give a scalar or one value "
      f"per eigenvalue, {lam.shape}."
    )
  _non_negative("problem.kappa", kappa)


def check_eta(eta) -> None:
  """Step sizes are finite and >= 0; beyond the stability limit is allowed."""
  _non_negative("eta", eta)


def check_batch(batch) -> None:
  """Batch sizes are >= 1; infinity is gradient descent."""
  batch = np.asarray(batch)
  if not np.all(batch >= 1):
    raise ValueError(
      f"batch={_worst(batch, batch >= 1)} is below 1. Batch sizes are counts "
      "of samples >= 1 (real values are fine, np.inf is full batch)."
    )


def check_beta(beta) -> None:
  """Decays of exponential averages are in [0, 1)."""
  beta = np.asarray(beta)
  good = (beta >= 0) & (beta < 1)
  if not np.all(good):
    raise ValueError(
      f"beta={_worst(beta, good)} must be in [0, 1): it is the share of the "
      "old average kept at an update, e.g. 0.99."
    )


def check_times(t) -> None:
  """Times are finite and >= 0."""
  _non_negative("t", t)


def check_schedule(schedule) -> None:
  """`eta` and `batch` are vectors of one length."""
  _same_vectors("schedule", schedule)
  check_eta(schedule.eta)
  check_batch(schedule.batch)


def check_stages(stages) -> None:
  """`eta`, `batch` and `steps` are vectors of one length."""
  _same_vectors("stages", stages)
  check_eta(stages.eta)
  check_batch(stages.batch)
  _non_negative("stages.steps", stages.steps)


def check_codes(codes) -> None:
  """Codes of a grid increase and are symmetric about zero."""
  codes = np.asarray(codes)
  rising = codes.ndim == 1 and len(codes) > 1 and np.all(np.diff(codes) > 0)
  if not rising or not np.array_equal(codes, -codes[::-1]):
    raise ValueError(
      f"codes={codes} must increase and be symmetric, e.g. np.arange(-7, 8) "
      "for four bits."
    )


def check_step_size(step_size) -> None:
  """The spacing of a grid is positive, or None: set by the weights."""
  if step_size is not None:
    value = np.asarray(step_size)
    if not np.all(np.isfinite(value) & (value > 0)):
      raise ValueError(
        f"step_size={value} must be finite and > 0, or None to follow the "
        "largest weight."
      )


def check_share(share) -> None:
  """A share of a run is in (0, 1]."""
  share = np.asarray(share)
  good = (share > 0) & (share <= 1)
  if not np.all(good):
    raise ValueError(
      f"share={_worst(share, good)} must be in (0, 1]: it is the part of the "
      "run that is averaged, e.g. 0.5 for the second half."
    )


def check_updates(T) -> None:
  """Numbers of updates are whole and >= 1."""
  T = np.asarray(T)
  good = np.isfinite(T) & (T >= 1) & (T == np.floor(T))
  if not np.all(good):
    raise ValueError(
      f"T={_worst(T, good)} must be a whole number of updates >= 1."
    )


def check_no_empty_stage(steps, advice: str) -> None:
  """Raises for stages without a step, which would vanish without a word."""
  empty = np.flatnonzero(np.asarray(steps) < 1)
  if empty.size:
    raise ValueError(
      f"{empty.size} of {np.size(steps)} stages (the first is stage "
      f"{empty[0]}) have less than one step and would be left out. {advice}"
    )


def _same_vectors(name, values) -> None:
  shapes = {k: np.shape(v) for k, v in values._asdict().items()}
  if len(set(shapes.values())) != 1 or len(np.shape(values.eta)) != 1:
    raise ValueError(
      f"{name} has shapes {shapes}; its fields must be vectors of one length. "
      "Use np.full(len(eta), value) for a constant."
    )


def _non_negative(name, value) -> None:
  value = np.asarray(value)
  good = np.isfinite(value) & (value >= 0)
  if not np.all(good):
    raise ValueError(f"{name}={_worst(value, good)} must be finite and >= 0.")


def _worst(value, good):
  """The first offending entry, for a message."""
  return np.ravel(value)[np.ravel(~good)][0]


CHECKS = {
  "problem": check_problem,
  "eta": check_eta,
  "batch": check_batch,
  "beta": check_beta,
  "t": check_times,
  "ts": check_times,
  "codes": check_codes,
  "step_size": check_step_size,
  "share": check_share,
  "T": check_updates,
  "schedule": check_schedule,
  "stages": check_stages,
}
