"""How the training state lies on the mesh.

Parameters follow their logical axes (`lm/spec.py`, `lm/mesh.py`). A leaf of
the optimiser's state that belongs to a parameter and has its shape lies as the
parameter does; everything else of the state is replicated. With
`config.mesh.rules = "fsdp_shape"` every leaf is placed by its shape alone.
"""

from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .. import mesh as meshes
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


def state_shardings(
  mesh: Mesh,
  specs: Any,
  tx: optax.GradientTransformation,
  abstract_state: TrainState,
  rules: str = "logical",
) -> TrainState:
  """Sharding of each leaf of a training state.

  Args:
    mesh: The mesh.
    specs: Tree of `ParamSpec`, like the parameters.
    tx: The optimiser that made `abstract_state.opt_state`.
    abstract_state: The state's shapes.
    rules: logical | fsdp_shape.
  """
  params = param_shardings(mesh, specs, rules)
  replicated = NamedSharding(mesh, PartitionSpec())

  def by_shape(leaf: Any) -> NamedSharding:
    if rules == "fsdp_shape":
      return NamedSharding(mesh, meshes.shape_spec(leaf.shape, mesh.shape))
    return replicated

  def like_param(leaf: Any, sharding: NamedSharding, spec: ParamSpec) -> Any:
    return sharding if leaf.shape == spec.shape else by_shape(leaf)

  opt_state = optax.tree_map_params(
    tx,
    like_param,
    abstract_state.opt_state,
    params,
    specs,
    transform_non_params=by_shape,
    is_leaf=lambda x: isinstance(x, ParamSpec),
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
  sizes = jax.tree.map(
    lambda a, s: a.dtype.itemsize * _size(s.shard_shape(a.shape)),
    abstract_state,
    shardings,
  )
  return sum(jax.tree.leaves(sizes))


def _size(shape: tuple[int, ...]) -> int:
  size = 1
  for n in shape:
    size *= n
  return size
