"""How the training state lies on the mesh.

Parameters follow their logical axes (`lm/spec.py`, `lm/mesh.py`); the leaves
of the optimiser's state that belong to a parameter lie as it does, stacks of
matrices are spread over devices (`placement`), and what else there is is
replicated (`optim.state_specs`). With
`config.mesh.rules = "fsdp_shape"` every leaf is placed by its shape alone.
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .. import mesh as meshes
from .. import optimizer
from ..spec import ParamSpec
from .state import TrainState


def param_shardings(mesh: Mesh, specs: Any, rules: str = "logical") -> Any:
  """Sharding of each parameter.

  Args:
    mesh: The mesh.
    specs: Tree of `ParamSpec`.
    rules: logical | fsdp_shape.
  """

  def sharding(spec: ParamSpec) -> NamedSharding:
    if rules == "fsdp_shape":
      entries = meshes.shape_spec(spec.shape, mesh.shape)
    else:
      entries = meshes.partition_spec(spec.axes, spec.shape, mesh.shape)
    return NamedSharding(mesh, entries)

  return jax.tree.map(
    sharding, specs, is_leaf=lambda x: isinstance(x, ParamSpec)
  )


def placement(
  mesh: Mesh, specs: Any, layers: int, rules: str = "logical"
) -> optimizer.Placement:
  """Where matrix methods keep their stacks on `mesh`.

  Along fsdp and data, unless one of them has two devices for each layer, which
  is about as many as a layer has matrices of a shape: on more, most would work
  on zeros, and a checkpoint would hold these. fsdp comes first, which stays
  within a slice.

  Args:
    mesh: The mesh.
    specs: Tree of `ParamSpec`.
    layers: Of the model.
    rules: logical | fsdp_shape.
  """
  params = jax.tree.map(lambda s: s.spec, param_shardings(mesh, specs, rules))
  wide = [axis for axis in ("fsdp", "data") if mesh.shape[axis] >= 2 * layers]
  axes = (wide[0],) if wide else ("data", "fsdp")
  shards = math.prod(mesh.shape[axis] for axis in axes)
  if rules == "fsdp_shape" or shards == 1:
    return optimizer.Placement(param_specs=params)
  return optimizer.Placement(axes, shards, params)


def state_shardings(
  mesh: Mesh,
  specs: Any,
  abstract_state: TrainState,
  stacks: optimizer.Placement,
  rules: str = "logical",
) -> TrainState:
  """Sharding of each leaf of a training state.

  Args:
    mesh: The mesh.
    specs: Tree of `ParamSpec`, like the parameters.
    abstract_state: The state's shapes.
    stacks: From `placement`.
    rules: logical | fsdp_shape.
  """
  params = param_shardings(mesh, specs, rules)
  replicated = NamedSharding(mesh, PartitionSpec())
  if rules == "fsdp_shape":
    opt_state = meshes.tree_shardings(mesh, abstract_state.opt_state)
  else:
    entries = optimizer.state_specs(abstract_state.opt_state, stacks)
    opt_state = jax.tree.map(
      lambda entry: NamedSharding(mesh, entry),
      entries,
      is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
  return TrainState(
    step=replicated,
    params=params,
    opt_state=opt_state,
    ema=params if abstract_state.ema != () else (),
    halted=replicated,
  )


def bytes_per_device(abstract_state: Any, shardings: Any) -> int:
  """Largest share of the state that one device holds, in bytes."""
  sizes = jax.tree.map(leaf_bytes, abstract_state, shardings)
  return sum(jax.tree.leaves(sizes))


def leaf_bytes(leaf: Any, lies: NamedSharding) -> int:
  """Largest share of one array that one device holds, in bytes."""
  return leaf.dtype.itemsize * math.prod(lies.shard_shape(leaf.shape))
