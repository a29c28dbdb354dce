"""The objective of a decoder: at each position, the token that comes next.

Dimension key: see `lm/model/transformer.py`.
"""

import jax
import jax.numpy as jnp

from ..config.schema import ModelConfig
from .view import View


def view(cfg: ModelConfig, tokens_BL1: jax.Array, keys_B: jax.Array) -> View:
  """All but the last token are inputs, all but the first are targets."""
  del keys_B
  targets_BL = tokens_BL1[:, 1:]
  weights_BL = (targets_BL != cfg.pad_id).astype(jnp.float32)
  return View(tokens_BL1[:, :-1], targets_BL, weights_BL)


def count(cfg: ModelConfig, tokens_BL1: jax.Array) -> jax.Array:
  """Targets of each row that are not padding, int32 [B]."""
  return jnp.sum(tokens_BL1[:, 1:] != cfg.pad_id, axis=1)
