"""A factory of transforms by its name: the one place where `lm` meets `optim`.

Any factory of `optim`, `optax` or `optax.contrib` that takes a `learning_rate`
is an optimiser here. Keyword arguments go to the factory unchanged; only their
names are checked, against its signature.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
import optax.contrib

import optim

from ..config.names import nearest
from ..config.schema import Config
from ..model import params as param_table

_MODULES = (optim, optax, optax.contrib)
# The names under which factories take what the parameter table knows: which
# leaves decay, and which axes of a leaf are stacked, inputs and outputs.
_MASKS = ("mask", "weight_decay_mask")
_DIMENSIONS = ("dimension_numbers", "muon_weight_dimension_numbers")
FACTORS = "max_precond_dim"  # An argument of methods with Kronecker factors.
_PLACEMENT = "placement"
_STORAGE = "storage"
_OURS = ("learning_rate", *_MASKS, *_DIMENSIONS, _PLACEMENT)


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


class Choice(NamedTuple):
  """A factory, its arguments, and what its keys are called in messages."""

  name: str
  learning_rate: float  # Peak.
  kwargs: tuple[tuple[str, Any], ...]
  where: str = "config.optim"  # Section of `kwargs`.
  named: str = "config.optim.name"


def of_config(config: Config) -> Choice:
  """The optimiser of `config.optim`."""
  o = config.optim
  return Choice(o.name, o.learning_rate, o.kwargs)


def problems(config: Config, choice: Choice, *, tables: bool) -> list[str]:
  """What is wrong with an optimiser's name or keyword arguments.

  Args:
    config: Of the run.
    choice: The optimiser.
    tables: Whether the embedding or the head is among its parameters.
  """
  name, kwargs = choice.name, dict(choice.kwargs)
  try:
    factory = find(name, choice.named)
  except ValueError as error:
    return [str(error)]
  parameters, where = _parameters(factory), f"{choice.where}.kwargs"
  found = [
    f"{where}.{key} is set by the trainer; remove it."
    for key in kwargs
    if key in _OURS
  ]
  unknown = [k for k in kwargs if k not in parameters and k not in _OURS]
  for key in unknown:
    found.append(
      f"{where}.{key} is not an argument of {name}."
      f"{nearest(key, parameters)} It takes: {', '.join(_open(parameters))}. "
      "Replace all of them at once with, e.g., "
      f"--{where}='{{{_example(parameters)}}}'."
    )
  missing = [
    key
    for key, p in parameters.items()
    if p.default is inspect.Parameter.empty
    and key not in kwargs
    and key not in _OURS
  ]
  found += [
    f"{where}.{key} is missing: {name} has no default for it."
    for key in missing
  ]
  if tables and config.optim.embeddings == "one_sided":
    if FACTORS not in parameters:
      found.append(
        f"config.optim.embeddings='one_sided' needs a method with Kronecker "
        f"factors (soap, shampoo), not {name}; set 'elementwise'."
      )
  return found


def make(
  config: Config,
  choice: Choice,
  learning_rate: optax.Schedule,
  specs: Any,
  placement: optim.Placement = optim.Placement(),  # noqa: B008
) -> optax.GradientTransformationExtraArgs:
  """The transform of an optimiser; clipping is the train step's.

  The first update is traced, not computed, so that a bad value is found now.

  Args:
    config: Of the run.
    choice: An optimiser without `problems`.
    learning_rate: Schedule of the update count.
    specs: Table of the parameters (`lm/model/params.py`), with
      `optax.MaskedNode` for parameters of other optimisers. The table says what
      `weight_decay` acts on (with `config.optim.decay` "matrices"), and the
      axes of the matrices. `config.optim.embeddings` says whether the embedding
      and the head are matrices.
    placement: On the mesh, for the methods with such an argument.

  Returns:
    A transform that ignores extra arguments it does not know.

  Raises:
    ValueError: If the factory or the first update refuses a value.
  """
  factory = find(choice.name, choice.named)
  try:
    kwargs = arguments(config, choice, specs, placement)
    tx = factory(learning_rate=learning_rate, **kwargs)
    tx = optax.with_extra_args_support(tx)
    jax.eval_shape(_first_update(tx), param_table.abstract(specs))
  except (TypeError, ValueError, AttributeError) as error:
    raise ValueError(
      f"{choice.where}.kwargs={dict(choice.kwargs)} was refused by "
      f"{choice.name}: {str(error).splitlines()[0]}"
    ) from error
  return tx


def arguments(
  config: Config, choice: Choice, specs: Any, placement: optim.Placement
) -> dict[str, Any]:
  """Keyword arguments of a factory, with what the table and the mesh say."""
  kwargs = dict(choice.kwargs)
  parameters = inspect.signature(find(choice.name, choice.named)).parameters
  if config.optim.decay == "matrices":
    mask = param_table.decay_mask(specs)
    kwargs |= {key: mask for key in _MASKS if key in parameters}
  for key, make_numbers in zip(_DIMENSIONS, (_ours, _optax), strict=True):
    if key in parameters:
      kwargs[key] = _dimension_numbers(
        specs, make_numbers, config.optim.embeddings
      )
  if _PLACEMENT in parameters:
    kwargs[_PLACEMENT] = placement
  if _STORAGE in kwargs:  # Configurations are data: {"mu": "bfloat16"}.
    kwargs[_STORAGE] = optim.Storage(**kwargs[_STORAGE])
  return kwargs


def _first_update(
  tx: optax.GradientTransformationExtraArgs,
) -> Callable[[Any], Any]:
  def update(params):
    loss = jax.numpy.zeros(())
    return tx.update(params, tx.init(params), params, value=loss)

  return update


def metrics(opt_state: Any) -> dict[str, jax.Array]:
  """What a method's state tells about its health; {} for most methods."""
  counts = optim.refresh_counts(opt_state)
  if counts is None:
    return {}
  return {
    "optim/refresh_failures": counts.failures,
    "optim/rejected_gradients": counts.rejections,
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


def takes(name: str, argument: str) -> bool:
  """Whether a factory that `find` accepts has an argument."""
  return argument in _parameters(find(name))


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


def _dimension_numbers(
  specs: Any, make_numbers: Callable[..., Any], embeddings: str
) -> Any:
  """Numbers of each matrix; None for the leaves that are none.

  Args:
    specs: Table of the parameters.
    make_numbers: (layout, sides that get a factor or None for all) -> numbers.
    embeddings: elementwise, the embedding and the head are no matrices;
      one_sided, they are, with a factor on the side of the width only.
  """

  def numbers(leaf, layout):
    if leaf.role == "hidden":
      return make_numbers(layout, None)
    if leaf.role in ("input", "output") and embeddings == "one_sided":
      width = 0 if leaf.axes[layout.inputs[0]] == "embed" else 1
      return make_numbers(layout, (width,))
    return None

  return jax.tree.map(numbers, specs, param_table.matrix_layouts(specs))


def _ours(
  layout: param_table.MatrixLayout, factors: tuple[int, ...] | None
) -> optim.DimensionNumbers:
  sides = (layout.inputs, layout.outputs)
  return optim.DimensionNumbers(sides, layout.stack, factors)


def _optax(
  layout: param_table.MatrixLayout, factors: tuple[int, ...] | None
) -> Any:
  del factors
  return optax.contrib.MuonDimensionNumbers(layout.inputs, layout.outputs)


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Parameters that a configuration may set by name."""
  variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
  parameters = inspect.signature(factory).parameters
  return {
    k: p
    for k, p in parameters.items()
    if p.kind not in variadic and k not in _OURS
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
