"""Decoder-only transformer: layers, attention, the model and its loss."""

from .cache import Cache, init_cache
from .loss import LossSums, loss_sums, row_losses, token_sums
from .transformer import Transformer

__all__ = [
  "Cache",
  "LossSums",
  "Transformer",
  "init_cache",
  "loss_sums",
  "row_losses",
  "token_sums",
]
