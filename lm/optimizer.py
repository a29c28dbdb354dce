"""From `config.optim` to a transform: the one place where `lm` meets `optim`.

Any factory of `optim`, `optax` or `optax.contrib` that takes a
`learning_rate` is an optimiser here, by its name. Keyword arguments go to it
unchanged, after its signature accepted their names.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib

import optim

from .config import Config
from .rules import nearest

# The names under which factories take the tree of leaves that decay.
_MASKS = ("mask", "weight_decay_mask")


def problems(config: Config) -> list[str]:
  """What is wrong with `config.optim`'s name or keyword arguments."""
  name, kwargs = config.optim.name, dict(config.optim.kwargs)
  try:
    factory = find(name)
  except ValueError as error:
    return [str(error)]
  parameters = _parameters(factory)
  own = {"learning_rate", *_MASKS}
  found = [
    f"config.optim.kwargs.{key} is set by the trainer; remove it."
    for key in kwargs
    if key in own
  ]
  unknown = [k for k in kwargs if k not in parameters and k not in own]
  for key in unknown:
    found.append(
      f"config.optim.kwargs.{key} is not an argument of {name}."
      f"{nearest(key, parameters)} It takes: {', '.join(_open(parameters))}. "
      "Replace all of them at once with, e.g., "
      f"--config.optim.kwargs='{{{_example(parameters)}}}'."
    )
  missing = [
    key
    for key, p in parameters.items()
    if p.default is inspect.Parameter.empty
    and key not in kwargs
    and key not in own
  ]
  found += [
    f"config.optim.kwargs.{key} is missing: {name} has no default for it."
    for key in missing
  ]
  return found


def make(
  config: Config, learning_rate: optax.Schedule, decay_mask: Any
) -> optax.GradientTransformationExtraArgs:
  """The transform of a configuration; clipping is the train step's.

  Args:
    config: Its `optim` section must have no `problems`.
    learning_rate: Schedule of the update count.
    decay_mask: Tree of booleans like the parameters, True where
      `weight_decay` acts; used if `config.optim.decay` is "matrices".

  Returns:
    A transform that ignores extra arguments it does not know.

  Raises:
    ValueError: If the factory refuses a value.
  """
  factory, kwargs = find(config.optim.name), dict(config.optim.kwargs)
  if config.optim.decay == "matrices":
    parameters = inspect.signature(factory).parameters
    kwargs |= {key: decay_mask for key in _MASKS if key in parameters}
  try:
    tx = factory(learning_rate=learning_rate, **kwargs)
  except (TypeError, ValueError) as error:
    raise ValueError(_refused(config, error)) from error
  return optax.with_extra_args_support(tx)


def check(
  config: Config, tx: optax.GradientTransformationExtraArgs, params: Any
) -> None:
  """Traces an update without computing it, so that a bad value shows now.

  Args:
    config: What `tx` was made from.
    tx: The transform.
    params: Shapes of the parameters.

  Raises:
    ValueError: If the transform cannot update them.
  """

  def update(params):
    loss = jax.numpy.zeros(())
    return tx.update(params, tx.init(params), params, value=loss)

  try:
    jax.eval_shape(update, params)
  except (TypeError, ValueError, AttributeError) as error:
    raise ValueError(_refused(config, error)) from error


def find(name: str) -> Callable[..., optax.GradientTransformation]:
  """The factory called `name` in `optim`, `optax` or `optax.contrib`.

  Raises:
    ValueError: If there is none, or it takes no learning rate.
  """
  for module in (optim, optax, optax.contrib):
    factory = getattr(module, name, None)
    if callable(factory) and not name.startswith("_"):
      if "learning_rate" in inspect.signature(factory).parameters:
        return factory
      raise ValueError(
        f"config.optim.name={name!r} is no optimiser: it takes no "
        f"learning_rate.{nearest(name, names())}"
      )
  raise ValueError(
    f"config.optim.name={name!r} is not in optim, optax or optax.contrib."
    f"{nearest(name, names())} Known: {', '.join(names())}."
  )


def names() -> list[str]:
  """Every optimiser that `find` accepts, sorted."""
  found = set()
  for module in (optim, optax, optax.contrib):
    for name in dir(module):
      factory = getattr(module, name)
      if name.startswith(("_", "scale_by_")) or not inspect.isfunction(factory):
        continue
      if "learning_rate" in inspect.signature(factory).parameters:
        found.add(name)
  return sorted(found)


def _refused(config: Config, error: Exception) -> str:
  return (
    f"config.optim.kwargs={dict(config.optim.kwargs)} was refused by "
    f"{config.optim.name}: {str(error).splitlines()[0]}"
  )


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Parameters that a configuration may set by name."""
  variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
  parameters = inspect.signature(factory).parameters
  return {
    k: p
    for k, p in parameters.items()
    if p.kind not in variadic and k not in ("learning_rate", *_MASKS)
  }


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
