"""A toy objective: predicts tokens that are hidden, by a draw for each row."""

import dataclasses

import jax
import jax.numpy as jnp

from lm.model.attention import both_ways
from lm.objectives.table import OBJECTIVES, Objective, View


@dataclasses.dataclass(frozen=True)
class Options:
  share: float = 0.25  # Of the tokens that are hidden.


def view(cfg, tokens_BL1, keys_B, options):
  targets_BL = tokens_BL1[:, :-1]
  draw = lambda key: jax.random.uniform(key, targets_BL.shape[1:])  # noqa: E731
  hidden_BL = jax.vmap(draw)(keys_B) < options.share
  inputs_BL = jnp.where(hidden_BL, cfg.pad_id, targets_BL)
  counts_BL = hidden_BL & (targets_BL != cfg.pad_id)
  weights_BL = counts_BL.astype(jnp.float32) / options.share
  return View(inputs_BL, targets_BL, weights_BL, both_ways(targets_BL, cfg))


def count(cfg, tokens_BL1, options):
  return jnp.sum(tokens_BL1[:, :-1] != cfg.pad_id, axis=1)


OBJECTIVES["masked"] = Objective(view, None, count, options=Options)
