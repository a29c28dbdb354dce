"""Where the state of an optimiser goes on a mesh, from where params go."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

# State fields of this package whose arrays have the stack axis first.
_STACKED = ("stacks", "kronecker", "momentum")


def state_specs(
  opt_state: Any,
  param_specs: Any,
  stack_axes: Any | None = None,
) -> Any:
  """Partition specs of every leaf of an optimiser state.

  Stacked leaves (factors, bases, roots and the moments of matrices) are spread
  along their stack axis over `stack_axes`, so that a refresh needs no
  communication. A leaf whose path ends with a parameter's path, in this
  package's states and in optax's (chained, masked, accumulating), goes where
  the parameter goes. Anything else, the counts, is replicated.

  Args:
    opt_state: The state, or its `jax.eval_shape`.
    param_specs: Tree of `PartitionSpec`s like params.
    stack_axes: Mesh axis or tuple of axes, as given to the transform; its
      `stack_shards` makes every stack divide evenly. None replicates stacks.

  Returns:
    A tree of `PartitionSpec`s like `opt_state`, for
    `jax.jit(..., out_shardings=...)` once turned into `NamedSharding`s.

  Raises:
    ValueError: If a leaf of `param_specs` is no `PartitionSpec`.
  """
  is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
  specs = {}
  for path, spec in jax.tree_util.tree_flatten_with_path(
    param_specs, is_leaf=is_spec
  )[0]:
    if not is_spec(spec):
      raise ValueError(
        f"param_specs{jax.tree_util.keystr(path)} is {spec!r}; it must be a "
        "jax.sharding.PartitionSpec, e.g. PartitionSpec() to replicate."
      )
    specs[tuple(map(str, path))] = spec

  def spec_of(path, leaf):
    names = [getattr(key, "name", None) for key in path]
    if any(name in _STACKED for name in names):
      return PartitionSpec(stack_axes)
    keys = tuple(map(str, path))
    for start in range(len(keys) + 1):  # The longest ending first.
      spec = specs.get(keys[start:])
      if spec is not None and len(spec) <= leaf.ndim:
        return spec
    return PartitionSpec()

  return jax.tree_util.tree_map_with_path(spec_of, opt_state)
