"""The eigenbases of SOAP: the first ones, turning into them, and refreshes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import kronecker, linear_algebra
from .blocks import Split
from .kronecker import Kronecker, Precision


def first_bases(
  factors: dict[str, Kronecker], first: jax.Array
) -> dict[str, Kronecker]:
  """Eigenvectors of the factors at the first call; one branch a side."""
  result = {}
  for name, bucket in factors.items():
    bases, failures = list(bucket.derived), bucket.failures
    for side, factor in enumerate(bucket.factors):
      if factor is not None:
        bases[side], failures = jax.lax.cond(
          first,
          _eigenbasis_or_old,
          lambda factor, old, failures: (old, failures),
          factor,
          bases[side],
          failures,
        )
    result[name] = bucket._replace(derived=tuple(bases), failures=failures)
  return result


def rotate(
  split: Split,
  factors: dict[str, Kronecker],
  precision: Precision,
  *,
  transpose: bool,
) -> Split:
  """Turns the stacks into their bases (transpose) or back."""
  stacks = {
    name: kronecker.rotate(
      x,
      factors[name].derived,
      transpose=transpose,
      precision=precision.rotation,
    )
    for name, x in split.stacks.items()
  }
  return Split(stacks, split.rest)


def make_basis(
  method: str,
  first_step: str,
  count: jax.Array,
  precision: Precision,
  frequency: int,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """The (factor, old basis) -> (basis, ok) of a refresh."""

  def anew(factor, old):
    del old
    basis = linear_algebra.eigenbasis(factor)
    return basis, linear_algebra.finite(basis)

  def step(factor, old):
    return linear_algebra.power_step(
      factor, old, method=method, precision=precision.refresh
    )

  if method == "eigh":
    return anew
  if first_step != "identity":
    return step
  # A power iteration from the identity would need many steps.
  return lambda factor, old: jax.lax.cond(
    count <= frequency, anew, step, factor, old
  )


def refresh(
  schedule: dict[tuple[str, int], kronecker.Refresh],
  count: jax.Array,
  inner_state: Any,
  factors: dict[str, Kronecker],
  make: Callable[..., tuple[jax.Array, jax.Array]],
  fields: tuple[str, ...],
  precision: Precision,
) -> tuple[Any, dict[str, Kronecker]]:
  """Refreshes the sides whose turn it is, and turns the momenta with them."""
  factors = dict(factors)
  flat, treedef = jax.tree_util.tree_flatten_with_path(inner_state)
  leaves = [leaf for _, leaf in flat]
  for (name, side), turn in schedule.items():
    momenta = [
      i for i, (path, _) in enumerate(flat) if _is_momentum(path, name, fields)
    ]
    factors[name], moved = kronecker.refresh_side(
      turn,
      count,
      count > 0,
      make,
      factors[name],
      side,
      tuple(leaves[i] for i in momenta),
      functools.partial(_change_basis, side, precision.refresh),
    )
    for i, leaf in zip(momenta, moved, strict=True):
      leaves[i] = leaf
  return jax.tree.unflatten(treedef, leaves), factors


def _change_basis(side, precision, x, old, new):
  """Out of the old basis and into the new; x is momentum, a sum of G'."""
  work = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  for matrix, transpose in ((old, False), (new, True)):
    work = kronecker.mode_product(
      work, matrix, side, transpose=transpose, precision=precision
    )
  return work.astype(x.dtype)


def _is_momentum(path, name: str, fields: tuple[str, ...]) -> bool:
  """Whether a leaf of the inner state is a bucket's stack in such a field."""
  names = [getattr(key, "name", getattr(key, "key", None)) for key in path]
  return names[-2:] == ["stacks", name] and any(f in names for f in fields)


def _eigenbasis_or_old(factor, old, failures):
  work = factor.astype(jnp.promote_types(factor.dtype, jnp.float32))
  new = linear_algebra.eigenbasis(work)
  ok_S = linear_algebra.finite(new)
  new = jnp.where(ok_S[:, None, None], new, old.astype(new.dtype))
  return new.astype(old.dtype), failures + ~ok_S
