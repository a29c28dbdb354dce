"""Accelerators by the names their users know: v5p-32, v5e-16, h100-8, cpu-8.

2xv5p-32 are two slices, joined by the data centre's network.

The number in a v2, v3, v4 or v5p name counts TensorCores, two of a chip, as in
the cloud's accelerator types; in all others it counts jax devices. Memory is
what the makers state for a chip; the part that a program can have is smaller by
what the runtime reserves.

Sources: https://cloud.google.com/tpu/docs/v4 (32 GiB a chip), /v5e (16 GB),
/v5p (95 GB), /v6e (32 GB), /v3 (16 GB a core); NVIDIA's data sheets of A100
(40 or 80 GB), H100 SXM (80 GB) and H200 (141 GB).
"""

import re
from typing import Any, NamedTuple

GIB, GB = 1 << 30, 10**9

# Shapes of slices, by chips: of the two-dimensional tori, and of the others.
_FLAT = {
  1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16",
  256: "16x16",
}  # fmt: skip
_CUBES = {
  4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8",
  256: "4x8x8", 512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16",
  4096: "16x16x16",
}  # fmt: skip


class Kind(NamedTuple):
  """One kind of accelerator.

  Attributes:
    platform: tpu | gpu | cpu.
    device_kind: How jax calls it, e.g. for `lm.step.flops.peak_flops`.
    memory: Bytes of one jax device; None if it is not known.
    cores: Counted by a name, for each jax device.
    shapes: Of slices, by jax devices, as the compiler's topologies spell them.
  """

  platform: str
  device_kind: str
  memory: int | None
  cores: int = 1
  shapes: dict[int, str] = {}


KINDS = {
  "v3": Kind("tpu", "TPU v3", 16 * GIB),
  "v4": Kind("tpu", "TPU v4", 32 * GIB, 2),
  "v5e": Kind("tpu", "TPU v5 lite", 16 * GIB, shapes=_FLAT),
  "v5p": Kind("tpu", "TPU v5p", 95 * GIB, 2, _CUBES),
  "v6e": Kind("tpu", "TPU v6 lite", 32 * GIB, shapes=_FLAT),
  "a100": Kind("gpu", "NVIDIA A100", 80 * GB),
  "a100-40gb": Kind("gpu", "NVIDIA A100", 40 * GB),
  "h100": Kind("gpu", "NVIDIA H100", 80 * GB),
  "h200": Kind("gpu", "NVIDIA H200", 141 * GB),
  "cpu": Kind("cpu", "cpu", None),
}
_ALIASES = {"v5litepod": "v5e"}


class Topology(NamedTuple):
  """Some number of devices of one kind.

  Attributes:
    name: As the user wrote it.
    kind: Which accelerator.
    devices: jax devices in all.
    slices: That they are in.
  """

  name: str
  kind: Kind
  devices: int
  slices: int = 1

  @property
  def compiler_name(self) -> str | None:
    """Of a slice, for `jax.experimental.topologies`; None if it has none."""
    shape = self.kind.shapes.get(self.devices // self.slices)
    if shape is None:
      return None
    family = next(k for k, kind in KINDS.items() if kind == self.kind)
    return f"{family}:{shape}"


def find(name: str) -> Topology:
  """The topology called `name`.

  Args:
    name: Such as v5p-32: a key of `KINDS`, then its cores or devices; before
      it, the number of such slices and an x.

  Raises:
    ValueError: If the accelerator is not known or the number does not fit.
  """
  parsed = re.fullmatch(r"(?:(\d+)x)?(.+)-(\d+)", name.lower())
  times, family, number = parsed.groups() if parsed else (None, name, "0")
  kind = KINDS.get(_ALIASES.get(family, family))
  count, slices = int(number), int(times or 1)
  if kind is None or count < 1 or slices < 1:
    raise ValueError(
      f"--topology={name} is none of {', '.join(f'{k}-N' for k in KINDS)}; "
      "e.g. v5p-32 (16 chips), 2xv5p-32 (two slices), v5e-16, h100-8, cpu-8."
    )
  if count % kind.cores:
    raise ValueError(
      f"--topology={name} counts TensorCores, {kind.cores} of a chip: the "
      f"number must be a multiple of {kind.cores}, e.g. "
      f"{family}-{count + kind.cores - count % kind.cores}."
    )
  if slices > 1 and kind.platform != "tpu":
    raise ValueError(
      f"--topology={name}: slices are of TPUs; name the devices of all hosts, "
      f"e.g. {family}-{slices * count}."
    )
  return Topology(name, kind, slices * count // kind.cores, slices)


def described_devices(topology: Topology) -> list[Any] | None:
  """Devices that a compiler here can compile for; None if there is none.

  TPU slices can be described where `libtpu` is installed, with or without a
  TPU: `pip install libtpu`.
  """
  name = topology.compiler_name
  if name is None:
    return None
  from jax.experimental import topologies

  try:
    described = topologies.get_topology_desc(
      name, platform="tpu", num_slices=topology.slices
    )
  except Exception:  # Whatever the plug-in, or its absence, raises.
    return None
  found = list(described.devices)
  return found if len(found) == topology.devices else None
