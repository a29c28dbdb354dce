"""From `config.optim` to a transform: the one place where `lm` meets `optim`.

Any factory of `optim`, `optax` or `optax.contrib` that takes a
`learning_rate` is an optimiser here, by its name. Keyword arguments go to it
unchanged, after its signature accepted their names.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib

import optim

from ..config.errors import ConfigError
from ..config.names import nearest
from ..config.schema import Config
from ..model import params as param_table
from ..weights import rounded
from . import newton

# The names under which factories take what the parameter table knows: which
# leaves decay, and which axes of a leaf are stacked, inputs and outputs.
_MASKS = ("mask", "weight_decay_mask")
_DIMENSIONS = ("dimension_numbers", "muon_weight_dimension_numbers")
_FACTORS = "max_precond_dim"  # An argument of methods with Kronecker factors.
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
  newton.OUTER: "it cannot be its own inner optimiser.",
  newton.MICRO: "it cannot be an inner optimiser.",
  "gauss_newton_solver": f"take {newton.OUTER!r}.",
}


def check_config(config: Config) -> None:
  """Checks `config.optim` and what goes with it, as `problems` tells.

  Raises:
    ConfigError: If something is wrong.
  """
  if found := problems(config):
    raise ConfigError("\n".join(found))


def problems(config: Config) -> list[str]:
  """What is wrong with `config.optim`'s name or keyword arguments."""
  name, kwargs = inner_name(config), dict(config.optim.kwargs)
  found = list(newton.problems(config)) if newton.chosen(config) else []
  try:
    factory = find(name)
  except ValueError as error:
    return [*found, str(error)]
  parameters = _parameters(factory)
  found += [
    f"config.optim.kwargs.{key} is set by the trainer; remove it."
    for key in kwargs
    if key in _OURS
  ]
  unknown = [k for k in kwargs if k not in parameters and k not in _OURS]
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
    and key not in _OURS
  ]
  found += [
    f"config.optim.kwargs.{key} is missing: {name} has no default for it."
    for key in missing
  ]
  if config.optim.embeddings == "one_sided" and _FACTORS not in parameters:
    found.append(
      f"config.optim.embeddings='one_sided' needs a method with Kronecker "
      f"factors (soap, shampoo), not {name}; set 'elementwise'."
    )
  if config.quant.curvature == "factors" and _FACTORS not in parameters:
    found.append(
      "config.quant.curvature='factors' needs a method that has some (soap, "
      f"shampoo), not {name}; take 'empirical' or 'sampled'."
    )
  return found


def inner_name(config: Config) -> str:
  """The factory that `config.optim.kwargs` are for."""
  inner = newton.chosen(config)
  return config.gauss_newton.optimizer if inner else config.optim.name


def make(
  config: Config,
  learning_rate: optax.Schedule,
  specs: Any,
  placement: optim.Placement = optim.Placement(),  # noqa: B008
  quantizers: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """The transform of a configuration; clipping is the train step's.

  Args:
    config: Its `optim` section must have no `problems`.
    learning_rate: Schedule of the update count.
    specs: Table of the parameters (`lm/model/params.py`). With
      `config.optim.decay` "matrices" it says what `weight_decay` acts on;
      matrix methods are told the axes of the matrices;
      `config.optim.embeddings` says whether the embedding and the head are any.
    placement: On the mesh, for the methods that take it.
    quantizers: Of the parameters, for `config.quant.method` "lotion".

  Returns:
    A transform that ignores extra arguments it does not know.

  Raises:
    ValueError: If the factory refuses a value.
  """
  factory, kwargs = find(inner_name(config)), dict(config.optim.kwargs)
  parameters = inspect.signature(factory).parameters
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
  try:
    if _STORAGE in kwargs:  # Configurations are data: {"mu": "bfloat16"}.
      kwargs[_STORAGE] = optim.Storage(**kwargs[_STORAGE])
    tx = factory(learning_rate=learning_rate, **kwargs)
  except (TypeError, ValueError) as error:
    raise ValueError(_refused(config, error)) from error
  tx = optax.with_extra_args_support(tx)
  return rounded.penalized(config, tx, quantizers, _factors(kwargs))


def _factors(kwargs: dict[str, Any]) -> Callable[[Any, Any], Any]:
  """`optim.factor_diagonal` with the options its optimiser was made with."""
  shared = inspect.signature(optim.factor_diagonal).parameters
  options = {k: v for k, v in kwargs.items() if k in shared}
  options["decay"] = kwargs.get("shampoo_beta") or kwargs.get("b2", 0.95)
  return functools.partial(optim.factor_diagonal, **options)


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


def metrics(opt_state: Any) -> dict[str, jax.Array]:
  """What a method's state tells about its health; {} for most methods."""
  counts = optim.refresh_counts(opt_state)
  if counts is None:
    return {}
  return {
    "optim/refresh_failures": counts.failures,
    "optim/rejected_gradients": counts.rejections,
  }


def find(name: str) -> Callable[..., optax.GradientTransformation]:
  """The factory called `name` in `optim`, `optax` or `optax.contrib`.

  Raises:
    ValueError: If there is none, or it takes no learning rate.
  """
  for module in (optim, optax, optax.contrib):
    factory = getattr(module, name, None)
    if callable(factory) and not name.startswith("_"):
      if name in _ELSEWHERE:
        raise ValueError(f"config.optim.name={name!r}: {_ELSEWHERE[name]}")
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
      hidden = name in _ELSEWHERE or name.startswith(("_", "scale_by_"))
      if hidden or not inspect.isfunction(factory):
        continue
      if "learning_rate" in inspect.signature(factory).parameters:
        found.add(name)
  return sorted(found)


def _refused(config: Config, error: Exception) -> str:
  return (
    f"config.optim.kwargs={dict(config.optim.kwargs)} was refused by "
    f"{inner_name(config)}: {str(error).splitlines()[0]}"
  )


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

  is_spec = lambda x: isinstance(x, param_table.ParamSpec)  # noqa: E731
  layouts = param_table.matrix_layouts(specs)
  return jax.tree.map(numbers, specs, layouts, is_leaf=is_spec)


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
