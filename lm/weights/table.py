"""From what is trained to the weights that the model sees.

A run names its entry by `config.train.weights`; `config.quant.method` "qat" and
"rat" choose "rounded". To add one, write a file in this room and a line in
`WEIGHTS`. Everything that shows weights to the model goes through `seen`: the
update, evaluations, samples, exports, Gauss-Newton, estimates of memory.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from ..config import options as option_keys
from ..config.schema import Config
from ..model import params as param_table
from . import identity, rounded

TRAIN, EVAL, EXPORT = "train", "eval", "export"  # The modes.


class Weights(NamedTuple):
  """One way from the trained leaves to the weights, as plain functions.

  An entry with `options` gets an instance of them as the keyword `options`, in
  every function but `problems`.

  Attributes:
    extra_specs: (config, specs) -> tree of `ParamSpec`: leaves that are trained
      beside the model's leaves, or, with `frozen`, instead of them. The names
      at the top of the tree differ from the model's. specs is the table of the
      model.
    seen: (config, specs, params, frozen, step, key, mode) -> tree like specs,
      differentiable in params. params holds what is trained; frozen holds the
      model's own leaves if they are not trained. step is the number of updates;
      key depends on the seed and on step. mode is "train", "eval" or "export";
      an export is a plain dense model.
    frozen: Whether the model's own leaves are carried but not trained. They
      start from the usual initialisation or from `config.train.init_from`.
    problems: config -> what is wrong with it for this entry.
    options: Frozen dataclass with the keys of `config.train.weights_kwargs` and
      their defaults; None: there are none.
  """

  extra_specs: Callable[..., Any]
  seen: Callable[..., Any]
  frozen: bool = False
  problems: Callable[[Config], Iterable[str]] = lambda config: ()
  options: type | None = None


def no_extra(config: Config, specs: Any) -> Any:
  """No leaves beside the model's."""
  del config, specs
  return {}


WEIGHTS: dict[str, Weights] = {
  "identity": Weights(extra_specs=no_extra, seen=identity.seen),
  "rounded": Weights(
    extra_specs=no_extra, seen=rounded.seen, problems=rounded.problems
  ),
}


def name(config: Config) -> str:
  """The entry of a configuration."""
  if config.quant.method in ("qat", "rat"):
    return "rounded"
  return config.train.weights


def freezes(config: Config) -> bool:
  """Whether the model's own leaves are not trained."""
  return WEIGHTS[name(config)].frozen


def trained_specs(config: Config, specs: Any) -> Any:
  """Table of what is trained.

  Args:
    config: Without `problems`.
    specs: Table of the model.
  """
  entry = WEIGHTS[name(config)]
  extra = entry.extra_specs(config, specs, **_options(config))
  return extra if entry.frozen else specs | extra


def init(config: Config, specs: Any, key: jax.Array) -> tuple[Any, Any]:
  """What is trained, and what is carried but not trained, at the start.

  Args:
    config: Without `problems`.
    specs: Table of the model.
    key: From `config.seed`.

  Returns:
    (params, frozen); frozen is () without `Weights.frozen`.
  """
  model = param_table.init_params(config.model, key)
  entry = WEIGHTS[name(config)]
  extra = entry.extra_specs(config, specs, **_options(config))
  drawn = param_table.init_leaves(extra, key, config.model.init_cut)
  return started(config, drawn if entry.frozen else model | drawn, model)


def started(config: Config, params: Any, model: Any) -> tuple[Any, Any]:
  """(params, frozen) with the model's own leaves replaced.

  Args:
    config: Without `problems`.
    params: What is trained.
    model: Values of the model's own leaves.
  """
  if freezes(config):
    return params, model
  return params | model, ()


def seen(
  config: Config,
  specs: Any,
  params: Any,
  frozen: Any,
  step: jax.Array,
  mode: str,
) -> Any:
  """The weights that the model sees, a tree like specs.

  Args:
    config: Without `problems`.
    specs: Table of the model.
    params: What is trained.
    frozen: What is carried but not trained; ().
    step: Updates made.
    mode: TRAIN, EVAL or EXPORT.
  """
  key = rounded.key_of(config, step, "weights")
  entry = WEIGHTS[name(config)]
  return entry.seen(
    config, specs, params, frozen, step, key, mode, **_options(config)
  )


def problems(config: Config) -> list[str]:
  """What is wrong with `config.train.weights` and its own keys."""
  t, method = config.train, config.quant.method
  path = "config.train.weights"
  if found := [*option_keys.unknown(t.weights, WEIGHTS, path)]:
    return found
  if t.weights not in ("identity", name(config)):
    return [
      f"config.train.weights={t.weights!r} with config.quant.method="
      f"{method!r}: {method} is the entry 'rounded'. Set one of them to "
      "'identity' or 'none'."
    ]
  if t.weights not in ("identity", "rounded") and method == "lotion":
    return [
      f"config.train.weights={t.weights!r} with config.quant.method='lotion': "
      "the penalty is for trained weights that the model sees as they are. Set "
      "'identity'."
    ]
  pairs = t.weights_kwargs
  return option_keys.entry_problems(name(config), pairs, WEIGHTS, path, config)


def _options(config: Config) -> dict[str, Any]:
  kind = WEIGHTS[name(config)].options
  return option_keys.passed(option_keys.read(kind, config.train.weights_kwargs))
