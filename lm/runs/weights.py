"""Weights without the rest: read from a run or an export, written to a file.

An export is one .npz: each parameter by its path, blocks unrolled, and the
configuration as JSON. It needs NumPy alone to be read.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from ..config.load import from_dict, to_dict
from ..config.errors import ConfigError
from ..config.schema import Config
from ..config.schema import MeshConfig
from ..methods import newton
from ..weights import rounded
from ..model import params as param_table
from . import npz
from ..step import build
from . import workdir
from .checkpoint import abstract
from .checkpoint import list_steps
from .checkpoint import restore_fields
from ..step.state import TrainState
from ..step.state import averaged_params

_CONFIG = "config"


def restore(
  parts: build.Parts, folder: str | os.PathLike, step: int | None = None
) -> tuple[Any, Any]:
  """Parameters of a run's checkpoint, and their average or None.

  Args:
    parts: Built from the run's configuration, on any mesh.
    folder: The run.
    step: Which checkpoint; None for the newest.

  Raises:
    ConfigError: If there is none.
    CheckpointError: If it cannot be read.
  """
  step = _pick(folder, step)
  ema = parts.config.optim.ema
  whole = abstract(parts.abstract_state, parts.shardings)
  wanted = TrainState(
    step=whole.step,
    params=whole.params,
    opt_state=None,
    ema=whole.ema if ema else None,
    halted=None,
  )
  state = restore_fields(folder, step, wanted)
  if not ema:
    return state.params, None
  every = newton.updates_per_average(parts.config)
  return state.params, averaged_params(state, ema, every)


def open_run(
  folder: str | os.PathLike,
  step: int | None = None,
  *,
  grid: str | None = None,
  block_size: int | None = None,
) -> tuple[build.Parts, Any, Any]:
  """Parts, parameters and their average (or None) of a run, on all devices.

  They lie on the mesh that the run was started with; where that does not fit
  the devices, split over all of them, so that what could be trained can be
  read; where that is not allowed either, whole on each.

  For programs that read a run: evaluation, sampling. Enter `parts.mesh` by
  `jax.set_mesh` to use them.

  Args:
    folder: The run.
    step: Which checkpoint; None for the newest.
    grid: To round weights to instead of the run's `config.quant.grid`.
    block_size: With `grid`.

  Raises:
    ConfigError: If the folder holds no run, or no such checkpoint.
    CheckpointError: If the checkpoint cannot be read.
  """
  config = rounded.override(workdir.read_config(folder), grid, block_size)
  parts = _build_anywhere(config)
  return parts, *restore(parts, folder, step)


def check_source(source: str) -> None:
  """Checks that there is something to read at `config.train.init_from`.

  Raises:
    ConfigError: If there is not.
  """
  if source and not pathlib.Path(source).exists():
    raise ConfigError(
      f"config.train.init_from={source!r} does not exist; give the folder of a "
      "run or an export (.npz)."
    )
  if source and pathlib.Path(source).is_dir():
    _pick(source, None)


def load(parts: build.Parts, source: str) -> Any:
  """Weights to start from, laid out for `parts`.

  Args:
    parts: Of the new run.
    source: Folder of a run (its newest checkpoint) or an export; layers
      scanned or unrolled.

  Raises:
    ConfigError: If the weights are missing or of another shape.
  """
  if source.endswith(".npz"):
    values = read_export(source)[1]
  else:
    values = _restore_host(source)
  values = param_table.to_layout(values, parts.config.model.layers)
  _check_shapes(values, parts.abstract_state.params, source)
  return jax.device_put(values, parts.shardings.params)


def export(
  folder: str | os.PathLike,
  out: str | os.PathLike,
  *,
  quantize: bool = False,
  grid: str | None = None,
  block_size: int | None = None,
) -> int:
  """Writes the newest weights of a run to an .npz; returns their step.

  The average of the weights is written if the run keeps one.

  Args:
    folder: The run.
    out: File to write.
    quantize: Round the weights that `config.quant` chooses to nearest, and
      store codes and scales; the others stay float32.
    grid: Instead of the run's.
    block_size: With `grid`.

  Raises:
    ConfigError: If the run has no checkpoint, or the grid does not fit.
  """
  step = _pick(folder, None)
  config = workdir.read_config(folder)
  params = param_table.to_layout(_restore_host(folder, average=True), "unroll")
  if quantize:
    config = rounded.override(config, grid, block_size)
    flat = npz.pack(params, rounded.of_unrolled(config))
  else:
    flat = npz.pack(params, None)
  flat[_CONFIG] = np.array(json.dumps(to_dict(config)))
  temporary = pathlib.Path(f"{out}.tmp.npz")
  np.savez(temporary, allow_pickle=False, **flat)
  temporary.replace(out)
  return step


def read_export(path: str | os.PathLike) -> tuple[Config, Any]:
  """Configuration and parameters (blocks unrolled) of an export.

  Weights that were stored as codes are returned on their grid, float32.

  Raises:
    ConfigError: If the file is not an export.
  """
  try:
    with np.load(path) as file:
      flat = {name: file[name] for name in file.files}
    config = from_dict(json.loads(str(flat.pop(_CONFIG))))
    return config, npz.unpack(flat, rounded.of_unrolled(config))
  except (OSError, ValueError, KeyError) as error:
    raise ConfigError(f"{path} is not an export: {error}") from error


def _restore_host(folder: str | os.PathLike, average: bool = False) -> Any:
  """A run's parameters in the layout they were saved in, on this process."""
  config = workdir.read_config(folder)
  one_device = MeshConfig(data=1, fsdp=1, tensor=1, rules="logical")
  config = dataclasses.replace(config, mesh=one_device)
  parts = build.build(config, devices=jax.local_devices()[:1])
  params, averaged = restore(parts, folder)
  return averaged if average and averaged is not None else params


def _pick(folder: str | os.PathLike, step: int | None) -> int:
  steps = list_steps(folder)
  if not steps:
    raise ConfigError(f"{folder} holds no checkpoint.")
  if step is not None and step not in steps:
    raise ConfigError(
      f"{folder} holds no checkpoint of step {step}; it has {steps}."
    )
  return steps[-1] if step is None else step


def _build_anywhere(config: Config) -> build.Parts:
  """Parts on all devices, by the first mesh that fits them and the model."""
  own = config.mesh
  for data, fsdp in ((1, -1), (-1, 1)):
    try:
      return build.build(config)
    except ValueError:  # Other devices, or blocks of weights cut by a mesh.
      mesh = dataclasses.replace(own, data=data, fsdp=fsdp, tensor=1)
      config = dataclasses.replace(config, mesh=mesh)
  return build.build(config)


def _check_shapes(values: Any, expected: Any, source: str) -> None:
  def shapes(tree):
    return {
      jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

  found, wanted = shapes(values), shapes(expected)
  none = "absent"
  wrong = [
    f"  {name}: {found.get(name, none)} there, {wanted.get(name, none)} here"
    for name in sorted(found.keys() | wanted.keys())
    if found.get(name) != wanted.get(name)
  ]
  if wrong:
    raise ConfigError(
      f"The weights of config.train.init_from={source} do not fit the model:\n"
      + "\n".join(wrong[:8])
    )
