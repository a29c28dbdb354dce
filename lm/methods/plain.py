"""Optimisers by name: one for all parameters, or one for each role.

Roles are those of the table of parameters (`lm/model/params.py`):
`config.optim.by_role` names an optimiser for some of them. All other parameters
have the optimiser of `config.optim`.
"""

import dataclasses
import math
from typing import Any

import jax
import optax

import optim

from ..config.names import nearest
from ..config.schema import Config
from ..model import params as param_table
from ..model.transformer import Transformer
from . import optimizer, schedule
from .optimizer import Choice

ROLES = ("input", "hidden", "output", "gain", "bias")
REST = "rest"  # Label of the parameters without an optimiser of their own.


@dataclasses.dataclass(frozen=True)
class Role:
  """An entry of `config.optim.by_role`; what is left out is `config.optim`'s.

  Attributes:
    name: Of the factory; "" for that of `config.optim`.
    learning_rate: Peak of the same schedule.
    kwargs: Keyword arguments; None for those of `config.optim` if the factory
      is the same, else none.
  """

  name: str = ""
  learning_rate: float | None = None
  kwargs: Any = None


def choices(config: Config) -> dict[str, Choice]:
  """The optimiser of each role of `by_role`, and of "rest"."""
  o, found = config.optim, {REST: optimizer.of_config(config)}
  for role, fields in o.by_role:
    entry, where = Role(**dict(fields)), f"config.optim.by_role.{role}"
    kwargs, rate = entry.kwargs, entry.learning_rate
    if kwargs is None:
      kwargs = o.kwargs if entry.name in ("", o.name) else ()
    found[role] = Choice(
      entry.name or o.name,
      o.learning_rate if rate is None else rate,
      kwargs,
      where,
      f"{where}.name",
    )
  return found


def problems(config: Config) -> list[str]:
  """What is wrong with `config.optim`."""
  found = [
    problem
    for role, fields in config.optim.by_role
    for problem in _role_problems(role, fields)
  ]
  if found:
    return found
  every = choices(config)
  for label, choice in every.items():
    roles = {label} if label in ROLES else set(ROLES) - every.keys()
    tables = bool(roles & {"input", "output"})
    found += optimizer.problems(config, choice, tables=tables)
  return found


def make(
  config: Config,
  model: Transformer,
  specs: Any,
  placement: optim.Placement = optim.Placement(),  # noqa: B008
  quantizers: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """The transform of `config.optim`; see `Method.make` for the arguments."""
  del model, quantizers
  every = choices(config)

  def label(spec: param_table.ParamSpec) -> str:
    """Of the first choice that is the same."""
    own = every.get(spec.role, every[REST])
    return next(key for key, c in every.items() if c[:3] == own[:3])

  def made(key: str, specs: Any) -> optax.GradientTransformationExtraArgs:
    rate = schedule.learning_rate(config, every[key].learning_rate)
    return optimizer.make(config, every[key], rate, specs, placement)

  labels = jax.tree.map(label, specs)
  keys = sorted(set(jax.tree.leaves(labels)))
  if len(keys) == 1:
    return made(keys[0], specs)
  masked = lambda key: jax.tree.map(  # noqa: E731
    lambda spec: spec if label(spec) == key else optax.MaskedNode(), specs
  )
  return optax.partition({key: made(key, masked(key)) for key in keys}, labels)


def _role_problems(role: str, fields: Any) -> list[str]:
  where, known = f"config.optim.by_role.{role}", ROLES
  if role not in known:
    return [
      f"config.optim.by_role has {role!r}, which is not one of "
      f"{', '.join(known)}.{nearest(role, known)}"
    ]
  if not isinstance(fields, tuple):
    return [f"{where}={fields!r} must be a section, e.g. {{'name': 'muon'}}."]
  names = [field.name for field in dataclasses.fields(Role)]
  found = [
    f"{where}.{key} is not one of {', '.join(names)}.{nearest(key, names)}"
    for key, _ in fields
    if key not in names
  ]
  entry = {"name": "", "learning_rate": 0.0, "kwargs": ()} | dict(fields)
  rate = entry["learning_rate"]
  if isinstance(rate, bool) or not isinstance(rate, int | float):
    found.append(f"{where}.learning_rate={rate!r} must be a number.")
  elif not 0 <= rate < math.inf:
    found.append(f"{where}.learning_rate={rate} must be in [0, inf).")
  if not isinstance(entry["name"], str):
    found.append(f"{where}.name={entry['name']!r} must be a string.")
  if not isinstance(entry["kwargs"], tuple):
    found.append(f"{where}.kwargs={entry['kwargs']!r} must be a section.")
  return found
