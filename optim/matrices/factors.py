"""Kronecker factors of stacked matrices: averages, products, screening.

A bucket keeps two matrices for each factored side. One is an average P of the
side's Gram matrix: G G^T on the left, G^T G on the right. The other is derived
from P: SOAP's eigenbasis or Shampoo's inverse root. `refresh.py` says when the
derived matrix is made anew.
"""

import string
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..common.tree import find, work_dtype
from .options import MatrixOptions, Storage
from .placement import constrain, to_stacks
from .plan import Bucket, Plan
from .stacks import Split, Stacks


class Kronecker(NamedTuple):
  """Factors of one bucket; None for a side without a factor."""

  factors: tuple[jax.Array | None, ...]  # [S, I, I], [S, O, O]: averages P.
  derived: tuple[jax.Array | None, ...]  # Shaped alike: made from P.
  failures: jax.Array  # [S] int32: failed refreshes; the old matrix stayed.
  rejections: jax.Array  # [S] int32: non-finite gradients, zeros used instead.

  @property
  def scales(self) -> None:
    """Gram factors keep no eigenvalues."""


class KLKronecker(NamedTuple):
  """KL factors of one bucket: a `Kronecker` that keeps eigenvalues.

  Two types, so that the states of Gram factors are those of earlier versions.
  """

  factors: tuple[jax.Array | None, ...]
  derived: tuple[jax.Array | None, ...]
  failures: jax.Array
  rejections: jax.Array
  scales: tuple[jax.Array | None, ...]  # [S, I], [S, O]: eigenvalues l.


# (bucket, its factors, [S, I, O]) -> the factors, and for each side with a
# factor, the matrices whose Gram matrices are averaged.
Whiten = Callable[[Bucket, Any, jax.Array], tuple[Any, list[Any]]]


class RefreshCounts(NamedTuple):
  """Sums over all matrices of a state; see `refresh_counts`."""

  failures: jax.Array  # int32 []: failed refreshes so far.
  rejections: jax.Array  # int32 []: gradients so far that were not finite.


def init(plan: Plan, storage: Storage = Storage()) -> Any:  # noqa: B008
  """Makes a `Kronecker` for each bucket: P = 0, derived = identity."""
  if plan.empty:  # A placeholder, as in `Plan.split`.
    return jnp.zeros(())
  state = Stacks()
  for bucket in plan.buckets:
    factors, derived = [], []
    for n, has in zip(bucket.shape, bucket.factored, strict=True):
      shape = (bucket.size, n, n)
      factors.append(
        jnp.zeros(shape, storage.factor or bucket.dtype) if has else None
      )
      eye = jnp.eye(n, dtype=storage.basis or bucket.dtype)
      derived.append(jnp.broadcast_to(eye, shape) if has else None)
    # Two arrays: a buffer that stands twice in a state cannot be donated.
    failures, rejections = (jnp.zeros(bucket.size, jnp.int32) for _ in range(2))
    state[bucket.name] = Kronecker(
      tuple(factors), tuple(derived), failures, rejections
    )
  return state


def refresh_counts(opt_state: Any) -> RefreshCounts | None:
  """Counts failed refreshes and non-finite gradients, for logs.

  The function is cheap and works under jit.

  Args:
    opt_state: State of SOAP or Shampoo, chained or wrapped in any way.

  Returns:
    Sums over all matrices; both are 0 in a healthy run. None if the state has
    no Kronecker factors.
  """
  found = find(opt_state, Kronecker, KLKronecker)
  if not found:
    return None
  return RefreshCounts(
    jnp.sum(jnp.stack([jnp.sum(node.failures) for node in found])),
    jnp.sum(jnp.stack([jnp.sum(node.rejections) for node in found])),
  )


def mode_product(
  x: jax.Array,
  matrix: jax.Array,
  side: int,
  *,
  transpose: bool,
  precision: str,
) -> jax.Array:
  """Multiplies one side of each stacked matrix by that matrix's own matrix.

  Args:
    x: [S, I, O], or more sides.
    matrix: M, [S, n, n], where n is the length of the side.
    side: 0 for the input side, 1 for the output side.
    transpose: True for M^T x along the side (into a basis), False for M x.
    precision: Precision of the product.

  Returns:
    Like `x`.
  """
  axes = string.ascii_lowercase[: x.ndim - 1]
  old = axes[side]
  out = axes.replace(old, "z")
  pair = f"y{old}z" if transpose else f"yz{old}"
  matrix = matrix.astype(x.dtype)
  # The operand that gives the leading free axis comes first: no transposition.
  if side == 0:
    return jnp.einsum(f"{pair},y{axes}->y{out}", matrix, x, precision=precision)
  return jnp.einsum(f"y{axes},{pair}->y{out}", x, matrix, precision=precision)


