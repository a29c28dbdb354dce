"""The objectives: what a model is asked on a row, and how that is scored.

A run names its objective by `config.train.objective`. To add one, write a file
in this room and a line in `OBJECTIVES`.

Dimension key: see `lm/model/transformer.py`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..config import options as option_keys
from ..config.schema import Config, ModelConfig
from ..model import products
from ..model.param_spec import Tree
from ..model.transformer import Transformer
from . import decoding, next_token
from .decoding import Sampling
from .sums import LossSums, view_sums
from .view import TRAINING, Batch, View, layer_draws, row_keys


class Objective(NamedTuple):
  """One objective, as plain functions.

  An entry with `options` gets an instance of them as the keyword `options`, in
  every function but `problems`.

  Attributes:
    view: (cfg, tokens [B, L + 1], keys [B]) -> View: what the model is asked.
      cfg is the section `model`, resolved. The loss is the cross-entropy of the
      targets with their weights. None: `row_sums` says all, and methods that
      need outputs and targets apart (Gauss-Newton) refuse the objective.
    row_sums: (model, params, tokens [B, L + 1], keys [B]) -> LossSums [B],
      instead of the cross-entropy of `view`; None for most objectives. `aux` is
      of all rows together. All are sums over tokens: a mean would depend on the
      mesh and the microbatches.
    count: (cfg, tokens [B, L + 1]) -> [B]: the loss is the sum of the rows'
      sums over the sum of their counts.
    sample: (model, params, prompts, num_tokens, key, sampling) -> token ids
      [B, num_tokens], with `Sampling`'s restrictions. None: there is no way to
      sample, and programs say so.
    problems: config -> what is wrong with it for this objective.
    options: Frozen dataclass with the keys of `config.train.objective_kwargs`
      and their defaults; None: there are none.
  """

  view: Callable[..., View] | None
  row_sums: Callable[..., LossSums] | None
  count: Callable[..., jax.Array]
  sample: Callable[..., np.ndarray] | None = None
  problems: Callable[[Config], Iterable[str]] = lambda config: ()
  options: type | None = None


OBJECTIVES: dict[str, Objective] = {
  "next_token": Objective(
    view=next_token.view,
    row_sums=None,
    count=next_token.count,
    sample=decoding.generate,
  ),
}


@dataclasses.dataclass(frozen=True)
class Chosen:
  """An objective with its options and the seed of its draws.

  Attributes:
    name: In `OBJECTIVES`.
    seed: `config.seed`.
    options: Of the entry; None if it has none.
  """

  name: str = "next_token"
  seed: int = 0
  options: Any = None

  def view(self, cfg: ModelConfig, batch: Batch, stream: int) -> View:
    """What the model is asked on some rows.

    Args:
      cfg: Section `model`, resolved.
      batch: Rows [B, L + 1].
      stream: TRAINING or EVALUATION, which the draws depend on.
    """
    keys_B = row_keys(self.seed, stream, batch.index)
    view = self._call("view", cfg, batch.tokens, keys_B)
    if stream == TRAINING and products.draws(cfg):
      view = view._replace(draws=layer_draws(self.seed, batch))
    return view

  def count(self, cfg: ModelConfig, tokens_BL1: jax.Array) -> jax.Array:
    """The share [B] that each row has in the denominator of the loss."""
    return self._call("count", cfg, tokens_BL1)

  def row_sums(
    self, model: Transformer, params: Tree, batch: Batch, stream: int
  ) -> LossSums:
    """Sums of each row, [B] each.

    Args:
      model: Of the run.
      params: Weights as the model sees them.
      batch: Rows [B, L + 1].
      stream: As for `view`.
    """
    if OBJECTIVES[self.name].row_sums is None:
      return view_sums(model, params, self.view(model.cfg, batch, stream))
    keys_B = row_keys(self.seed, stream, batch.index)
    return self._call("row_sums", model, params, batch.tokens, keys_B)

  def loss_sums(
    self,
    model: Transformer,
    params: Tree,
    batch: Batch,
    stream: int = TRAINING,
  ) -> LossSums:
    """Sums over a batch: scalars; arguments as of `row_sums`."""
    sums = self.row_sums(model, params, batch, stream)
    totals = jax.tree.map(jnp.sum, sums._replace(aux={}))
    return totals._replace(aux=sums.aux)

  def sample(
    self,
    model: Transformer,
    params: Tree,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    key: jax.Array,
    sampling: Sampling,
  ) -> np.ndarray:
    """Draws continuations, int32 [B, num_tokens], if it can."""
    return self._call(
      "sample", model, params, prompts, num_tokens, key, sampling
    )

  def cannot_sample(self) -> str:
    """A line that says so, or "" for an objective that can."""
    if OBJECTIVES[self.name].sample is not None:
      return ""
    return f"The objective {self.name!r} has no way to sample texts."

  def _call(self, function: str, *args: Any) -> Any:
    more = option_keys.passed(self.options)
    return getattr(OBJECTIVES[self.name], function)(*args, **more)


def chosen(config: Config) -> Chosen:
  """The objective of a configuration without `problems`."""
  t = config.train
  kind = OBJECTIVES[t.objective].options
  return Chosen(
    t.objective, config.seed, option_keys.read(kind, t.objective_kwargs)
  )


def without_view(config: Config, who: str) -> list[str]:
  """Says that the objective has no view, which `who` needs."""
  entry = OBJECTIVES.get(config.train.objective)
  if entry is None or entry.view is not None:
    return []
  return [
    f"config.train.objective={config.train.objective!r} has no view, the "
    f"outputs and targets apart that {who} needs; choose another."
  ]


def problems(config: Config) -> list[str]:
  """What is wrong with `config.train.objective` and its own keys."""
  name, pairs = config.train.objective, config.train.objective_kwargs
  path = "config.train.objective"
  return option_keys.entry_problems(name, pairs, OBJECTIVES, path, config)
