"""Where an optimiser's state and its stacks go on a mesh.

A gradient travels once, from the place of its parameter to the device that
holds the factors of its matrix. All algebra is local there. The update travels
back once.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from ..common.tree import by_path
from .plan import Bucket, Piece, Plan, find_shard_axis, parse_bucket_name
from .stacks import Split, Stacks


class Placement(NamedTuple):
  """Where a matrix method keeps its stacks on a mesh.

  Attributes:
    stack_axes: Mesh axis, or tuple of axes, over which each stack is spread,
      under `jax.set_mesh`. None: the compiler decides.
    stack_shards: Number of devices along these axes. Stacks are padded to a
      multiple of this number, and a refresh takes equally many matrices of each
      device.
    param_specs: Tree of `PartitionSpec`s like params. The updates go to these
      places before weight decay is added. None: the compiler decides, and may
      move the parameters instead.
  """

  stack_axes: Any | None = None
  stack_shards: int = 1
  param_specs: Any | None = None


def state_specs(opt_state: Any, placement: Placement) -> Any:
  """Partition specs of every leaf of an optimiser state.

  Stacked leaves (factors, bases, roots and the moments of matrices) are spread
  along their stack axis over `stack_axes`, so that a refresh needs no
  communication. A stack of too few matrices is spread along a side without a
  factor (`Bucket.shard_axis`). A leaf whose path ends with a parameter's path
  goes where the parameter goes, in this package's states and in optax's
  (chained, masked, accumulating). Any other leaf is replicated: the counts.

  Args:
    opt_state: The state, or its `jax.eval_shape`.
    placement: The `Placement` of the transform, with `param_specs`. If its
      `stack_axes` is None, stacks are replicated.

  Returns:
    A tree of `PartitionSpec`s like `opt_state`, for
    `jax.jit(..., out_shardings=...)` once turned into `NamedSharding`s.

  Raises:
    ValueError: If a leaf of `param_specs` is not a `PartitionSpec`.
  """
  specs = {}
  for path, spec in jax.tree_util.tree_flatten_with_path(
    placement.param_specs, is_leaf=_is_spec
  )[0]:
    if not _is_spec(spec):
      raise ValueError(
        f"param_specs{jax.tree_util.keystr(path)} is {spec!r}; it must be a "
        "jax.sharding.PartitionSpec, e.g. PartitionSpec() to replicate."
      )
    specs[tuple(map(str, path))] = spec

  def spec_of(path, node):
    if isinstance(node, Stacks):
      return type(node)(
        {
          name: jax.tree.map(lambda x, name=name: stack_spec(name, x), kept)
          for name, kept in node.items()
        }
      )
    keys = tuple(map(str, path))
    for start in range(len(keys) + 1):  # The longest ending first.
      spec = specs.get(keys[start:])
      if spec is not None and len(spec) <= node.ndim:
        return spec
    return PartitionSpec()

  def stack_spec(name, leaf):
    if placement.stack_axes is None:
      return PartitionSpec()
    return _stack_spec(name, leaf, placement)

  return jax.tree_util.tree_map_with_path(
    spec_of, opt_state, is_leaf=lambda x: isinstance(x, Stacks)
  )


def _stack_spec(bucket: str, leaf, placement: Placement) -> PartitionSpec:
  shape, factored = parse_bucket_name(bucket)
  shards = placement.stack_shards
  axis = find_shard_axis(shape, factored, leaf.shape[0], shards)
  # Cut along a side, only whole matrices are; their factors are replicated.
  if axis is None or (axis > 0 and leaf.shape[1:] != shape):
    return PartitionSpec()
  return PartitionSpec(*[None] * axis, placement.stack_axes)


def constrain(x: jax.Array, axis: int | None, mesh_axes: Any) -> jax.Array:
  """Spreads an axis over mesh axes (None: no axis); without a mesh, nothing."""
  if mesh_axes is None or jax.sharding.get_abstract_mesh().empty:
    return x
  names = () if axis is None else (*[None] * axis, mesh_axes)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*names))


def constrain_stacks(split: Split, plan: Plan, mesh_axes: Any) -> Split:
  """`constrain` for every bucket, so that nothing else decides in between."""
  stacks = {
    bucket.name: constrain(
      split.stacks[bucket.name], bucket.shard_axis, mesh_axes
    )
    for bucket in plan.buckets
  }
  return split._replace(stacks=Stacks(stacks))


class _Route(NamedTuple):
  """By what layouts a bucket's matrices travel between leaves and stack.

  Where parameters are replicated over some of the stack's mesh axes, d devices
  of data, and lie along others, f of fsdp, or along axes that are not the
  stack's, t of tensor, the compiler may find no way from one to the other and
  replicate everything everywhere. This one moves each axis once:

      own       [S, I/f, O/t] or [S, I/t, O/f]: where the leaf lies
      joined    [S, I/f, O/t]: the same for all leaves, by an all-to-all for
                others, so that joining them and cutting them apart is local
      sliced    [S/d, I/f, O/t]; on the way back an all-gather over data
      whole     [S/d, I/f, O]: an all-gather over tensor; back, a slice
      stack     [S/(d f), I, O]: an all-to-all over fsdp

  Attributes:
    sides: Entries of the partition spec of the sides, when joined.
    free: Mesh axes of the stack that these leave.
    shared: `sides` with the axes of the stack alone.
    own: The sides of each leaf, by its index.
  """

  sides: tuple[Any, ...]
  free: tuple[str, ...]
  shared: tuple[Any, ...]
  own: dict[int, tuple[Any, ...]]

  @property
  def joined(self) -> PartitionSpec:
    """Of [S, I, O]."""
    return PartitionSpec(None, *self.sides)

  @property
  def there(self) -> tuple[PartitionSpec, ...]:
    """Of [S, I, O], from joined on; to be followed back as well."""
    sliced = PartitionSpec(self.free, *self.sides)
    return self.joined, sliced, PartitionSpec(self.free, *self.shared)

  def own_spec(self, piece: Piece) -> PartitionSpec:
    """Of a leaf's part of [S, I, O]."""
    return PartitionSpec(None, *self.own[piece.index])


