"""The seam of mixers: `config.model.mixer` names an entry."""

import typing
from collections.abc import Callable, Iterable

import jax

from ...config.schema import ModelConfig
from .. import entries
from ..param_spec import Tree
from . import softmax


class Mixer(typing.NamedTuple):
  """What mixes the tokens of a row.

  Attributes:
    specs: (cfg, layer) -> nested dict of `ParamSpec`; of all layers the same
      but for the initial deviations.
    apply: (w, x_BLD, cache, places, context) -> (y_BLD, cache, sums). `cache`
      is a layer's, from `init_cache` or the call before, or None outside
      decoding. `places` is an `attention.Places`. `w`, `context` and `sums` are
      as for a `FeedForward`; the keys are logged as train/mixer/KEY.
    init_cache: (cfg, batch_size, size) -> arrays [B, ...] that one layer keeps
      of at most `size` tokens of each row, before the first.
    weights: (cfg) -> (total, active): entries of a layer's matrices, and of
      those that one token meets.
    flops: (cfg, causal_half) -> operations of one token's forward pass in a
      layer, beyond 2 for each active entry. `causal_half`: count only the half
      of the positions that is visible.
    problems: (cfg) -> what is wrong with the model's configuration.
    options: Frozen dataclass with the keys of `config.model.mixer_kwargs` and
      their defaults: see `lm/model/entries.py`. None: there are none.
  """

  specs: Callable[[ModelConfig, int], Tree]
  apply: Callable[..., tuple[jax.Array, Tree, dict[str, jax.Array]]]
  init_cache: Callable[[ModelConfig, int, int], Tree]
  weights: Callable[[ModelConfig], tuple[int, int]]
  flops: Callable[[ModelConfig, bool], float] = lambda cfg, causal_half: 0
  problems: Callable[[ModelConfig], Iterable[str]] = lambda cfg: ()
  options: type | None = None


MIXERS = {
  "softmax": Mixer(
    specs=softmax.specs,
    apply=softmax.apply,
    init_cache=softmax.init_cache,
    weights=softmax.weights,
    flops=softmax.flops,
    problems=softmax.problems,
  ),
}


def of(cfg: ModelConfig) -> Mixer:
  """The mixer of this model.

  Raises:
    ConfigError: If there is none of this name.
  """
  return entries.chosen("mixer", cfg, MIXERS)
