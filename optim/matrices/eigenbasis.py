"""The eigenbases of SOAP: the first ones, turning into them, and refreshes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..common.tree import work_dtype
from . import factors as kronecker
from . import linalg
from .options import Precision
from .refresh import Refresh, refresh_side
from .round_off import coarsest, without_round_off
from .stacks import Momentum, Split, Stacks


def first_bases(factors: Stacks, first: jax.Array) -> Stacks:
  """Eigenvectors of the factors at the first call; one branch a side."""
  result = Stacks()
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
  factors: Stacks,
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
  return Split(Stacks(stacks), split.rest)


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
    basis = linalg.eigenbasis(factor)
    return basis, linalg.finite(basis)

  def step(factor, old):
    return linalg.power_step(
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
  schedule: dict[tuple[str, int], Refresh],
  count: jax.Array,
  inner_state: Any,
  factors: Stacks,
  make: Callable[..., tuple[jax.Array, jax.Array]],
  precision: Precision,
) -> tuple[Any, Stacks]:
  """Refreshes the sides whose turn it is, and turns each `Momentum` as well.

  Args:
    schedule: Of `make_schedule`.
    count: Calls so far, int32 [].
    inner_state: Of the element-wise rule; its `Momentum` nodes live in the
      bases.
    factors: A `Kronecker` for each bucket.
    make: (factor, old basis) -> (basis, ok), of `make_basis`.
    precision: Of the products.

  Returns:
    The new inner state and the new factors.
  """
  factors = Stacks(factors)
  is_momentum = lambda x: isinstance(x, Momentum)  # noqa: E731
  nodes, treedef = jax.tree.flatten(inner_state, is_leaf=is_momentum)
  nodes = [Momentum(x) if is_momentum(x) else x for x in nodes]  # Copies.
  momenta = [node for node in nodes if is_momentum(node)]
  for (name, side), turn in schedule.items():
    factors[name], moved = refresh_side(
      turn,
      count,
      count > 0,
      make,
      factors[name],
      side,
      tuple(momentum[name] for momentum in momenta),
      functools.partial(_change_basis, side, precision.refresh),
    )
    for momentum, x in zip(momenta, moved, strict=True):
      momentum[name] = x
  return jax.tree.unflatten(treedef, nodes), factors


def _change_basis(side, precision, x, old, new):
  """Out of the old basis and into the new; x is momentum, a sum of G'."""
  work = x.astype(work_dtype(x))
  for matrix, transpose in ((old, False), (new, True)):
    work = kronecker.mode_product(
      work, matrix, side, transpose=transpose, precision=precision
    )
  turned = tuple(new if s == side else None for s in range(x.ndim - 1))
  work = without_round_off(
    work, turned, grain=coarsest(work.dtype, x.dtype), precision=precision
  )
  return work.astype(x.dtype)


def _eigenbasis_or_old(factor, old, failures):
  work = factor.astype(work_dtype(factor))
  new = linalg.eigenbasis(work)
  ok_S = linalg.finite(new)
  new = jnp.where(ok_S[:, None, None], new, old.astype(new.dtype))
  return new.astype(old.dtype), failures + ~ok_S
