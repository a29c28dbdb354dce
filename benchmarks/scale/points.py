"""The points of docs/scaling.md: four methods, three sizes, many devices.

Each device has 8,192 tokens a pass. The mesh is fsdp up to 64 devices, and
replicas of that beyond.
"""

import importlib
import json
import math
import pathlib
from typing import NamedTuple

from lm.config import load
from lm.config.schema import Config
from lm.tools import estimate

COUNTS = (
  pathlib.Path(__file__).parents[2] / "docs" / "figures/scaling_counts.jsonl"
)
METHODS = ("adamw", "lotion", "soap", "gauss_newton")
SIZES = {"150M": "olmo150m", "1B": "cbs1b2", "8B": "olmo8b"}
TOKENS = 8192  # A device and pass.
MOST_FSDP = 64
INNER, SEARCH = 16, 4


class Counts(NamedTuple):
  """What one device does in an update."""

  mesh: dict[str, int]  # Devices along each axis.
  flops: int  # Of matrix products.
  hbm: int  # Bytes read and written: the state twice, activations twice.
  # Bytes of collectives by (kind, axes joined by "+").
  sent: dict[tuple[str, str], int]
  tokens: int  # Of the update, over all devices.

  @property
  def devices(self) -> int:
    """How many there are."""
    return math.prod(self.mesh.values())


def config_of(method: str, size: str, devices: int) -> Config:
  """The resolved configuration of one point."""
  c = importlib.import_module(
    f"ml_collections_configs.{SIZES[size]}"
  ).get_config()
  rows = TOKENS // c.data.seq_length * devices
  c.data.batch_size, c.eval.batch_size = rows, devices
  c.model.remat = "full"
  c.mesh.fsdp = min(devices, MOST_FSDP)
  c.mesh.data = devices // c.mesh.fsdp
  if method == "soap":
    c.optim.name, c.optim.kwargs = "soap", {}
  if method == "lotion":
    c.quant.method, c.quant.strength = "lotion", 100.0
  if method == "gauss_newton":
    c.optim.name, c.optim.kwargs = "gauss_newton", {}
    c.optim.averages = ()
    c.schedule.name, c.schedule.warmup = "constant", 0.0
    c.gauss_newton.inner_steps = INNER
    c.train.microbatch_size = rows
    c.data.batch_size = rows * (INNER + SEARCH)
  return estimate.resolve(load.from_config_dict(c), "tpu")


def read(path: pathlib.Path) -> dict[tuple[str, str], dict[int, Counts]]:
  """Counts of a file by (method, size), then by devices."""
  found: dict[tuple[str, str], dict[int, Counts]] = {}
  for line in path.read_text().splitlines() if path.exists() else []:
    point = json.loads(line)
    sent = {(kind, axes): n for kind, axes, n in point["sent"]}
    counts = Counts(
      point["mesh"], point["flops"], point["hbm"], sent, point["tokens"]
    )
    key = point["method"], point["size"]
    found.setdefault(key, {})[point["devices"]] = counts
  return found
