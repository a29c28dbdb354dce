"""Meshes with Explicit axes, where layouts are types.

On Explicit axes, the default of `jax.make_mesh`, the layout of an array is a
part of its type, and an operation raises an error if JAX cannot tell the
layout of its result. The algebra of matrices rearranges leaves all the time:
`in_auto_mode` runs it with the Explicit axes turned into Auto ones, so that
the compiler finds the layouts in between, and gives the results a layout.

Nothing here does anything on a mesh without Explicit axes.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec


def explicit_mesh(*trees: Any) -> AbstractMesh | None:
  """The mesh in use if it has Explicit axes, else None.

  Args:
    *trees: Without `jax.set_mesh`, the mesh in use is the one of the first
      array in these trees that lies on a mesh.
  """
  mesh: Any = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    found = (jax.typeof(x).sharding.mesh for x in _arrays(trees))
    mesh = next((m for m in found if not m.empty), mesh)
  return mesh if mesh.explicit_axes else None


def layouts(tree: Any, mesh: AbstractMesh) -> Any:
  """Where each array lies on the mesh: its own place, or replicated."""

  def layout(x):
    own: Any = jax.typeof(x).sharding
    return NamedSharding(mesh, PartitionSpec() if own.mesh.empty else own.spec)

  return jax.tree.map(layout, tree)


def explicit_part(
  spec: PartitionSpec, shape: tuple[int, ...], mesh: AbstractMesh
) -> NamedSharding:
  """A spec without its axes that are not Explicit or do not divide a side."""

  def kept(entry, length):
    names = entry if isinstance(entry, tuple) else (entry,)
    names = tuple(name for name in names if name in mesh.explicit_axes)
    divides = length % math.prod(mesh.shape[name] for name in names) == 0
    return names if names and divides else None

  entries = [kept(*pair) for pair in zip(spec, shape, strict=False)]
  return NamedSharding(mesh, PartitionSpec(*entries))


def in_auto_mode(
  function: Callable[..., Any], *args: Any, out: Callable[..., Any]
) -> Any:
  """Calls a function with the Explicit axes of the mesh as Auto axes.

  Like `jax.sharding.auto_axes`, which wants all layouts of the result before
  there is a result, an array in each leaf, and a mesh for each array.

  Args:
    function: It must not close over arrays, whose types stay Explicit.
    *args: Its arguments, any trees.
    out: (result, mesh) -> a tree of `NamedSharding`s like the result.

  Returns:
    The result of the function, in the layouts of `out`.
  """
  mesh = explicit_mesh(*args)
  if mesh is None:
    return function(*args)
  turned = dict.fromkeys(mesh.explicit_axes, AxisType.Auto)

  def as_auto(x):
    if isinstance(x, jax.Array):
      return jax.sharding.reshard(x, PartitionSpec())
    return x

  with _devices(args):
    with jax.sharding.use_abstract_mesh(mesh.update_axis_types(turned)):
      result = function(*jax.tree.map(as_auto, args))
    return jax.tree.map(jax.sharding.reshard, result, out(result, mesh))


def on_any_mesh(function: Callable[..., Any]) -> Callable[..., Any]:
  """Runs a function `in_auto_mode`; its results are replicated."""

  def whole(result, mesh):
    place = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda _: place, result)

  @functools.wraps(function)
  def anywhere(*args, **kwargs):
    return in_auto_mode(
      lambda args, kwargs: function(*args, **kwargs), args, kwargs, out=whole
    )

  return anywhere


def replicated(tree: Any) -> Any:
  """The tree, each array whole on every device along Explicit axes."""
  mesh = explicit_mesh(tree)
  if mesh is None:
    return tree
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda x: jax.sharding.reshard(x, whole), tree)


def placed(tree: Any, like: Any) -> Any:
  """The tree, each array in the layout of its counterpart in `like`."""
  mesh = explicit_mesh(like)
  if mesh is None:
    return tree
  return jax.tree.map(jax.sharding.reshard, tree, layouts(like, mesh))


def num_shards(x: jax.Array, axis: int) -> int:
  """Into how many parts Explicit axes cut one axis of an array."""
  mesh = explicit_mesh(x)
  if mesh is None:
    return 1
  spec = layouts(x, mesh).spec
  entry = spec[axis] if axis < len(spec) else None
  names = entry if isinstance(entry, tuple) else (entry,)
  return math.prod(mesh.shape[name] for name in names if name is not None)


def unsplit(tree: Any, axis: int = 0) -> Any:
  """The tree, one axis of each array not spread over Explicit axes."""
  mesh = explicit_mesh(tree)
  if mesh is None:
    return tree

  def whole(x, own):
    entries = list(own.spec)
    if axis < len(entries):
      entries[axis] = None
    spec = PartitionSpec(*entries)
    return jax.sharding.reshard(x, NamedSharding(mesh, spec))

  return jax.tree.map(whole, tree, layouts(tree, mesh))


def zeros(x: Any, dtype: Any) -> jax.Array:
  """Zeros of the shape of an array or of its type; on Explicit axes, there."""
  own = getattr(x, "sharding", None)
  if isinstance(x, jax.core.Tracer):
    own = jax.typeof(x).sharding
  mesh = getattr(own, "mesh", None)
  if mesh is None or AxisType.Explicit not in mesh.axis_types:
    return jnp.zeros(x.shape, dtype)
  if isinstance(x, jax.Array):
    return jnp.zeros_like(x, dtype)
  return jnp.zeros(x.shape, dtype, out_sharding=own)


def zero_result(function: Callable[..., Any], *args: Any) -> Any:
  """Zeros of the types that a function returns, without calling it."""
  types = []

  def typed(*args):
    result = function(*args)
    types.append(jax.tree.map(jax.typeof, result))
    return result

  jax.eval_shape(typed, *args)  # Its own result has no layouts on some meshes.
  return jax.tree.map(lambda x: zeros(x, x.dtype), types[0])


def _arrays(tree: Any) -> list[jax.Array]:
  return [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]


def _devices(tree: Any) -> Any:
  """A context with the devices of arrays that are outside of jit."""
  arrays = _arrays(tree)
  known = not jax.sharding.get_abstract_mesh().empty
  if known or any(isinstance(x, jax.core.Tracer) for x in arrays):
    return contextlib.nullcontext()
  meshes = (getattr(x.sharding, "mesh", None) for x in arrays)
  return jax.set_mesh(next(mesh for mesh in meshes if mesh is not None))