def rotate(
  x: jax.Array, matrices, *, transpose: bool, precision: str
) -> jax.Array:
  """Applies `mode_product` along every side that has a matrix."""
  for side, matrix in enumerate(matrices):
    if matrix is not None:
      x = mode_product(
        x, matrix, side, transpose=transpose, precision=precision
      )
  return x


def gram(x: jax.Array, side: int, precision: str) -> jax.Array:
  """The Gram matrix of a side: x x^T for side 0, x^T x for side 1."""
  axes = string.ascii_lowercase[: x.ndim - 1]
  old = axes[side]
  return jnp.einsum(
    f"y{axes},y{axes.replace(old, 'z')}->y{old}z", x, x, precision=precision
  )


def average_grams(
  state: Kronecker,
  x: jax.Array,
  decay: jax.Array | float,
  precision: str,
  whitened: list[Any] | None = None,
) -> Kronecker:
  """P <- decay P + (1 - decay) Gram(x) for each factored side.

  With `whitened`, an array for each side, each side averages its own array's.
  """
  factors = []
  for side, factor in enumerate(state.factors):
    if factor is not None:
      seen = x if whitened is None else whitened[side]
      new = gram(seen, side, precision)
      average = decay * factor.astype(x.dtype) + (1 - decay) * new
      factor = average.astype(factor.dtype)
    factors.append(factor)
  return state._replace(factors=tuple(factors))


def finite_or_zero(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Replaces each non-finite matrix by zeros. Returns which were finite.

  The test is the sum of squares, which is the trace of either Gram matrix. The
  sum is finite if and only if all entries are finite and no entry of a Gram
  matrix can overflow.

  Args:
    x: [S, I, O], or more sides.

  Returns:
    x with zeros in place of non-finite matrices, and ok_S: False for these.
  """
  sides = tuple(range(1, x.ndim))
  ok_S = jnp.isfinite(jnp.sum(jnp.square(x), axis=sides))
  return jnp.where(jnp.expand_dims(ok_S, sides), x, 0), ok_S


def screen_leaf(g: jax.Array) -> jax.Array:
  """Replaces a leaf by zeros if its sum of squares is not finite."""
  work = g.astype(work_dtype(g))
  return jnp.where(jnp.isfinite(jnp.sum(jnp.square(work))), g, 0)


def observe(
  plan: Plan,
  updates: Any,
  state: Stacks,
  decay: jax.Array | float,
  o: MatrixOptions,
  statistics: Any | None = None,
  whiten: Whiten | None = None,
) -> tuple[Split, Stacks]:
  """Stacks and screens the gradients, and averages their Gram matrices.

  Args:
    plan: The plan of the gradients.
    updates: The gradients.
    state: The factors so far.
    decay: Share of the old averages that is kept.
    o: Options of the method.
    statistics: A tree like the gradients, whose Gram matrices are averaged in
      place of the gradients'. None: the gradients' own.
    whiten: Makes what each side averages, of `kl_factors.whitener`. None: every
      side averages the gradient's Gram matrix.

  Returns:
    The gradients as a `Split`, and the new factors.
  """
  split = to_stacks(updates, plan, o.placement)
  stacks, factors = Stacks(), Stacks()
  for bucket in plan.buckets:
    name, kept = bucket.name, state[bucket.name]
    x, ok_S = finite_or_zero(split.stacks[name])
    stacks[name] = x
    kept = kept._replace(rejections=kept.rejections + ~ok_S)
    whitened = None
    if whiten is not None:
      kept, whitened = whiten(bucket, kept, x)
    kept = average_grams(kept, x, decay, o.precision.statistics, whitened)
    axis = 0 if bucket.shard_axis == 0 else None
    factors[name] = jax.tree.map(
      lambda x, axis=axis: constrain(x, axis, o.placement.stack_axes), kept
    )
  if statistics is not None:
    _, factors = observe(plan, statistics, state, decay, o, whiten=whiten)
  return Split(stacks, jax.tree.map(screen_leaf, split.rest)), factors
