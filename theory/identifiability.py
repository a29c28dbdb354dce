"""What the rows of a fit determine, and what they leave free.

A fit of too few or too similar rows has a perfect r2 and means nothing. Counts
are checked before a fit: rows, and distinct values of each input. After the
fit the Jacobian J of the log predictions in relative parameters is checked: a
direction v of unit length, in which the predictions move by s = |J v|, has
the standard error sigma / s, with sigma the noise of the residuals. A standard
error above 1 means that the parameters may change by a factor e along v and
the rows do not notice: the direction is free. NumPy on the host.
"""

import numpy as np

# Losses and steps are known to this relative precision at best.
PRECISION = 1e-6
_LINE = (
  1e-2  # Deviations from a line in logs that rounding makes (one percent).
)
_SAME = 1e-9  # Logs closer than this are one value.


class UndeterminedError(ValueError):
  """The rows of a fit do not determine its law; the message says why."""


def require_rows(law: str, rows: int, names) -> None:
  """Raises if there are fewer rows than parameters.

  Args:
    law: The law, for the message.
    rows: Number of rows.
    names: Names of the parameters.

  Raises:
    UndeterminedError: With the number of rows that are missing.
  """
  missing = len(names) - rows
  if missing > 0:
    raise UndeterminedError(
      f"{law} has {len(names)} parameters ({', '.join(names)}) but the "
      f"data have {rows} {_plural('row', rows)}. Add at least {missing} more "
      f"{_plural('row', missing)}."
    )


def require_values(law: str, least: int, free: str, **logs) -> None:
  """Raises if an input takes fewer than `least` distinct values.

  Args:
    law: The law, for the message.
    least: Distinct values needed of each input.
    free: What stays free otherwise, with {name} for the input.
    **logs: [R] logs of each input.

  Raises:
    UndeterminedError: With the input, its values and what is free.
  """
  for name, x in logs.items():
    count = distinct(x)
    if count < least:
      raise UndeterminedError(
        f"{name} takes {count} distinct {_plural('value', count)}, and {law} "
        f"needs {least}: {free.format(name=name)}. Add at least "
        f"{least - count} more {_plural('value', least - count)} of {name}."
      )


def require_off_line(law: str, sigma: float, **logs) -> None:
  """Raises if two inputs lie on one line in logs.

  On the line log D = c + s log N the exponents of N and D can change places
  without any change of the law on the rows.

  Args:
    law: The law, for the message.
    sigma: Noise of the log losses; deviations below it, or of one percent,
      do not count.
    **logs: [R] logs of the two inputs.

  Raises:
    UndeterminedError: With the direction that is free.
  """
  first, second = logs
  centred = np.stack([x - x.mean() for x in logs.values()])
  deviation = np.linalg.svd(centred, compute_uv=False)[1]
  if deviation / np.sqrt(centred.shape[1]) <= max(_LINE, sigma):
    raise UndeterminedError(
      f"log {first} and log {second} lie on one line (to a percent), so {law} "
      f"is not determined: the exponents of {first} and {second} are free to "
      f"change places. Add rows off the line, e.g. other {second} at the same "
      f"{first}."
    )


def require_determined(
  law: str, columns: dict, residual_R, advice: str, limit: float = 1.0
) -> None:
  """Raises if some combination of the parameters is free.

  Args:
    law: The law, for the message.
    columns: Parameter -> [R] derivative of the log prediction by the log of
      the parameter (or by the parameter in a unit of its own).
    residual_R: [R] log residuals at the solution.
    advice: What to add to the rows.
    limit: Largest standard error allowed along any direction.

  Raises:
    UndeterminedError: With the combination that is free.
  """
  jacobian_RP = np.stack(list(columns.values()), axis=1)
  if not np.all(np.isfinite(jacobian_RP)):
    raise UndeterminedError(
      f"the fit of {law} ran off to infinity: the rows do not bound its "
      f"parameters. {advice}"
    )
  _, size_P, direction_PP = np.linalg.svd(jacobian_RP, full_matrices=False)
  sigma = noise(residual_R, len(columns))
  stderr = sigma / max(size_P[-1], 1e-300)
  if stderr > limit:
    raise UndeterminedError(
      f"the {residual_R.size} rows do not determine {law}: the direction "
      f"{_combination(columns, direction_PP[-1])} of its parameters (in "
      f"relative changes) is free, with a standard error of {stderr:.2g} "
      f"where at most {limit:g} is allowed. {advice}"
    )


def noise(residual_R, params: int) -> float:
  """Standard deviation of residuals, with the robust one if it is smaller.

  Few outliers must not make good rows look uninformative, so the median
  absolute residual counts where it is smaller. Never below `PRECISION`.
  """
  rows = residual_R.size
  if rows <= params:
    return PRECISION
  scale = np.sqrt(rows / (rows - params))
  usual = np.sqrt(np.mean(residual_R**2)) * scale
  robust = 1.4826 * np.median(np.abs(residual_R)) * scale
  return max(float(min(usual, robust)), PRECISION)


def logs_of(**columns) -> list:
  """Logs of positive vectors of one length.

  Raises:
    ValueError: With the name of the column that is not positive and finite.
  """
  arrays = {k: np.asarray(v, np.float64) for k, v in columns.items()}
  shapes = {k: v.shape for k, v in arrays.items()}
  if len(set(shapes.values())) != 1 or next(iter(arrays.values())).ndim != 1:
    raise ValueError(f"fits want vectors of one length, got {shapes}.")
  return [np.log(positive(k, v)) for k, v in arrays.items()]


def positive(name: str, x):
  """x as a float64 array; raises ValueError unless it is finite and > 0."""
  x = np.asarray(x, np.float64)
  good = np.isfinite(x) & (x > 0)
  if not np.all(good):
    raise ValueError(
      f"{name} must be finite and positive to take its log, got "
      f"{np.ravel(x)[np.ravel(~good)][0]:g}."
    )
  return x


def explained(residual_R, y_R) -> float:
  """Share of the variance of y that is explained; 0 if y does not vary."""
  spread = np.sum((y_R - y_R.mean()) ** 2)
  if spread <= 1e-24 * y_R.size:
    return 0.0
  return float(1 - np.sum(residual_R**2) / spread)


def distinct(log_x) -> int:
  """Number of distinct values among logs."""
  return int(np.sum(np.diff(np.sort(log_x)) > _SAME)) + 1


def _combination(names, direction_P) -> str:
  """A direction as text, largest part first and positive."""
  order = np.argsort(-np.abs(direction_P))
  direction_P = direction_P * np.sign(direction_P[order[0]])
  names = list(names)
  parts = [
    f"{direction_P[k]:+.2f} {names[k]}"
    for k in order
    if abs(direction_P[k]) >= 0.1
  ]
  return " ".join(parts).lstrip("+")


def _plural(word, count) -> str:
  return word if count == 1 else word + "s"
