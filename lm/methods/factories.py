"""Factories of transforms by their names, and the arguments that they take.

Any factory of `optim`, `optax` or `optax.contrib` that takes a `learning_rate`
is an optimiser here. A factory of these modules that makes a transform without
one is a direction, for the optimisers that wrap a direction.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax
import optax.contrib

import optim

from ..config.names import nearest

_MODULES = (optim, optax, optax.contrib)
# Arguments that the trainer sets: which leaves decay, which axes of a leaf are
# stacked, inputs and outputs, what a leaf is for, and where stacks lie.
MASKS = ("mask", "weight_decay_mask")
DIMENSIONS = ("dimension_numbers", "muon_weight_dimension_numbers")
LABELS = "labels"
PLACEMENT = "placement"
SET_HERE = ("learning_rate", *MASKS, *DIMENSIONS, LABELS, PLACEMENT)
# Arguments that are transforms: a section {"name": ..., "kwargs": {...}}.
DIRECTIONS = ("base", "direction")

# Factories of `optim` that other keys ask for.
_LOTION = (
  "set config.quant.method='lotion', config.quant.strength and a plain "
  "optimiser, config.optim.name='adamw' or 'soap'."
)
_ELSEWHERE = {
  "lotion_adamw": _LOTION,
  "gauss_newton": "it cannot be its own inner optimiser, nor that of a role.",
  "gauss_newton_microsteps": "it cannot be an inner optimiser.",
  "gauss_newton_solver": "take 'gauss_newton'.",
}


def find(
  name: str, key: str = "config.optim.name"
) -> Callable[..., optax.GradientTransformation]:
  """The factory called `name` in `optim`, `optax` or `optax.contrib`.

  The three modules are searched in this order. Where two have the name, the
  module can stand before it: "optax.adafactor".

  Args:
    name: Of the factory.
    key: Of the configuration that gives the name, for messages.

  Raises:
    ValueError: If there is none, or it takes no learning rate.
  """
  where, _, last = name.rpartition(".")
  modules = [m for m in _MODULES if where in ("", m.__name__)]
  for module in modules:
    factory = getattr(module, last, None)
    if callable(factory) and not last.startswith("_"):
      if module is optim and last in _ELSEWHERE:
        raise ValueError(f"{key}={name!r}: {_ELSEWHERE[last]}")
      if "learning_rate" in inspect.signature(factory).parameters:
        return factory
      raise ValueError(
        f"{key}={name!r} is no optimiser: it takes no "
        f"learning_rate.{nearest(name, names())}"
      )
  raise ValueError(
    f"{key}={name!r} is not in optim, optax or optax.contrib."
    f"{nearest(name, names())} Known: {', '.join(names())}."
  )


def find_direction(name: str, key: str) -> Callable[..., Any]:
  """The factory of a transform without a learning rate, e.g. "scale_by_soap".

  Args:
    name: Of the factory, as for `find`.
    key: Of the configuration that gives the name, for messages.

  Raises:
    ValueError: If there is none.
  """
  where, _, last = name.rpartition(".")
  for module in _MODULES:
    factory = getattr(module, last, None)
    if where in ("", module.__name__) and last.startswith("scale_by_"):
      if callable(factory):
        return factory
  known = sorted(
    {n for m in _MODULES for n in dir(m) if n.startswith("scale_by_")}
  )
  raise ValueError(
    f"{key}={name!r} is no direction of optim, optax or optax.contrib."
    f"{nearest(name, known)} Known: {', '.join(known)}."
  )


def takes(name: str, argument: str) -> bool:
  """Whether a factory that `find` accepts has an argument."""
  return argument in parameters(find(name))


def names() -> list[str]:
  """Every optimiser that `find` accepts, sorted."""
  found = set()
  for module in _MODULES:
    for name in dir(module):
      factory = getattr(module, name)
      hidden = name in _ELSEWHERE or name.startswith(("_", "scale_by_"))
      if hidden or not inspect.isfunction(factory):
        continue
      if "learning_rate" in inspect.signature(factory).parameters:
        found.add(name)
  return sorted(found)


def parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Parameters that a configuration may set by name."""
  variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
  return {
    k: p
    for k, p in inspect.signature(factory).parameters.items()
    if p.kind not in variadic and k not in SET_HERE
  }


def argument_problems(
  name: str, factory: Callable[..., Any], kwargs: Any, where: str
) -> list[str]:
  """What is wrong with the arguments of a factory.

  Args:
    name: Of the factory, for messages.
    factory: The factory.
    kwargs: Its arguments, {name: value}.
    where: The key of the configuration that has the arguments.
  """
  allowed = parameters(factory)
  found = [
    f"{where}.{key} is set by the trainer; remove it."
    for key in kwargs
    if key in SET_HERE
  ]
  for key in kwargs:
    if key not in allowed and key not in SET_HERE:
      found.append(
        f"{where}.{key} is not an argument of {name}.{nearest(key, allowed)} "
        f"It takes: {', '.join(_open(allowed))}. Replace all of them at once "
        f"with, e.g., --{where}='{{{_example(allowed)}}}'."
      )
  found += [
    f"{where}.{key} is missing: {name} has no default for it."
    for key, p in allowed.items()
    if p.default is inspect.Parameter.empty and key not in kwargs
  ]
  for key in DIRECTIONS:
    if key in kwargs and key in allowed:
      found += _direction_problems(kwargs[key], f"{where}.{key}")
  return found


def _direction_problems(section: Any, where: str) -> list[str]:
  """What is wrong with a transform that is an argument."""
  keys = set(section) if isinstance(section, Mapping) else set()
  if "name" not in keys or not keys <= {"name", "kwargs"}:
    return [
      f"{where}={section!r} must be a section of a name and kwargs, e.g. "
      "{'name': 'scale_by_muon', 'kwargs': {'beta': 0.9}}."
    ]
  try:
    factory = find_direction(section["name"], f"{where}.name")
  except ValueError as error:
    return [str(error)]
  kwargs = dict(section.get("kwargs", {}))
  return argument_problems(section["name"], factory, kwargs, f"{where}.kwargs")


def _open(parameters: dict[str, inspect.Parameter]) -> list[str]:
  return [
    k if p.default is inspect.Parameter.empty else f"{k}={p.default!r}"
    for k, p in parameters.items()
  ]


def _example(parameters: dict[str, inspect.Parameter]) -> str:
  """One argument with its default, written as in a Python dictionary."""
  for key, p in parameters.items():
    if isinstance(p.default, int | float):
      return f'"{key}": {p.default}'
  return ""
