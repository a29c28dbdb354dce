"""How the training state lies on the mesh.

Parameters follow their logical axes (`lm/model/params.py`, `lm/model/mesh.py`).
The leaves of the optimiser's state that belong to a parameter lie as the
parameter does, stacks of matrices are spread over devices (`placement`), and
the rest is replicated (`optim.state_specs`). With
`config.mesh.rules = "fsdp_shape"` every leaf is placed by its shape alone.
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optim

from ..model import mesh as meshes
from ..model.params import ParamSpec
from .state import TrainState

# Devices along both axes for each layer, at most: see `placement`.
_MOST_ZEROS = 4


def param_shardings(mesh: Mesh, specs: Any, rules: str = "logical") -> Any:
  """Sharding of each parameter; `rules` is logical or fsdp_shape."""

  def sharding(spec: ParamSpec) -> NamedSharding:
    if rules == "fsdp_shape":
      entries = meshes.shape_spec(spec.shape, mesh.shape)
    else:
      entries = meshes.partition_spec(spec.axes, spec.shape, mesh.shape)
    return NamedSharding(mesh, entries)

  return jax.tree.map(sharding, specs)


def placement(
  mesh: Mesh, specs: Any, layers: int, rules: str = "logical"
) -> optim.Placement:
  """Where matrix methods keep their stacks on `mesh`.

  Stacks lie along fsdp or data if one of these axes has a device for each
  layer, else along both. fsdp is preferred, since it stays within a slice.
  Stacks are padded with zeros to a multiple of the devices. With many more
  devices than matrices most of what is sent and saved would be padding. So with
  more than four devices for each layer stacks lie along the longer axis alone.

  Args:
    mesh: The mesh.
    specs: Tree of `ParamSpec`.
    layers: Of the model.
    rules: logical | fsdp_shape.
  """
  params = jax.tree.map(lambda s: s.spec, param_shardings(mesh, specs, rules))
  fsdp, data = mesh.shape["fsdp"], mesh.shape["data"]
  axes: tuple[str, ...] = ("data", "fsdp")
  if max(fsdp, data) >= layers or fsdp * data > _MOST_ZEROS * layers:
    alone = fsdp >= min(data, layers)
    axes = ("fsdp",) if alone else ("data",)
  shards = math.prod(mesh.shape[axis] for axis in axes)
  if rules == "fsdp_shape" or shards == 1:
    return optim.Placement(param_specs=params)
  return optim.Placement(axes, shards, params)


def state_shardings(
  mesh: Mesh,
  specs: Any,
  abstract_state: TrainState,
  stacks: optim.Placement,
  rules: str = "logical",
  frozen: Any = (),
) -> TrainState:
  """Sharding of each leaf of a training state.

  Args:
    mesh: The mesh.
    specs: Tree of `ParamSpec`, like the parameters.
    abstract_state: The state's shapes.
    stacks: From `placement`.
    rules: logical | fsdp_shape.
    frozen: Shardings of what is carried but not trained.
  """
  params = param_shardings(mesh, specs, rules)
  replicated = NamedSharding(mesh, PartitionSpec())
  if rules == "fsdp_shape":
    opt_state = meshes.tree_shardings(mesh, abstract_state.opt_state)
  else:
    entries = optim.state_specs(abstract_state.opt_state, stacks)
    opt_state = jax.tree.map(
      lambda entry: NamedSharding(mesh, entry),
      entries,
      is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
  return TrainState(
    step=replicated,
    params=params,
    opt_state=opt_state,
    halted=replicated,
    frozen=frozen,
  )


def bytes_per_device(abstract_state: Any, shardings: Any) -> int:
  """Largest share of the state that one device holds, in bytes."""
  sizes = jax.tree.map(leaf_bytes, abstract_state, shardings)
  return sum(jax.tree.leaves(sizes))


def leaf_bytes(leaf: Any, lies: NamedSharding) -> int:
  """Largest share of one array that one device holds, in bytes."""
  return leaf.dtype.itemsize * math.prod(lies.shard_shape(leaf.shape))
