"""Devices as a mesh, and how arrays lie on it.

Three axes, always: `data` (replicas of everything), `fsdp` (parameters split
over their embedding axis), `tensor` (heads, inner width and vocabulary split).
A parameter or activation names its axes logically; one table of rules maps
those names to mesh axes. The mesh is entered with `jax.set_mesh`; `with mesh:`
is not used, since flax and `constrain` would then see no mesh at all.
"""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes, of parameters and of activations.
RULES: Mapping[str | None, tuple[str, ...]] = {
  "batch": ("data", "fsdp"),
  "replica_batch": ("data",),
  "seq": (),
  "act_embed": (),
  "act_mlp": ("tensor",),
  "act_heads": ("tensor",),
  "act_vocab": ("tensor",),
  "embed": ("fsdp",),
  "mlp": ("tensor",),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "kv": (),
  "vocab": ("tensor",),
  "positions": (),
  "layers": (),
  "experts": (),
  "gain": (),
  None: (),
}

# Leaves below this many bytes are replicated by `shape_spec`.
_SMALL = 64 * 1024


def mesh_sizes(sizes: Sequence[int], num_devices: int) -> tuple[int, ...]:
  """Replaces the one -1 in `sizes` by what is left of the devices.

  Args:
    sizes: Devices along `data`, `fsdp`, `tensor`; at most one is -1.
    num_devices: How many there are.

  Raises:
    ValueError: If the product of the sizes is not `num_devices`.
  """
  known = math.prod(s for s in sizes if s != -1)
  named = ", ".join(
    f"config.mesh.{a}={s}" for a, s in zip(AXES, sizes, strict=True)
  )
  wrong = [s for s in sizes if s < 1 and s != -1]
  if wrong or list(sizes).count(-1) > 1:
    raise ValueError(
      f"{named}: sizes are >= 1, and at most one is -1 (the rest of the "
      "devices)."
    )
  if num_devices % known or (-1 not in sizes and known != num_devices):
    raise ValueError(
      f"{named} asks for a multiple of {known} devices, but there are "
      f"{num_devices}. Set one of them to -1, or choose sizes whose product is "
      f"{num_devices}."
    )
  return tuple(num_devices // known if s == -1 else s for s in sizes)


def make_mesh(
  sizes: Sequence[int], devices: Sequence[Any] | None = None
) -> Mesh:
  """A mesh (data, fsdp, tensor) over `devices` (all of them by default).

  A slower network joins several slices. Devices of several slices therefore
  differ along `data` alone: replicas exchange one gradient an update, the other
  axes exchange much more. To jax, GPUs of several hosts are slices, too. Their
  other axes may cross hosts where `data` is no multiple of the hosts.

  Args:
    sizes: Devices along the three axes; at most one is -1.
    devices: The devices, in order; None takes `jax.devices()`.

  Raises:
    ValueError: If the sizes do not multiply to the number of devices, or those
      of TPU slices do not fit them (`check_slices`).
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = mesh_sizes(sizes, len(devices))
  # Explicit, jax's default, makes linen's metadata boxes fail.
  types = (AxisType.Auto,) * len(AXES)
  if count_slices(devices) > 1:
    by_slice = devices[0].platform == "tpu" or _fits_slices(sizes, devices)
    grid = across_slices(sizes, devices) if by_slice else np.array(devices)
    return Mesh(grid.reshape(sizes), AXES, axis_types=types)
  return jax.make_mesh(sizes, AXES, devices=devices, axis_types=types)


def count_slices(devices: Sequence[Any]) -> int:
  """Slices that the devices belong to; 1 where there is no such thing."""
  return len({getattr(device, "slice_index", 0) for device in devices})


def across_slices(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
  """Devices [data, fsdp, tensor]; the slices one after the other along data.

  Args:
    sizes: Devices along the three axes.
    devices: Of several slices, equally many of each.

  Raises:
    ValueError: If they do not fit (`check_slices`), or are not equally many.
  """
  data, *inner = sizes
  slices = count_slices(devices)
  check_slices(sizes, slices)
  found = collections.Counter(device.slice_index for device in devices)
  if len(set(found.values())) > 1:
    raise ValueError(
      f"The slices have {', '.join(map(str, found.values()))} devices; a mesh "
      "needs equally many of each. Use slices of one size."
    )
  return mesh_utils.create_hybrid_device_mesh(
    (data // slices, *inner), (slices, 1, 1), devices
  )


def check_slices(sizes: Sequence[int], slices: int) -> None:
  """Checks that slices can differ along `data` alone.

  Args:
    sizes: Devices along the three axes; none is -1.
    slices: Their number.

  Raises:
    ValueError: If `data` is no multiple of it.
  """
  data, fsdp, tensor = sizes
  if data % slices:
    raise ValueError(
      f"config.mesh.data={data} must be a multiple of the {slices} slices of "
      f"{math.prod(sizes) // slices} devices: fsdp={fsdp} and tensor={tensor} "
      "stay within a slice."
    )


def _fits_slices(sizes: Sequence[int], devices: Sequence[Any]) -> bool:
  found = collections.Counter(device.slice_index for device in devices)
  return sizes[0] % len(found) == 0 and len(set(found.values())) == 1


def abstract_mesh(sizes: Sequence[int], num_devices: int) -> AbstractMesh:
  """`make_mesh` over devices that are not there: for shapes and shares only.

  Args:
    sizes: Devices along the three axes; at most one is -1.
    num_devices: How many there would be.

  Raises:
    ValueError: If the sizes do not multiply to the number of devices.
  """
  return AbstractMesh(
    mesh_sizes(sizes, num_devices), AXES, (AxisType.Auto,) * len(AXES)
  )


def platform() -> str:
  """cpu, gpu or tpu: of the current mesh's devices, or else of this process.

  A program can be compiled for devices that are only described, in a process
  with other devices.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def axis_size(name: str) -> int:
  """Devices along mesh axis `name` of the current mesh; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape[name]


def partition_spec(
  axes: Sequence[str | None],
  shape: Sequence[int],
  mesh_shape: Mapping[str, int],
) -> PartitionSpec:
  """Maps logical axis names to mesh axes by `RULES`.

  A mesh axis is used once per array, by the first dimension that asks for it;
  a dimension that does not divide over its mesh axes is not split.

  Args:
    axes: Logical name of each dimension.
    shape: Size of each dimension.
    mesh_shape: Size of each mesh axis.

  Raises:
    ValueError: If a logical name has no rule.
  """
  used: set[str] = set()
  entries: list[Any] = []
  for name, size in zip(axes, shape, strict=True):
    if name not in RULES:
      raise ValueError(
        f"No sharding rule for logical axis {name!r}; rules exist for "
        f"{sorted(r for r in RULES if r)}."
      )
    wanted = [a for a in RULES[name] if a not in used and mesh_shape[a] > 1]
    if size % math.prod(mesh_shape[a] for a in wanted):
      wanted = []
    used.update(wanted)
    entries.append(tuple(wanted) if len(wanted) > 1 else (wanted or [None])[0])
  return PartitionSpec(*entries)


def shape_spec(
  shape: Sequence[int], mesh_shape: Mapping[str, int], itemsize: int = 4
) -> PartitionSpec:
  """Splits the largest dimension that divides over `fsdp`; needs no names.

  For models from elsewhere (`config.mesh.rules = "fsdp_shape"`). Arrays below
  64 KiB are replicated, since splitting them costs more than it saves.
  """
  n = mesh_shape["fsdp"]
  entries: list[str | None] = [None] * len(shape)
  if n > 1 and math.prod(shape) * itemsize >= _SMALL:
    fits = [(size, -i) for i, size in enumerate(shape) if size % n == 0]
    if fits:
      entries[-max(fits)[1]] = "fsdp"
  return PartitionSpec(*entries)


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
  """Sharding of each array of a tree by its shape alone (`shape_spec`).

  For parameters, and the state of any optimiser, of models that name no axes.

  Args:
    mesh: The mesh.
    tree: Arrays, or their shapes (`jax.eval_shape`).
  """
  return jax.tree.map(
    lambda leaf: NamedSharding(
      mesh, shape_spec(leaf.shape, mesh.shape, leaf.dtype.itemsize)
    ),
    tree,
  )


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
  """States how an activation lies on the current mesh; identity without one.

  Args:
    x: The activation.
    axes: Logical name of each of its dimensions, as in `RULES`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  # Within `jax.shard_map` an axis is no longer the compiler's to lay out.
  sizes = {a: 1 if a in mesh.manual_axes else n for a, n in mesh.shape.items()}
  spec = partition_spec(axes, x.shape, sizes)
  return jax.lax.with_sharding_constraint(x, spec)


def batch_sharding(
  mesh: Mesh, leading: int = 0, trailing: int = 1
) -> NamedSharding:
  """Sharding of rows [..., B, L + 1]: the row axis over data and fsdp.

  Args:
    mesh: The mesh.
    leading: Axes before the row axis.
    trailing: Axes after it.
  """
  axes = [None] * leading, [None] * trailing
  return NamedSharding(mesh, PartitionSpec(*axes[0], RULES["batch"], *axes[1]))


def row_range(sharding: NamedSharding, shape: Sequence[int]) -> tuple[int, int]:
  """Rows [start, stop) of a global batch that this process must hold.

  Args:
    sharding: From `batch_sharding`.
    shape: Of the global array.
  """
  axis = _row_axis(sharding)
  slices = sharding.addressable_devices_indices_map(tuple(shape)).values()
  rows = [s[axis].indices(shape[axis])[:2] for s in slices if s is not None]
  return min(r[0] for r in rows), max(r[1] for r in rows)


def put_rows(
  sharding: NamedSharding, local_rows: np.ndarray, shape: Sequence[int]
) -> jax.Array:
  """Global array of rows from the slice that this process holds.

  Args:
    sharding: From `batch_sharding`.
    local_rows: Like the global array, with stop - start of `row_range` rows.
    shape: Of the global array.
  """
  axis, (start, _) = _row_axis(sharding), row_range(sharding, shape)

  def part(index: Any) -> np.ndarray:
    first, stop, _ = index[axis].indices(shape[axis])
    mine = (*index[:axis], slice(first - start, stop - start))
    return local_rows[mine]

  return jax.make_array_from_callback(tuple(shape), sharding, part)


def _row_axis(sharding: NamedSharding) -> int:
  return list(sharding.spec).index(RULES["batch"])
