"""The seam of feed-forward blocks: `config.model.ffn` names an entry."""

import typing
from collections.abc import Callable, Iterable

import jax

from ...config.schema import ModelConfig
from .. import entries
from ..param_spec import Tree
from . import dense


class FeedForward(typing.NamedTuple):
  """A feed-forward block.

  Attributes:
    specs: (cfg, layer) -> nested dict of `ParamSpec`; of all layers the same
      but for the initial deviations.
    apply: (w, x_BLD, context) -> (y_BLD, sums). `w` is like `specs`; `context`
      a `products.Context`. `sums` is a dict of *sums over tokens*, padding
      included, scalars or vectors: a mean would depend on mesh and microbatch.
      The key "loss" is added to the summed loss that is trained on; every key
      is logged as train/ffn/KEY, divided by the number of targets. Evaluations
      read no sums; Gauss-Newton logs none and refuses a "loss".
    weights: (cfg) -> (total, active): entries of a layer's matrices, and of
      those that one token meets.
    flops: (cfg) -> operations of one token's forward pass in a layer, beyond
      2 for each active entry.
    problems: (cfg) -> what is wrong with the model's configuration.
    options: Frozen dataclass with the keys of `config.model.ffn_kwargs` and
      their defaults: see `lm/model/entries.py`. None: there are none.
  """

  specs: Callable[[ModelConfig, int], Tree]
  apply: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
  weights: Callable[[ModelConfig], tuple[int, int]]
  flops: Callable[[ModelConfig], float] = lambda cfg: 0
  problems: Callable[[ModelConfig], Iterable[str]] = lambda cfg: ()
  options: type | None = None


FEED_FORWARDS = {
  "dense": FeedForward(
    specs=dense.specs,
    apply=dense.apply,
    weights=dense.weights,
    problems=dense.problems,
  ),
}


def of(cfg: ModelConfig) -> FeedForward:
  """The block of this model.

  Raises:
    ConfigError: If there is none of this name.
  """
  return entries.chosen("ffn", cfg, FEED_FORWARDS)
