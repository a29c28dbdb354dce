r"""Would it fit? Bytes of each device for a configuration and some hardware.

    python -m lm.tools.plan --config=ml_collections_configs/olmo150m.py \
        --topology=v5p-32 --config.mesh.fsdp=16 --config.mesh.data=1

The program needs no device of the topology and no data. The bytes that a device
keeps from update to update are exact. The peak within an update is from the
compiler of the topology if it is installed (`pip install libtpu`, for TPU
slices), and an estimate otherwise: the last line says which. With
`--by=compiler` and no such compiler, the program is compiled for as many CPU
devices, up to 64. If a device would not hold the run, the exit code is 2, and
the message lists changes that would make the run fit.
"""

import dataclasses
import itertools
import os
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from ..cli import flags, program
from ..cli.flags import Flag
from ..cli.text import human
from ..config import load
from ..config.errors import ConfigError, InputError
from ..config.schema import Config
from ..model import mesh as meshes
from ..model import params as param_table
from ..step import build, chips, memory
from . import estimate

_MOST_CPU_DEVICES = 64
Change = tuple[str, dict[str, Any]]  # Section of the configuration, its keys.
_CLOSE = 0.8  # Of the memory; from here on an estimate is not exact enough.


class Plan(NamedTuple):
  """What would lie on each device."""

  rows: list[memory.Row]  # See `lm/step/memory.py`.
  source: str  # How the peak was found.
  exact: bool  # Whether by a compiler for these devices.

  @property
  def peak(self) -> int:
    """Bytes of one device."""
    return memory.peak(self.rows)


def by_formula(config: Config, devices: int) -> Plan:
  """The plan on so many devices, none of which need exist.

  Raises:
    ValueError: If the mesh or the rows do not fit them.
  """
  mesh: Any = meshes.abstract_mesh(config.mesh.sizes, devices)
  build.check_rows(config, mesh)
  rows = memory.plan(build.build(config, mesh=mesh))
  return Plan(rows, "an estimate from the traced program", False)


def by_compiler(config: Config, devices: list[Any]) -> Plan:
  """The plan with the peak of the compiled program.

  Raises:
    ValueError: If the mesh or the rows do not fit.
    MemoryError: If the compiler finds that the program does not.
  """
  parts = build.build(config, devices)
  build.check_rows(config, parts.mesh)
  kind = devices[0].device_kind
  source = f"the compiler's for {len(devices)} {kind}"
  try:
    with jax.set_mesh(parts.mesh):
      step: Any = build.compile_step(parts)
      used = step.memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    raise MemoryError(str(error).splitlines()[0]) from error
  kept = memory.kept(parts)
  more = used.temp_size_in_bytes + used.generated_code_size_in_bytes
  rows = [*kept, memory.Row("within an update", more, None, memory.GRADIENTS)]
  return Plan(rows, source, kind != "cpu")


def make(config: Config, topology: chips.Topology, by: str = "auto") -> Plan:
  """The plan by the best means there is.

  Args:
    config: Resolved.
    topology: Of the run.
    by: auto, the compiler of the topology if it is there; compiler, that or
      fake CPU devices; formula.

  Raises:
    ValueError: If the configuration does not fit the topology, or there is no
      compiler.
    ConfigError: If the compiler finds that a device would not hold it.
  """
  sizes = meshes.mesh_sizes(config.mesh.sizes, topology.devices)
  meshes.check_slices(sizes, topology.slices)
  if by != "formula":
    devices = chips.described_devices(topology)
    if devices is not None:
      try:
        return by_compiler(config, devices)
      except MemoryError as error:
        raise _refusal(f"{error}", config, topology) from error
  if by != "compiler":
    return by_formula(config, topology.devices)
  if topology.devices > _MOST_CPU_DEVICES:
    raise InputError(
      f"--by=compiler: no compiler for {topology.name} is installed, and "
      f"{topology.devices} devices are too many to stand in for; take "
      "--by=formula, or `pip install libtpu` for TPU slices."
    )
  return by_compiler(config, jax.devices("cpu")[: topology.devices])


def text(plan: Plan, config: Config, topology: chips.Topology) -> str:
  """The table with its surroundings, for people."""
  kind = topology.kind
  sizes = meshes.mesh_sizes(config.mesh.sizes, topology.devices)
  mesh = " x ".join(
    f"{n} {axis}" for n, axis in zip(sizes, meshes.AXES, strict=True)
  )
  of = f" of {memory.size_text(kind.memory)}" if kind.memory else ""
  counts = param_table.count_params(config.model)
  share = ""
  if kind.memory:
    share = f", {100 * plan.peak / kind.memory:.0f} % of a device"
    if not plan.exact and _CLOSE <= plan.peak / kind.memory <= 1:
      share += ": close, for an estimate"
  return (
    f"{topology.name}: {topology.devices} {kind.device_kind}{of}, {mesh}\n"
    f"{human(counts.total)} parameters, {config.optim.name}, "
    f"{config.microbatch_size} rows of {config.data.seq_length} a pass\n\n"
    f"{memory.table(plan.rows)}\n\n"
    f"The peak is {plan.source}{share}."
  )


