"""The eigenbases of SOAP: the first ones, turning into them, and refreshes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..common.tree import work_dtype
from . import factors as kronecker
from . import kl_factors, linalg
from .basis_options import BasisOptions
from .elementwise import Sums, dense
from .options import Precision
from .plan import Plan
from .refresh import Refresh, make_schedule, refresh_side
from .round_off import coarsest, silence, without_round_off
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
          eigenbasis_or_old,
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
  turned = functools.partial(
    kronecker.rotate, transpose=transpose, precision=precision.rotation
  )
  return split.map(lambda name, x: turned(x, factors[name].derived))


def into(
  split: Split, factors: Stacks, precision: Precision, grain: dict[str, float]
) -> Split:
  """The stacks in their bases, without what is only round-off."""
  rotated = rotate(split, factors, precision, transpose=True)
  return silence(rotated, factors, precision, grain)


def average_eigenvalues(
  plan: Plan,
  o: BasisOptions,
  rotated: Split,
  before: Stacks,
  factors: Stacks,
  grain: dict[str, float],
  statistics: Any | None,
) -> Stacks:
  """New eigenvalues of KL factors, of the gradients that the factors average.

  Args:
    plan: Of the gradients.
    o: The options.
    rotated: The gradients in their bases.
    before: A `KLKronecker` for each bucket, before they saw the gradients.
    factors: The same afterwards.
    grain: By bucket, of the numbers that were rotated.
    statistics: As for `factors.observe`, in place of the gradients.

  Returns:
    The factors with new eigenvalues.
  """
  if statistics is not None:
    seen, _ = kronecker.observe(plan, statistics, factors, o.beta, o)
    rotated = into(seen, factors, o.precision, grain)
  return kl_factors.average_eigenvalues(
    plan, rotated, before, factors, o.beta, o.eigenvalues
  )


def make_basis(
  method: str,
  first_step: str,
  count: jax.Array,
  precision: Precision,
  frequency: int,
  steps: int = 1,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """The (factor, old basis) -> (basis, ok) of a refresh, of `steps` steps."""

  def anew(factor, old):
    del old
    basis = linalg.eigenbasis(factor)
    return basis, linalg.finite(basis)

  def step(factor, old):
    power_step = functools.partial(
      linalg.power_step, factor, method=method, precision=precision.refresh
    )
    basis, ok_S = power_step(old)
    for _ in range(steps - 1):
      basis, finer_S = power_step(basis)
      ok_S &= finer_S
    return basis, ok_S

  if method == "eigh":
    return anew
  if first_step != "identity":
    return step
  # A power iteration from the identity would need many steps.
  return lambda factor, old: jax.lax.cond(
    makes_anew(method, first_step, count, frequency), anew, step, factor, old
  )


def makes_anew(
  method: str, first_step: str, count: jax.Array, frequency: int
) -> jax.Array | bool:
  """Whether `make_basis` computes eigenvectors, without regard to the old."""
  if method == "eigh":
    return True
  return count <= frequency if first_step == "identity" else False


def refresh_due(
  plan: Plan,
  o: BasisOptions,
  count: jax.Array,
  grain: dict[str, float],
  inner_state: Any,
  factors: Stacks,
  *,
  first_step: str,
  squares: bool,
) -> tuple[Any, Stacks]:
  """`refresh` of the bases whose turn it is, by the options of a method.

  Args:
    plan: Of the gradients.
    o: The options.
    count: Calls so far, int32 [].
    grain: By bucket, of the numbers that were rotated; see `round_off.py`.
    inner_state: What lives in the bases.
    factors: A `Kronecker` for each bucket.
    first_step: As for `make_basis`.
    squares: As for `turner`.

  Returns:
    The new inner state and the new factors.
  """
  precision, f = o.precision, o.precondition_frequency
  make = make_basis(
    o.refresh, first_step, count, precision, f, o.refresh_steps or 1
  )
  turn = turner(precision, grain, squares=squares)
  anew = makes_anew(o.refresh, first_step, count, f)
  schedule = make_schedule(plan, o)
  inner_state, factors = refresh(
    schedule, count, inner_state, factors, make, turn, anew=anew,
    precision=precision.refresh,
  )  # fmt: skip
  if any(kept.scales is not None for kept in factors.values()):
    factors = kl_factors.quotients(
      factors, 1 - o.beta ** (count + 1), o.eigenvalues, precision.refresh
    )
  return inner_state, factors


def refresh(
  schedule: dict[tuple[str, int], Refresh],
  count: jax.Array,
  inner_state: Any,
  factors: Stacks,
  make: Callable[..., tuple[jax.Array, jax.Array]],
  turn: Callable[..., list],
  *,
  anew: jax.Array | bool = False,
  precision: str = "highest",
) -> tuple[Any, Stacks]:
  """Refreshes the sides whose turn it is; what lives in their bases turns too.

  Args:
    schedule: Of `make_schedule`.
    count: Calls so far, int32 [].
    inner_state: Of the element-wise rule; its `Momentum` and `Squares` nodes
      live in the bases.
    factors: A `Kronecker` for each bucket.
    make: (factor, old basis) -> (basis, ok), of `make_basis`.
    turn: (name of the bucket, its sides with a factor, side that turns, kinds
      of the nodes, their stacks, old, new) -> stacks, of `turner`.
    anew: Of `makes_anew`, for the eigenvalues of KL factors.
    precision: Of the products for these.

  Returns:
    The new inner state and the new factors.
  """
  factors = Stacks(factors)
  is_moment = lambda x: isinstance(x, (Momentum, Squares))  # noqa: E731
  nodes, treedef = jax.tree.flatten(inner_state, is_leaf=is_moment)
  nodes = [type(x)(x) if is_moment(x) else x for x in nodes]  # Copies.
  moments = [node for node in nodes if is_moment(node)]
  kinds = [type(node) for node in moments]
  for (name, side), slots in schedule.items():
    sides = [s for n, s in schedule if n == name]
    scales = factors[name].scales

    def carry(parts, old, new, name=name, sides=sides, side=side):
      parts, l = parts
      moved = turn(name, sides, side, kinds, parts, old, new)
      return moved, kl_factors.carry(l, old, new, anew, precision)

    factors[name], (moved, l) = refresh_side(
      slots,
      count,
      count > 0,
      make,
      factors[name],
      side,
      ([moment[name] for moment in moments], scales and scales[side]),
      carry,
    )
    if scales is not None:
      scales = (*scales[:side], l, *scales[side + 1 :])
      factors[name] = factors[name]._replace(scales=scales)
    for moment, x in zip(moments, moved, strict=True):
      moment[name] = x
  return jax.tree.unflatten(treedef, nodes), factors


def turner(
  precision: Precision, grain: dict[str, float], *, squares: bool
) -> Callable[..., list]:
  """How moments move from an old basis to a new one.

  A momentum M' is a sum of rotated gradients: out of the old basis and into the
  new. An average of squares V' takes two steps. First, it turns as a diagonal:
  Q_old diag(V') Q_old^T has the diagonal (Q_old^T Q_new)^2 V' in the new basis,
  the overlaps squared element by element. This diagonal is too flat, so that
  the update would become shorter at each refresh. So V' is then scaled, and the
  norm of M' / sqrt(V') stays what it was. The norm is that of a matrix, or,
  where one side only has a factor, of each fibre along this side (so that no
  device needs the fibres of another). M' is the first momentum of the state;
  without one, V' only turns.

  Args:
    precision: Of the products.
    grain: By bucket, of the numbers that were rotated; see `round_off.py`.
    squares: False leaves averages of squares as they are.
  """

  def product(x, matrix, side, transpose):
    return kronecker.mode_product(
      x, matrix, side, transpose=transpose, precision=precision.refresh
    )

  def momentum(name, side, x, old, new):
    work = product(x.astype(work_dtype(x)), old, side, False)
    work = product(work, new, side, True)
    turned = tuple(new if s == side else None for s in range(x.ndim - 1))
    # A rounded gradient's basis is as coarse as the gradient.
    coarse = max(grain[name], coarsest(work.dtype, x.dtype))
    return without_round_off(
      work, turned, grain=coarse, precision=precision.refresh
    ).astype(x.dtype)

  def square(side, v, old, new):
    if isinstance(v, Sums):
      sums = list(v)
      sums[side] = square(0, v[side], old, new)
      return Sums(*sums)
    matrix = linalg.squared_overlaps(old, new, precision.refresh)
    return product(v.astype(work_dtype(v)), matrix, side, True).astype(v.dtype)

  def turn(name, sides, side, kinds, parts, old, new):
    moved = list(parts)
    for i, kind in enumerate(kinds):
      if kind is Momentum:
        moved[i] = momentum(name, side, parts[i], old, new)
      elif squares:
        moved[i] = square(side, parts[i], old, new)
    if squares and Momentum in kinds:
      first = kinds.index(Momentum)
      for i, kind in enumerate(kinds):
        if kind is Squares:
          before, after = (
            _power(x[first], x[i], sides) for x in (parts, moved)
          )
          moved[i] = _scaled(moved[i], before, after)
    return moved

  return turn


def _power(m, v, sides):
  """Sum of M'^2 / V' over the sides."""
  v = dense(v)
  m, v = m.astype(work_dtype(m)), v.astype(work_dtype(v))
  power = jnp.where(v > 0, m / jnp.where(v > 0, v, 1) * m, 0)
  return jnp.sum(power, axis=[side + 1 for side in sides], keepdims=True)


def _scaled(v, before, after):
  """V' after / before, or V' where one of the two is not a positive number."""
  ok = (before > 0) & (after > 0) & jnp.isfinite(before + after)
  ratio = jnp.where(ok, after, 1) / jnp.where(ok, before, 1)

  def scale(x):
    by = ratio if x.ndim == ratio.ndim else ratio[..., 0]  # Of `Sums`.
    return (x.astype(work_dtype(x)) * by).astype(x.dtype)

  return jax.tree.map(scale, v)


def eigenbasis_or_old(
  factor: jax.Array, old: jax.Array, failures: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Eigenvectors, or the old basis and a failure where they are not finite."""
  work = factor.astype(work_dtype(factor))
  new = linalg.eigenbasis(work)
  ok_S = linalg.finite(new)
  new = jnp.where(ok_S[:, None, None], new, old.astype(new.dtype))
  return new.astype(old.dtype), failures + ~ok_S
