"""From `config.quant` to quantisers: which weights are rounded, how and when.

    ptq     training does not know of it; evaluations round
    qat     the loss sees weights rounded to nearest (straight-through)
    rat     the loss sees weights rounded at random, drawn afresh each update
    lotion  the loss sees the weights, the gradient a penalty for their rounding

With `quant.scale_gradient` the gradients of the last three also go through the
scales. Weights are rounded once an update, whatever the microbatches.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax

import optim

from ..config.errors import ConfigError
from ..config.schema import Config
from ..model import params as param_table
from ..model import product_slots
from ..model.product_slots import GRIDS


def quantizers(config: Config, specs: Any, param_specs: Any = None) -> Any:
  """A `Quantizer` for each weight that is rounded, None for the others.

  Matrices whose whole path matches `quant.paths` are rounded. With
  `quant.block_size` blocks lie along the axis that products sum over, or along
  the width of a table. Without it a block is the matrix of one layer.

  Args:
    config: Its `quant` section has a method.
    specs: Table of the parameters.
    param_specs: Tree of `NamedSharding`s like the parameters, to check that no
      block crosses devices; None: one device.

  Returns:
    A tree like the parameters.

  Raises:
    ConfigError: If no matrix is chosen, or blocks do not fit one.
  """
  q = config.quant

  def quantizer(path, leaf, layout):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if leaf.role in ("gain", "bias") or not re.fullmatch(q.paths, name):
      return None
    stacked = len(layout.stack)
    if not q.block_size:
      return optim.Quantizer(GRIDS[q.grid], scale=q.scale, batch_axes=stacked)
    sides = layout.outputs if leaf.role == "input" else layout.inputs
    return optim.Quantizer(
      GRIDS[q.grid], sides[-1], q.block_size, q.scale, stacked
    )

  found = jax.tree_util.tree_map_with_path(
    quantizer, specs, param_table.matrix_layouts(specs)
  )
  if not jax.tree.leaves(found):
    paths = param_table.by_path(specs)
    raise ConfigError(
      f"config.quant.paths={q.paths!r} matches no matrix; the paths are "
      f"{', '.join(paths)}."
    )
  _check_blocks(config, found, specs, param_specs)
  return found


def of_unrolled(config: Config) -> Any:
  """`quantizers` of the parameters with one child of "blocks" a layer."""
  unrolled = dataclasses.replace(config.model, layers="unroll")
  return quantizers(config, param_table.param_specs(unrolled))


def override(
  config: Config, grid: str | None, block_size: int | None
) -> Config:
  """The configuration with what the flags of a grid say, if anything.

  Raises:
    ConfigError: For a block size without a grid, or below 0.
  """
  if grid is None and block_size is not None:
    raise ConfigError("--block_size goes with --grid.")
  if grid is None:
    return config
  block_size = block_size or 0
  if block_size < 0:
    raise ConfigError(f"--block_size={block_size} must be >= 0.")
  method = config.quant.method if config.quant.method != "none" else "ptq"
  return dataclasses.replace(
    config,
    quant=dataclasses.replace(
      config.quant, method=method, grid=grid, block_size=block_size
    ),
  )


def seen(
  config: Config,
  specs: Any,
  params: Any,
  frozen: Any,
  step: jax.Array,
  key: jax.Array,
  mode: str,
) -> Any:
  """What the loss sees: rounded weights, in training alone.

  Evaluations and exports show the weights themselves. `lm/eval/rounded.py`
  scores their roundings beside them.

  Args:
    config: Of the run, `quant.method` "qat" or "rat".
    specs: Table of the parameters.
    params: Parameters.
    frozen: Not used.
    step: Not used; the draws of "rat" follow from the key.
    key: Of the seed and the update.
    mode: train | eval | export.
  """
  del frozen, step
  if mode != "train":
    return params
  q = config.quant
  return optim.quantize_params(
    params,
    quantizers(config, specs),
    key=key if q.method == "rat" else None,
    scale_gradient=q.scale_gradient,
  )


def problems(config: Config) -> Iterator[str]:
  """What is wrong with a configuration that trains with rounded weights."""
  if config.quant.method not in ("qat", "rat"):
    yield (
      "config.train.weights='rounded' needs config.quant.method='qat' or "
      f"'rat', not {config.quant.method!r}."
    )


def slot_problems(config: Config) -> Iterator[str]:
  """A grid of the weights that is not the one on which products round them."""
  q, m = config.quant, config.model
  if q.method not in ("qat", "rat", "lotion") or m.product != "slots":
    return
  options = product_slots.Options(**dict(m.product_kwargs))
  wanted = GRIDS[q.grid], q.scale, q.block_size
  for name in product_slots.NAMES:
    slot = product_slots.slots_of(options, name).w_y
    if name in product_slots.HIGH or slot is None:
      continue
    if (slot.grid, slot.scale, slot.block_size) != wanted:
      yield (
        f"config.quant.method={q.method!r} draws weights to the grid "
        f"{q.grid}, {q.scale}, block_size={q.block_size}, but the product "
        f"{name} rounds them to {slot.grid.name}, {slot.scale}, "
        f"block_size={slot.block_size}: set config.quant to this grid, or "
        "leave the slot w_y empty (config.product.overrides)."
      )
      return


def key_of(config: Config, step: jax.Array, use: str) -> jax.Array:
  """A key for one use in one update: "weights" or "labels"."""
  stream = {"weights": 1, "labels": 2}[use]
  key = jax.random.fold_in(jax.random.key(config.seed), stream)
  return jax.random.fold_in(key, step)


def _check_blocks(
  config: Config, chosen: Any, specs: Any, param_specs: Any
) -> None:
  """Raises if blocks do not divide their axis, or cross devices."""
  size = config.quant.block_size
  if not size:
    return
  shapes = param_table.abstract(specs)
  try:
    jax.eval_shape(lambda p: optim.quantize_params(p, chosen), shapes)
  except ValueError as error:
    raise ConfigError(f"config.quant.block_size={size}: {error}") from error
  if param_specs is None:
    return
  flat = jax.tree_util.tree_leaves_with_path(chosen)
  for path, quantizer in flat:
    leaf, lies = specs, param_specs
    for key in path:
      leaf, lies = leaf[key.key], lies[key.key]
    held = lies.shard_shape(leaf.shape)[quantizer.axis]
    if held % size:
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      raise ConfigError(
        f"config.quant.block_size={size}: axis {quantizer.axis} of {name}, "
        f"{leaf.shape}, has {held} entries on each device of the mesh, which "
        "blocks would cross. Take a block size that divides it, or a mesh with "
        "fewer devices along that axis."
      )
