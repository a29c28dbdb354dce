"""The eigenbases of SOAP: the first ones, turning into them, and refreshes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..common.tree import work_dtype
from . import factors as kronecker
from . import linalg
from .elementwise import Sums
from .options import Precision
from .refresh import Refresh, refresh_side
from .round_off import coarsest, without_round_off
from .stacks import Momentum, Split, Squares, Stacks


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
  turn: Callable[..., jax.Array],
) -> tuple[Any, Stacks]:
  """Refreshes the sides whose turn it is; what lives in their bases turns too.

  Args:
    schedule: Of `make_schedule`.
    count: Calls so far, int32 [].
    inner_state: Of the element-wise rule; its `Momentum` and `Squares` nodes
      live in the bases.
    factors: A `Kronecker` for each bucket.
    make: (factor, old basis) -> (basis, ok), of `make_basis`.
    turn: (name of the bucket, side, kind of the node, x, old, new) -> x, of
      `turner`.

  Returns:
    The new inner state and the new factors.
  """
  factors, kinds = Stacks(factors), (Momentum, Squares)
  is_moment = lambda x: isinstance(x, kinds)  # noqa: E731
  nodes, treedef = jax.tree.flatten(inner_state, is_leaf=is_moment)
  nodes = [type(x)(x) if is_moment(x) else x for x in nodes]  # Copies.
  moments = [node for node in nodes if is_moment(node)]
  for (name, side), slots in schedule.items():

    def carry(parts, old, new, name=name, side=side):
      turned = zip(moments, parts, strict=True)
      return tuple(
        turn(name, side, type(node), x, old, new) for node, x in turned
      )

    factors[name], moved = refresh_side(
      slots,
      count,
      count > 0,
      make,
      factors[name],
      side,
      tuple(_part(moment[name], side) for moment in moments),
      carry,
    )
    for moment, x in zip(moments, moved, strict=True):
      moment[name] = _with_part(moment[name], side, x)
  return jax.tree.unflatten(treedef, nodes), factors


def turner(
  precision: Precision, grain: dict[str, float], *, squares: bool
) -> Callable[..., jax.Array]:
  """How moments move from an old basis to a new one.

  A momentum M' is a sum of rotated gradients: out of the old basis and into the
  new. An average of squares is a diagonal, and takes the diagonal of
  Q_old diag(V') Q_old^T in the new basis: V' <- (Q_old^T Q_new)^2 on the side,
  the overlaps squared element by element.

  Args:
    precision: Of the products.
    grain: By bucket, of the numbers that were rotated; see `round_off.py`.
    squares: False leaves averages of squares as they are.
  """

  def turn(name, side, kind, x, old, new):
    work = x.astype(work_dtype(x))
    if kind is Squares:
      if not squares:
        return x
      matrix = jnp.square(jnp.matmul(old.mT, new, precision=precision.refresh))
      # Sums over the other side have this side only.
      place = min(side, x.ndim - 2)
      return kronecker.mode_product(
        work, matrix, place, transpose=True, precision=precision.refresh
      ).astype(x.dtype)
    for matrix, transpose in ((old, False), (new, True)):
      work = kronecker.mode_product(
        work, matrix, side, transpose=transpose, precision=precision.refresh
      )
    turned = tuple(new if s == side else None for s in range(x.ndim - 1))
    # A rounded gradient's basis is as coarse as the gradient.
    coarse = max(grain[name], coarsest(work.dtype, x.dtype))
    return without_round_off(
      work, turned, grain=coarse, precision=precision.refresh
    ).astype(x.dtype)

  return turn


def _part(kept, side):
  """What a side's basis turns: all of a stack; of `Sums`, that side's."""
  return kept[side] if isinstance(kept, Sums) else kept


def _with_part(kept, side, x):
  if not isinstance(kept, Sums):
    return x
  return kept._replace(**{kept._fields[side]: x})


def _eigenbasis_or_old(factor, old, failures):
  work = factor.astype(work_dtype(factor))
  new = linalg.eigenbasis(work)
  ok_S = linalg.finite(new)
  new = jnp.where(ok_S[:, None, None], new, old.astype(new.dtype))
  return new.astype(old.dtype), failures + ~ok_S
