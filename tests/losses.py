"""The next-token loss of rows, as the trainer computes it, for a test's use."""

import jax.numpy as jnp

from lm.objectives import table as objectives

_NEXT = objectives.Chosen()


def batch(tokens):
  """The rows, numbered from 0."""
  return objectives.Batch(tokens, jnp.arange(len(tokens), dtype=jnp.int32))


def loss_sums(model, params, tokens):
  """Sums over all rows."""
  return _NEXT.loss_sums(model, params, batch(tokens))


def row_losses(model, params, tokens):
  """Cross-entropy [B] and number of targets [B]."""
  sums = _NEXT.row_sums(model, params, batch(tokens), objectives.TRAINING)
  return sums.loss, sums.weight
