"""Bytes of an update in closed form, and the time that counts would take.

`law` says what AdamW's update sends, with or without LOTION's penalty, which
shows why the bytes scale as they do; tests hold it equal to compiled programs.
Times (`seconds`) are estimates: counts over the rates that a chip's maker
states, by the formulas of ring collectives.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from benchmarks.scale.points import Counts
from lm.config.schema import Config
from lm.model import params as param_table
from lm.step import chips


class Chip(NamedTuple):
  """Rates of one chip, in units a second."""

  flops: float  # bfloat16 operations.
  hbm: float  # Bytes of its memory.
  ici: float  # Bytes of a ring over one axis of the torus, in both directions.
  dcn: float  # Bytes between slices, a chip's share of its host.
  efficiency: float  # Assumed share of `flops` that products reach.


# Stated by https://docs.cloud.google.com/tpu/docs/v5p (2026-11-26), per chip:
# 2,765 GB/s (2,575 GiB/s) of HBM; 1,200 GB/s of links,
# both directions together; 50 Gbit/s of the data-centre network.
# Derived: six links in a 3D torus have 100 GB/s a direction each, and a ring
# over an axis uses two; https://jax-ml.github.io/scaling-book/tpus has 90.
# Assumed: the efficiency of products, and that links and memory reach all of
# what is stated.
V5P = Chip(chips.KINDS["v5p"].flops, 2765e9, 200e9, 6.25e9, 0.5)


class Seconds(NamedTuple):
  """Estimated time of an update, by what takes it."""

  products: float
  hbm: float
  ici: float
  dcn: float

  @property
  def local(self) -> float:
    """Of a device that need not talk."""
    return max(self.products, self.hbm)

  @property
  def total(self) -> float:
    """With communication that nothing hides: an upper bound."""
    return self.local + self.ici + self.dcn


def law(config: Config, mesh: Mapping[str, int]) -> dict[tuple[str, str], int]:
  """Bytes that AdamW's update sends, in closed form, without its scalars.

  For stacked layers with an untied head, on a mesh without `tensor`. P are the
  bytes of all parameters that lie along `fsdp`, f its size:

      gathered over fsdp    the blocks' P twice, the head's once
      reduced over fsdp     P but the embedding's, then over data P / f
      exchanged over fsdp   the embedding's rows, forwards and backwards

  None of it falls with the number of devices but P / f, nor grows with it.
  What is left out are scalars: losses, norms and, with LOTION, the scale of
  each matrix, less than 4 kB.

  Args:
    config: Resolved; one pass an update.
    mesh: Devices along each axis.

  Returns:
    Bytes by (kind, axes), as in `Counts.sent`; entries of 0 are left out.

  Raises:
    ValueError: If it does not hold for this configuration or mesh.
  """
  cfg = config.model
  if (
    mesh["tensor"] > 1 or cfg.tied or cfg.layers != "scan" or cfg.loss_chunk
    or config.optim.name != "adamw"
    or config.microbatch_size != config.data.batch_size
  ):  # fmt: skip
    raise ValueError(
      "The law is for AdamW in one pass, with stacked layers, an untied head, "
      "no loss_chunk and a mesh without tensor; measure anything else."
    )
  data, fsdp = mesh["data"], mesh["fsdp"]
  sizes = _sizes(param_table.param_specs(cfg), fsdp)
  rows = config.data.batch_size // (data * fsdp)
  split = sizes["blocks"] + sizes["head"]
  scalars = sizes["gains"]  # Gains are replicated: reduced over all devices.
  found = {
    ("all-gather", "fsdp"): 2 * sizes["blocks"] + sizes["head"]
    + 4 * rows * fsdp * cfg.L,
    ("all-reduce", "fsdp"): split + (0 if data > 1 else scalars),
    ("all-reduce", "data+fsdp"): scalars,
    ("all-reduce", "data"): (split + sizes["embed"]) // fsdp
    + (0 if fsdp > 1 else scalars),
    ("all-to-all", "fsdp"): 2 * 4 * rows * cfg.L * cfg.D,
  }  # fmt: skip
  here = [axis for axis, n in (("data", data), ("fsdp", fsdp)) if n > 1]
  known = {"+".join(here), *here}
  return {key: n for key, n in found.items() if key[1] in known and n}


def _sizes(specs: Any, fsdp: int) -> dict[str, int]:
  """Bytes of the parameters by how they travel."""
  sizes = dict.fromkeys(("blocks", "head", "embed", "gains"), 0)
  for path, leaf in jax.tree_util.tree_leaves_with_path(specs):
    top = path[0].key
    if "embed" not in leaf.axes:
      sizes["gains"] += 4 * leaf.size
    elif leaf.shape[leaf.axes.index("embed")] % fsdp:
      raise ValueError(
        f"The width {leaf.shape[leaf.axes.index('embed')]} does not divide "
        f"over fsdp={fsdp}, so that parameters are replicated."
      )
    else:
      sizes[top if top in sizes else "blocks"] += 4 * leaf.size
  return sizes


def ring_seconds(kind: str, size: int, count: int, rate: float) -> float:
  """Time of a collective by the formula of a ring, without latency.

      all-gather, reduce-scatter, all-to-all   (n - 1) / n  bytes / rate
      all-reduce                               twice that
      collective-permute                       bytes / rate

  Args:
    kind: Of `hlo.KINDS`.
    size: n, devices of a group.
    count: Bytes of the whole result on one device.
    rate: Bytes a second.

  References:
    Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations", 2009, https://doi.org/10.1016/j.jpdc.2008.09.002
  """
  if kind == "collective-permute":
    return count / rate
  share = (size - 1) / size * count / rate
  return 2 * share if kind == "all-reduce" else share


def seconds(counts: Counts, chip: Chip, slice_devices: int = 0) -> Seconds:
  """Estimated time of an update.

  Args:
    counts: Of one device.
    chip: Its rates.
    slice_devices: Devices of a slice; what crosses its border goes over the
      data-centre network. 0: one slice holds all.
  """
  ici = dcn = 0.0
  inner = counts.mesh["fsdp"] * counts.mesh["tensor"]
  for (kind, axes), count in counts.sent.items():
    size = math.prod(counts.mesh[axis] for axis in axes.split("+"))
    reach = size * (inner if axes == "data" else 1)  # Data lies outermost.
    if 0 < slice_devices < reach:
      dcn += ring_seconds(kind, size, count, chip.dcn)
    else:
      ici += ring_seconds(kind, size, count, chip.ici)
  return Seconds(
    counts.flops / (chip.flops * chip.efficiency),
    counts.hbm / chip.hbm,
    ici,
    dcn,
  )
