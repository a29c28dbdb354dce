"""The tables of the model's parts, and what is wrong with the chosen names."""

import typing

from ..config import options
from ..config.schema import ModelConfig
from .ffn.table import FEED_FORWARDS
from .mixers.table import MIXERS
from .products import PRODUCTS

SEAMS: dict[str, dict[str, typing.Any]] = {
  "mixer": MIXERS,
  "ffn": FEED_FORWARDS,
  "product": PRODUCTS,
}


def problems(cfg: ModelConfig) -> list[str]:
  """What is wrong with the entries and their keys; touches no device.

  Args:
    cfg: Model section of the configuration, resolved or not.
  """
  found = []
  for seam, table in SEAMS.items():
    name, pairs = getattr(cfg, seam), getattr(cfg, f"{seam}_kwargs")
    path = f"config.model.{seam}"
    found += options.entry_problems(name, pairs, table, path, cfg)
  return found
