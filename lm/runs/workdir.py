"""The folder of a run, apart from checkpoints and metrics.

config.json   the resolved configuration
run.json      status, sizes, mesh, versions, n-gram floors
"""

import importlib.metadata
import json
import os
import pathlib
from typing import Any

import jax

from ..cli import children, program
from ..cli.text import human
from ..config import load, ramp
from ..config.errors import ConfigError
from ..config.schema import Config
from ..data import layout
from ..model import params as param_table
from ..step import flops, sharding
from ..step.parts import Parts

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def prepare(path: str | os.PathLike) -> pathlib.Path:
  """Makes the folder and proves that it can be written.

  Raises:
    ValueError: If it cannot.
  """
  program.check_local("--workdir", path)
  workdir = pathlib.Path(path).expanduser().absolute()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / f".probe-{os.getpid()}"
    probe.write_text("")
    # A process of another host with the same number may have removed the file.
    probe.unlink(missing_ok=True)
  except OSError as error:
    raise ValueError(
      f"--workdir={path} cannot be written: {error.strerror}. Choose another "
      "folder."
    ) from error
  return workdir


def write_json(path: pathlib.Path, value: Any) -> None:
  """Replaces a JSON file in one move; only process 0 writes."""
  if jax.process_index() != 0:
    return
  temporary = path.with_suffix(".tmp")
  with temporary.open("w") as file:
    json.dump(value, file, indent=1)
    file.write("\n")
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


class RunFile:
  """`run.json`: facts of the run, and its status."""

  def __init__(self, workdir: pathlib.Path, facts: dict[str, Any]):
    """Takes the facts; writes nothing yet."""
    self._path = workdir / "run.json"
    self._facts = facts

  def note(self, **more: Any) -> None:
    """Remembers further facts for the next `write`."""
    self._facts |= more

  def write(self, status: str, **more: Any) -> None:
    """Writes the facts with a status.

    Args:
      status: running | finished | preempted | crashed.
      **more: Further facts, kept from now on.
    """
    self.note(**more)
    write_json(self._path, {"status": status} | self._facts)


def read_config(workdir: str | os.PathLike) -> Config:
  """The resolved configuration that a run was started with.

  Raises:
    ConfigError: If the folder holds no run.
  """
  path = pathlib.Path(workdir) / "config.json"
  if not path.is_file():
    raise ConfigError(f"{workdir} holds no run: there is no {path.name} in it.")
  return load.from_dict(json.loads(path.read_text()))


def versions() -> dict[str, str]:
  """Versions of the packages that decide the numbers."""
  return {name: importlib.metadata.version(name) for name in _PACKAGES}


def facts(parts: Parts, data: dict[str, layout.Prepared]) -> dict[str, Any]:
  """Sizes, mesh, versions and n-gram floors of a run, for `run.json`."""
  counts = param_table.count_params(parts.config.model)
  return {
    "parameters": counts._asdict(),
    "flops_per_token": flops.train_flops_per_token(parts.config.model),
    "state_bytes_per_device": sharding.bytes_per_device(
      parts.abstract_state, parts.shardings
    ),
    "mesh": dict(parts.mesh.shape),
    "device": parts.mesh.devices.flat[0].device_kind,
    "cores": children.num_cores(),
    "processes": jax.process_count(),
    "num_steps": ramp.num_steps(parts.config),
    "tokens_per_step": parts.config.tokens_per_step,
    "phases": [p._asdict() for p in ramp.of_config(parts.config)],
    "versions": versions(),
    "floors": {name: p.meta.floors for name, p in data.items()},
  }


def headline(parts: Parts, step: int) -> str:
  """One line about a run that begins or goes on."""
  config, counts = parts.config, param_table.count_params(parts.config.model)
  mesh = " x ".join(f"{n} {axis}" for axis, n in parts.mesh.shape.items())
  sizes = [
    phase.rows * config.data.seq_length for phase in ramp.of_config(config)
  ]
  size = f"{sizes[0]}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
  start = f"resuming at step {step} of" if step else "for"
  return (
    f"{human(counts.total)} parameters ({human(counts.body)} in the body), "
    f"{config.optim.name}, {start} {ramp.num_steps(config)} steps of "
    f"{size} tokens, on {mesh}"
  )
