"""From the name of a factory to its transform: where `lm` meets `optim`.

Keyword arguments go to the factory unchanged; only their names are checked,
against its signature (`factories.py`).
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
import optax.contrib

import optim

from ..config.schema import Config
from ..model import params as param_table
from . import factories

FACTORS = "max_precond_dim"  # An argument of methods with Kronecker factors.


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
  try:
    factory = factories.find(choice.name, choice.named)
  except ValueError as error:
    return [str(error)]
  found = factories.argument_problems(
    choice.name, factory, dict(choice.kwargs), f"{choice.where}.kwargs"
  )
  if tables and config.optim.embeddings == "one_sided":
    if not factories.takes(choice.name, FACTORS):
      found.append(
        f"config.optim.embeddings='one_sided' needs a method with Kronecker "
        f"factors (soap, shampoo), not {choice.name}; set 'elementwise'."
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
  factory = factories.find(choice.name, choice.named)
  try:
    kwargs = arguments(config, choice, specs, placement)
    tx = factory(learning_rate=learning_rate, **kwargs)
    tx = optax.with_extra_args_support(tx)
    jax.eval_shape(_first_update(config, tx), param_table.abstract(specs))
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
  factory = factories.find(choice.name, choice.named)
  return _filled(config, factory, dict(choice.kwargs), specs, placement)


def _filled(
  config: Config,
  factory: Callable[..., Any],
  kwargs: dict[str, Any],
  specs: Any,
  placement: optim.Placement,
) -> dict[str, Any]:
  """The arguments of a factory; sections become what the factory wants."""
  parameters = inspect.signature(factory).parameters
  made = {
    key: _value(config, parameters[key], value, specs, placement)
    for key, value in kwargs.items()
  }
  if config.optim.decay == "matrices":
    mask = param_table.decay_mask(specs)
    made |= {key: mask for key in factories.MASKS if key in parameters}
  makers = zip(factories.DIMENSIONS, (_ours, _optax), strict=True)
  for key, make_numbers in makers:
    if key in parameters:
      made[key] = _dimension_numbers(
        specs, make_numbers, config.optim.embeddings
      )
  if factories.LABELS in parameters:
    made |= _roles(config, specs)
  if factories.PLACEMENT in parameters:
    made[factories.PLACEMENT] = placement
  return made


def _roles(config: Config, specs: Any) -> dict[str, Any]:
  """What each leaf is for, and its axes; gains have stacks as well."""
  # Of a tied model the embedding is the head.
  table = "embedding" if config.model.tied else "other"
  label = dict(input=table, hidden="other", output="head")
  return {
    factories.LABELS: jax.tree.map(
      lambda leaf: label.get(leaf.role, "norm"), specs
    ),
    factories.DIMENSIONS[0]: jax.tree.map(
      lambda leaf, layout: _ours(layout, None),
      specs,
      param_table.matrix_layouts(specs),
    ),
  }


def _value(
  config: Config,
  parameter: inspect.Parameter,
  value: Any,
  specs: Any,
  placement: optim.Placement,
) -> Any:
  """An argument; configurations are data, e.g. {"mu": "bfloat16"}."""
  if not isinstance(value, Mapping):
    return value
  if parameter.name in factories.DIRECTIONS:
    factory = factories.find_direction(value["name"], parameter.name)
    kwargs = dict(value.get("kwargs", {}))
    return factory(**_filled(config, factory, kwargs, specs, placement))
  if parameter.name == "weight_decay":
    return optim.Decay(**value)
  if hasattr(parameter.default, "_replace"):  # A NamedTuple such as `Storage`.
    return type(parameter.default)(**value)
  return value


def _first_update(
  config: Config, tx: optax.GradientTransformationExtraArgs
) -> Callable[[Any], Any]:
  def update(params):
    extra = {"value": jax.numpy.zeros(())}
    if config.optim.name == "sophia_g":  # Its method makes the estimate.
      extra["estimate"] = params
    return tx.update(params, tx.init(params), params, **extra)

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
