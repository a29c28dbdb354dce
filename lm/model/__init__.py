"""Decoder-only transformer: layers, attention, the model and its loss."""

from .loss import LossSums, loss_sums, row_losses, token_sums
from .transformer import Cache, Transformer, init_cache

__all__ = [
  "Cache",
  "LossSums",
  "Transformer",
  "init_cache",
  "loss_sums",
  "row_losses",
  "token_sums",
]