def check(plan: Plan, config: Config, topology: chips.Topology) -> None:
  """Refuses a plan that a device would not hold, with the ways out.

  Raises:
    ConfigError: If a device would not hold the run.
  """
  limit = topology.kind.memory
  if limit is None or plan.peak <= limit:
    return
  reason = (
    f"{memory.size_text(plan.peak)} on a device of {memory.size_text(limit)}."
  )
  raise _refusal(reason, config, topology)


def _refusal(
  reason: str, config: Config, topology: chips.Topology
) -> ConfigError:
  """Says that a device would not hold the run, why, and the ways out."""
  found = list(ways_out(config, topology))
  if found:
    advice = " Estimated to hold:\n" + "\n".join(found)
  else:
    advice = (
      " Neither config.mesh.fsdp over all devices, nor config.model.remat=full,"
      " nor the smallest config.train.microbatch_size, nor all of them, are "
      "estimated to help: take more or larger devices, or config.mesh.tensor."
    )
  return ConfigError(f"{topology.name} would not hold it: {reason}{advice}")


def ways_out(config: Config, topology: chips.Topology) -> Iterator[str]:
  """Flags that would make the run fit by the formula, as few as possible.

  Yields:
    The mildest setting of each smallest set of changes that is enough.
  """
  limit, count = topology.kind.memory or 0, topology.devices
  knobs = _knobs(config, topology)
  for number in range(1, len(knobs) + 1):
    found = [
      _first_that_holds(config, chosen, count, limit)
      for chosen in itertools.combinations(knobs, number)
    ]
    if any(found):
      yield from filter(None, found)
      return


def _first_that_holds(
  config: Config,
  knobs: Sequence[list[Change]],
  devices: int,
  limit: int,
) -> str | None:
  """Flags of the mildest setting of all these knobs that holds, if any."""
  settings = list(itertools.product(*knobs))
  # The last setting saves most: if it is not enough, none is.
  if _setting(config, settings[-1], devices, limit) is None:
    return None
  found = (_setting(config, s, devices, limit) for s in settings)
  return next(filter(None, found))


def _setting(
  config: Config, changes: Sequence[Change], devices: int, limit: int
) -> str | None:
  """The flags of these changes if they are enough."""
  for section, keys in changes:
    section_now = dataclasses.replace(getattr(config, section), **keys)
    config = dataclasses.replace(config, **{section: section_now})
  if build.problems(config):  # Such as a method that fixes its microbatches.
    return None
  try:
    peak = by_formula(config, devices).peak
  except ValueError:  # Such as rows that do not divide over the mesh.
    return None
  if peak > limit:
    return None
  words = [
    f"--config.{section}.{key}={value}"
    for section, keys in changes
    for key, value in keys.items()
  ]
  return f"  {' '.join(words)}  ({memory.size_text(peak)})"


def _knobs(config: Config, topology: chips.Topology) -> list[list[Change]]:
  """What saves memory and leaves the numbers alone, each from mild to most."""
  knobs: list[list[Change]] = []
  devices = topology.devices
  _, fsdp, tensor = meshes.mesh_sizes(config.mesh.sizes, devices)
  rest = devices // tensor
  most = rest // topology.slices  # Parameters stay within a slice.
  if fsdp < most:
    knobs.append([("mesh", {"data": rest // most, "fsdp": most})])
  if config.model.remat != "full":
    knobs.append([("model", {"remat": "full"})])
  batch = config.data.batch_size
  fits = [n for n in range(rest, batch, rest) if batch % n == 0]
  smaller = [n for n in reversed(fits) if n < config.microbatch_size]
  if smaller:
    knobs.append([("train", {"microbatch_size": n}) for n in smaller])
  return knobs


_FLAGS = (
  flags.CONFIG,
  Flag(
    "topology",
    str,
    "devices, e.g. v5p-32 (16 chips), 2xv5p-32, v5e-16, h100-8, cpu-8",
    required=True,
  ),
  Flag(
    "by",
    str,
    "how to find the peak",
    "auto",
    choices=("auto", "compiler", "formula"),
  ),
)


@program.takes(__doc__, _FLAGS)
def main(args: types.SimpleNamespace) -> None:
  """Prints the plan."""
  config = load.from_config_dict(args.config, build.problems)
  topology = chips.find(args.topology)
  # The devices of this machine are not used: devices are only described.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  jax.config.update("jax_platforms", "cpu")
  if topology.devices <= _MOST_CPU_DEVICES:
    jax.config.update("jax_num_cpu_devices", topology.devices)
  config = estimate.resolve(config, topology.kind.platform)
  plan = make(config, topology, args.by)
  print(text(plan, config, topology), flush=True)
  check(plan, config, topology)


if __name__ == "__main__":
  program.start(main)
