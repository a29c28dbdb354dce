"""The one table of accelerators, and names of slices: v5p-32, h100-8, cpu-8.

2xv5p-32 are two slices, joined by the data centre's network.

The number in a v4 or v5p name counts TensorCores, two in a chip, as in the
cloud's accelerator types. In all other names the number counts jax devices
(cores of a v3, chips of the others). Memory and bfloat16 FLOP/s (without
sparsity) are what the makers state. The runtime reserves some of the memory; a
program can have the rest.

Sources: https://docs.cloud.google.com/tpu/docs/v3 (16 GB a core; 123 TFLOP/s of
a chip, two cores), /v4 (32 GiB a chip), /v5e (16 GB), /v5p (95 GB), /v6e
(32 GB); NVIDIA's data sheets of A100 (40 or 80 GB; 624 TFLOP/s with sparsity,
half without), H100 PCIe (80 GB; 1,513 with sparsity), H100 SXM (80 GB) and H200
SXM (141 GB; both 1,979 with sparsity).
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
  """One kind of accelerator, by what holds for one jax device.

  Attributes:
    platform: tpu | gpu | cpu.
    device_kind: How jax calls it.
    pattern: Expression that names of jax in small letters match; the first
      kind that matches counts.
    memory: Bytes; None if it is not known.
    flops: bfloat16 operations a second; None if it is not known.
    cores: Counted by a name, for each jax device.
    shapes: Of slices, by jax devices, as the compiler's topologies spell them.
  """

  platform: str
  device_kind: str
  pattern: str
  memory: int | None
  flops: float | None
  cores: int = 1
  shapes: dict[int, str] = {}


KINDS = {
  "v3": Kind("tpu", "TPU v3", "tpu v3", 16 * GIB, 61.5e12),
  "v4": Kind("tpu", "TPU v4", "tpu v4", 32 * GIB, 275e12, 2),
  "v5e": Kind(
    "tpu", "TPU v5 lite", "tpu v5( lite|e)", 16 * GIB, 197e12, shapes=_FLAT
  ),
  "v5p": Kind("tpu", "TPU v5p", "tpu v5", 95 * GIB, 459e12, 2, _CUBES),
  "v6e": Kind("tpu", "TPU v6 lite", "tpu v6", 32 * GIB, 918e12, shapes=_FLAT),
  "a100": Kind("gpu", "NVIDIA A100", "a100", 80 * GB, 312e12),
  "a100-40gb": Kind("gpu", "NVIDIA A100", "a100", 40 * GB, 312e12),
  "h100-pcie": Kind("gpu", "NVIDIA H100 PCIe", "h100 pcie", 80 * GB, 756e12),
  "h100": Kind("gpu", "NVIDIA H100", "h100", 80 * GB, 989.5e12),
  "h200": Kind("gpu", "NVIDIA H200", "h200", 141 * GB, 989.5e12),
  "cpu": Kind("cpu", "cpu", "cpu", None, None),
}
_ALIASES = {"v5litepod": "v5e"}


def peak_flops(device_kind: str) -> float | None:
  """Peak bfloat16 FLOP/s of one jax device, or None if it is not known.

  Args:
    device_kind: `jax.devices()[0].device_kind`.

  Returns:
    FLOP/s of dense products, as its maker states them.
  """
  name = device_kind.lower()
  found = (
    kind.flops for kind in KINDS.values() if re.search(kind.pattern, name)
  )
  return next(found, None)


class Topology(NamedTuple):
  """Some number of devices of one kind."""

  name: str  # As the user wrote it.
  kind: Kind  # Which accelerator.
  devices: int  # jax devices in all.
  slices: int = 1  # That they are in.

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