def _route(
  bucket: Bucket, specs: dict[str, PartitionSpec], mesh_axes: Any
) -> _Route | None:
  """The route of a bucket; None where the compiler needs none."""
  if bucket.shard_axis != 0:
    return None
  shape = jax.sharding.get_abstract_mesh().shape

  def wide(entries: Iterable[Any]) -> set[str]:
    """Their mesh axes of more than one device."""
    names = {name for entry in entries for name in _names(entry)}
    return {name for name in names if shape[name] > 1}

  own = {}
  for piece in bucket.pieces:
    spec = specs[piece.path]
    entries = [*spec, *[None] * (len(piece.shape) - len(spec))]
    sides = tuple(entries[axes[0]] for axes in piece.dims.side_axes)
    if math.prod(piece.blocks) > 1 or wide(entries) != wide(sides):
      return None  # Cut into blocks, or spread within a side.
    own[piece.index] = sides
  joined = max(own.values(), key=lambda sides: len(wide(sides)))
  taken = {name for entry in joined for name in _names(entry)}
  free = tuple(name for name in _names(mesh_axes) if name not in taken)
  shared = tuple(
    tuple(name for name in _names(entry) if name in _names(mesh_axes)) or None
    for entry in joined
  )
  used = wide(entry for sides in own.values() for entry in sides)
  if not used or not wide(free):
    return None
  return _Route(joined, free, shared, own)


def _routes(plan: Plan, placement: Placement) -> dict[str, _Route]:
  """The routes of those buckets that have one, by name."""
  specs, mesh_axes = placement.param_specs, placement.stack_axes
  if specs is None or mesh_axes is None or plan.empty:
    return {}
  if jax.sharding.get_abstract_mesh().empty:
    return {}
  known = by_path(specs, is_leaf=_is_spec)
  found = {b.name: _route(b, known, mesh_axes) for b in plan.buckets}
  return {name: route for name, route in found.items() if route is not None}


