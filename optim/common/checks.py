"""Checks shared by the factories: name, value, rule and a way out.

The checks run when a transform is built, so a mistake is a plain `ValueError`
before anything is traced. Under `optax.inject_hyperparams` numbers arrive as
arrays. A traced number is not checked: its check has run at `init`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


def decay(name: str, value: Any) -> None:
  """Raises unless value is in [0, 1), the range of the decay of an average."""
  if not isinstance(value, jax.core.Tracer) and not 0 <= float(value) < 1:
    raise ValueError(
      f"{name}={value} must be in [0, 1): it is the share of the old average "
      f"kept at a step, e.g. 0.95.{_rounded(value)}"
    )


def positive(name: str, value: Any, *, zero_too: bool = False) -> None:
  """Raises unless value > 0 (or >= 0)."""
  if isinstance(value, jax.core.Tracer):
    return
  if not (float(value) >= 0 if zero_too else float(value) > 0):
    rule = ">= 0" if zero_too else "> 0"
    raise ValueError(f"{name}={value} must be {rule}, e.g. 1e-8.")


def count(name: str, value: Any) -> None:
  """Raises unless value is a Python integer >= 1: it shapes the program."""
  whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
  if not whole:
    raise ValueError(
      f"{name}={value!r} must be a Python int: it decides what is compiled and "
      "cannot be traced. Under optax.inject_hyperparams list it in "
      f"static_args, e.g. static_args=({name!r},)."
    )
  if value < 1:
    raise ValueError(f"{name}={value} must be >= 1, e.g. 10.")


def choice(name: str, value: Any, choices: Sequence[str]) -> None:
  """Raises unless value is one of the choices."""
  if value not in choices:
    raise ValueError(
      f"{name}={value!r} is not known; take one of {', '.join(choices)}."
    )


def scalar_or_schedule(name: str, value: Any) -> None:
  """Raises unless value is a schedule, or a number or array >= 0."""
  if callable(value):
    return
  try:
    positive(name, value, zero_too=True)
  except TypeError as error:
    raise ValueError(
      f"{name}={value!r} must be a number, an array or a schedule, e.g. 1e-3."
    ) from error


def warmup(name: str, value: Any, num_steps: Any) -> None:
  """Raises unless `name_warmup` is None, or > 0 steps towards a number."""
  if num_steps is None:
    return
  if callable(value):
    raise ValueError(
      f"{name}_warmup={num_steps} warms a number up, but {name} is a schedule; "
      f"leave {name}_warmup out."
    )
  positive(f"{name}_warmup", num_steps)


def instance(name: str, value: Any, kind: type) -> None:
  """Raises unless value is an instance of a class of this package."""
  if not isinstance(value, kind):
    raise ValueError(
      f"{name}={value!r} must be an optim.{kind.__name__}, e.g. "
      f"optim.{kind.__name__}()."
    )


def _rounded(value: Any) -> str:
  """The advice for a decay that became 1 when it was stored in few bits."""
  if not isinstance(value, jax.Array) or float(value) != 1:
    return ""
  return (
    " If it was 0.999: optax.inject_hyperparams stores numbers in the type of "
    "the parameters, and in bfloat16 0.999 is 1. Give it "
    "hyperparam_dtype=jnp.float32."
  )
