"""Weights alone: read from a run or an export, written to a file.

An export is one .npz: each parameter by its path, blocks unrolled, and the
configuration as JSON. NumPy alone can read the file.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from ..config.errors import ConfigError
from ..config.load import from_dict, to_dict
from ..config.schema import Config, MeshConfig
from ..model import params as param_table
from ..model.params import by_path
from ..step import build, points, seen
from ..step.parts import Parts
from ..step.state import TrainState
from ..weights import rounded
from . import npz, workdir
from .checkpoint import abstract, pick, read_leaves

_CONFIG = "config"


def restore(
  parts: Parts,
  folder: str | os.PathLike,
  step: int | None = None,
  average: str | None = None,
  mode: str = "eval",
) -> Any:
  """The weights that a run's checkpoint is evaluated at; reads little else.

  The weights are as the model sees them (`lm/weights/table.py`).

  Args:
    parts: Built from the run's configuration, on any mesh.
    folder: The run.
    step: Which checkpoint; None for the newest.
    average: An average of the weights by its name; None for the method's own
      point, which is the parameters of most methods.
    mode: eval | export.

  Raises:
    ConfigError: If there is no such checkpoint, or no such average.
    CheckpointError: If it cannot be read.
  """
  step = pick(folder, step)
  known = points.names(parts)
  if average is not None and average not in known:
    raise ConfigError(
      f"--average={average} is none of the averages that {folder} keeps: "
      f"{', '.join(known) or 'none at all'} (config.optim.averages)."
    )
  point = points.find(parts, average)
  whole = abstract(parts)
  none = TrainState(None, None, None, None)
  state = by_path(none._replace(opt_state=whole.opt_state))
  needed = zip(state.items(), point.reads, strict=True)
  state = {path: leaf for (path, leaf), read in needed if read}
  params = by_path(none._replace(params=whole.params))
  rest = by_path(none._replace(step=whole.step, frozen=whole.frozen))
  leaves = read_leaves(folder, step, rest | params | state, parts)
  found = list(leaves.values())
  count, *frozen = found[: len(rest)]
  found = found[len(rest) :]
  treedef = jax.tree.structure(whole.params)
  values = jax.tree.unflatten(treedef, found[: len(params)])
  if state:
    compute = jax.jit(point.compute, out_shardings=parts.shardings.params)
    values = compute(found[len(params) :], values)
  treedef = jax.tree.structure(whole.frozen)
  now = none._replace(step=count, frozen=treedef.unflatten(frozen))
  with jax.set_mesh(parts.mesh):
    return seen.compiled(parts, mode)(values, now)


def open_run(
  folder: str | os.PathLike,
  step: int | None = None,
  *,
  average: str | None = None,
  grid: str | None = None,
  block_size: int | None = None,
) -> tuple[Parts, Any]:
  """Parts of a run, and the weights it is evaluated at, on all devices.

  The weights lie on the run's own mesh. If this mesh does not fit the devices,
  the weights are split over all devices, so that any model that could be
  trained can be read. If the model does not allow this, each device has all
  weights.

  For programs that read a run: evaluation, sampling. Enter `parts.mesh` by
  `jax.set_mesh` to use the weights.

  Args:
    folder: The run.
    step: Which checkpoint; None for the newest.
    average: As in `restore`.
    grid: To round weights to instead of the run's `config.quant.grid`.
    block_size: With `grid`.

  Raises:
    ConfigError: If the folder holds no run, no such checkpoint or average.
    CheckpointError: If the checkpoint cannot be read.
  """
  config = rounded.override(workdir.read_config(folder), grid, block_size)
  parts = _build_anywhere(config)
  return parts, restore(parts, folder, step, average)


def check_source(source: str) -> None:
  """Checks that `config.train.init_from` names a run or an export.

  Raises:
    ConfigError: If it does not.
  """
  if source and not pathlib.Path(source).exists():
    raise ConfigError(
      f"config.train.init_from={source!r} does not exist; give the folder of a "
      "run or an export (.npz)."
    )
  if source and pathlib.Path(source).is_dir():
    pick(source, None)


def load(parts: Parts, source: str) -> Any:
  """Weights of the model to start from, laid out for `parts`.

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
  _check_shapes(values, parts.abstract_weights, source)
  return jax.device_put(values, parts.weight_shardings)


def export(
  folder: str | os.PathLike,
  out: str | os.PathLike,
  *,
  average: str | None = None,
  quantize: bool = False,
  grid: str | None = None,
  block_size: int | None = None,
) -> int:
  """Writes the newest weights of a run to an .npz; returns their step.

  The weights are as the model sees them: a plain dense model.

  Args:
    folder: The run.
    out: File to write.
    average: An average of the weights by its name; None for the method's own
      point, which is the parameters of most methods.
    quantize: Round the weights that `config.quant` chooses to nearest, and
      store codes and scales; the others stay float32.
    grid: Instead of the run's.
    block_size: With `grid`.

  Raises:
    ConfigError: If the run has no checkpoint, no such average, or the grid does
      not fit.
    OSError: If the file cannot be written; nothing is left of it.
  """
  step = pick(folder, None)
  config = workdir.read_config(folder)
  params = param_table.to_layout(_restore_host(folder, average), "unroll")
  if quantize:
    config = rounded.override(config, grid, block_size)
    flat = npz.pack(params, rounded.of_unrolled(config))
  else:
    flat = npz.pack(params, None)
  flat[_CONFIG] = np.array(json.dumps(to_dict(config)))
  temporary = pathlib.Path(f"{out}.tmp.npz")
  try:
    np.savez(temporary, allow_pickle=False, **flat)
    temporary.replace(out)
  except OSError as error:
    temporary.unlink(missing_ok=True)  # A full disk would stay full.
    raise OSError(error.errno, error.strerror, str(out)) from error
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


def _restore_host(folder: str | os.PathLike, average: str | None = None) -> Any:
  """A run's weights in the layout they were saved in, on this process."""
  config = workdir.read_config(folder)
  one_device = MeshConfig(data=1, fsdp=1, tensor=1, rules="logical")
  config = dataclasses.replace(config, mesh=one_device)
  parts = build.build(config, devices=jax.local_devices()[:1])
  return restore(parts, folder, average=average, mode="export")


def _build_anywhere(config: Config) -> Parts:
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
  found, wanted = (
    {name: leaf.shape for name, leaf in by_path(tree).items()}
    for tree in (values, expected)
  )
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