def to_stacks(tree: Any, plan: Plan, placement: Placement) -> Split:
  """`Plan.split`, with its stacks in their places.

  Args:
    tree: Gradients, which lie as `placement.param_specs` say.
    plan: Of the tree.
    placement: Where the stacks shall lie.
  """
  routes = _routes(plan, placement)

  def place(bucket: Bucket, piece: Piece, x: jax.Array) -> jax.Array:
    if bucket.name not in routes:
      return x
    route = routes[bucket.name]
    return _through(x, route.own_spec(piece), route.joined)

  parts = plan.split(tree, place)
  for name, route in routes.items():
    parts.stacks[name] = _through(parts.stacks[name], *route.there)
  return constrain_stacks(parts, plan, placement.stack_axes)


def from_stacks(
  split: Split, plan: Plan, like: Any, placement: Placement
) -> Any:
  """`Plan.merge`, with both its ends in their places."""
  split = constrain_stacks(split, plan, placement.stack_axes)
  routes = _routes(plan, placement)
  for name, route in routes.items():
    split.stacks[name] = _through(split.stacks[name], *route.there[::-1])

  def place(bucket: Bucket, piece: Piece, x: jax.Array) -> jax.Array:
    if bucket.name not in routes:
      return x
    route = routes[bucket.name]
    return _through(x, route.joined, route.own_spec(piece))

  tree = plan.merge(split, like, place)
  return constrain_leaves(tree, plan, placement)


def constrain_leaves(tree: Any, plan: Plan, placement: Placement) -> Any:
  """Brings merged leaves from their stack's place to their parameter's.

  In two steps: first only the mesh axes that the parameter uses are moved
  (all-to-all), then what it is replicated over is gathered. In one, the
  compiler would gather everything everywhere.

  Args:
    tree: Like params, as `Plan.merge` makes it.
    plan: Which made it.
    placement: Its `param_specs` are found by path; None or no mesh: nothing
      is done.

  Returns:
    The tree.
  """
  specs, mesh_axes = placement.param_specs, placement.stack_axes
  if specs is None or jax.sharding.get_abstract_mesh().empty:
    return tree
  known, routes = by_path(specs, is_leaf=_is_spec), _routes(plan, placement)
  leaves = plan.treedef.flatten_up_to(tree)
  wait = jax.lax.with_sharding_constraint
  for bucket in plan.buckets:
    if bucket.name in routes:
      continue  # `from_stacks` has brought these there.
    for piece in bucket.pieces:
      axes = piece.dims.stack_axes
      if bucket.shard_axis:
        axes = piece.dims.side_axes[bucket.shard_axis - 1]
      if axes and bucket.shard_axis is not None and mesh_axes is not None:
        spec = _halfway(known[piece.path], axes[0], mesh_axes)
        leaves[piece.index] = wait(leaves[piece.index], spec)
  placed = [
    wait(leaf, known[path])
    for leaf, path in zip(leaves, plan.paths, strict=True)
  ]
  return jax.tree.unflatten(plan.treedef, placed)


def _through(x: jax.Array, *specs: PartitionSpec) -> jax.Array:
  """Moves an array from layout to layout."""
  for spec in specs:
    x = jax.lax.with_sharding_constraint(x, spec)
  return x


def _is_spec(x: Any) -> bool:
  return isinstance(x, PartitionSpec)


def _names(entry: Any) -> tuple[str, ...]:
  """Mesh axes of an entry of a spec."""
  if entry is None:
    return ()
  return entry if isinstance(entry, tuple) else (entry,)


def _halfway(spec: PartitionSpec, axis: int, mesh_axes: Any) -> PartitionSpec:
  """`spec`, with `axis` spread over those mesh axes that `spec` leaves free."""
  entries = list(spec) + [None] * (axis + 1 - len(spec))
  used = {name for entry in entries for name in _names(entry)}
  free = tuple(name for name in _names(mesh_axes) if name not in used)
  if entries[axis] is None and free:
    entries[axis] = free
  return PartitionSpec(*entries)
