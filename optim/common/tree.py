"""Functions of trees and types that the whole package uses."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import meshes


def work_dtype(x: Any) -> np.dtype:
  """The type of the arithmetic on an array: float32, or its type if wider."""
  if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4:
    return jnp.dtype(jnp.float32)  # Types of 8 bits promote to no other.
  return jnp.promote_types(x.dtype, jnp.float32)


def upcast(tree: Any) -> Any:
  """Casts each array to its `work_dtype`."""
  return jax.tree.map(lambda x: x.astype(work_dtype(x)), tree)


def like(tree: Any, other: Any) -> Any:
  """Casts the leaves of `tree` to the types of the leaves of `other`."""
  return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, other)


def zeros(tree: Any, dtype: Any | None = None) -> Any:
  """Zeros of the shapes of `tree`, in `dtype` or in each `work_dtype`."""
  return jax.tree.map(lambda x: meshes.zeros(x, dtype or work_dtype(x)), tree)


def dot(x: Any, y: Any) -> jax.Array:
  """<x, y> over all leaves. Nothing is flattened, so shards stay in place."""
  products = jax.tree.map(lambda a, b: jnp.sum(a * b), x, y)
  return jax.tree.reduce(jnp.add, products, jnp.zeros(()))


def by_path(
  tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
  """{path: leaf} in the order of the leaves; `keystr` spells the paths."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
  return {jax.tree_util.keystr(path): leaf for path, leaf in flat}


def is_masked(x: Any) -> bool:
  """Whether `optax.masked` or `optax.partition` left this leaf out."""
  return isinstance(x, optax.MaskedNode)


def is_function(tree: Any) -> bool:
  """Whether an argument is a function of params rather than a tree like params.

  A module of some library may be a tree and have a `__call__`. Its leaves are
  not functions, so the module counts as a tree. optax has the same rule.
  """
  if isinstance(tree, functools.partial):  # `jax.tree_util.Partial` is a tree.
    return True
  leaves = jax.tree.leaves(tree)
  return bool(leaves) and all(callable(leaf) for leaf in leaves)


def find(tree: Any, *kinds: type) -> list[Any]:
  """The outermost nodes of some types anywhere in a tree."""
  nodes = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kinds))
  return [node for node in nodes if isinstance(node, kinds)]
