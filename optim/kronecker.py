"""Kronecker factors of stacked matrices, and their refresh spread over time.

A bucket keeps for each factored side an average P of the side's Gram matrix
(G G^T on the left, G^T G on the right) and a matrix made from it: SOAP's
eigenbasis, Shampoo's inverse root. Making that is dear, so it is done once in
`frequency` steps, and staggered: each step refreshes an equal part of the
matrices, so that no step is much longer than another.
"""

import string
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import sharding
from .blocks import Plan, Split


class Precision(NamedTuple):
  """Of the three kinds of matrix products: "default", "high", "highest".

  They differ on accelerators only, where "default" rounds float32 inputs to
  TF32 or bfloat16. Gram matrices need all the digits: their smallest
  eigenvalues are what rounding destroys first.
  """

  statistics: str = "highest"
  rotation: str = "high"
  refresh: str = "highest"


def check_precision(precision: Any) -> None:
  """Raises unless `precision` is three names that jax knows."""
  levels = ("default", "high", "highest")
  if len(tuple(precision)) != 3 or any(p not in levels for p in precision):
    raise ValueError(
      f"precision={precision!r} must be three of {', '.join(levels)}: for "
      "statistics, rotation and refresh, e.g. ('highest', 'high', 'highest')."
    )


class Kronecker(NamedTuple):
  """Factors of one bucket; None for a side without a factor."""

  factors: tuple[jax.Array | None, ...]  # [S, I, I], [S, O, O]: averages P.
  derived: tuple[jax.Array | None, ...]  # Alike: made from P at a refresh.
  failures: jax.Array  # [S] int32: refreshes refused, the old matrix kept.
  rejections: jax.Array  # [S] int32: gradients not finite, taken as zero.


class RefreshCounts(NamedTuple):
  """Sums over all matrices of a state; see `refresh_counts`."""

  failures: jax.Array  # int32 []: refreshes refused so far.
  rejections: jax.Array  # int32 []: gradients that were not finite so far.


class Refresh(NamedTuple):
  """When the matrices of one side of one bucket are refreshed; static.

  The stack is cut into `shards` equal parts, one a device; a slot is `size`
  neighbouring matrices of each part.
  """

  shards: int
  size: int
  slot_of_phase: tuple[int, ...]  # [frequency]; -1: none.


def init(
  plan: Plan,
  factor_dtype: jnp.dtype | None = None,
  derived_dtype: jnp.dtype | None = None,
) -> Any:
  """{bucket name: Kronecker} of zero factors and, derived, identities."""
  if plan.empty:  # A placeholder, as in `Plan.split`.
    return jnp.zeros(())
  state = {}
  for bucket in plan.buckets:
    factors, derived = [], []
    for n, has in zip(bucket.shape, bucket.factored, strict=True):
      shape = (bucket.size, n, n)
      factors.append(
        jnp.zeros(shape, factor_dtype or bucket.dtype) if has else None
      )
      eye = jnp.eye(n, dtype=derived_dtype or bucket.dtype)
      derived.append(jnp.broadcast_to(eye, shape) if has else None)
    # Two arrays: a buffer that stands twice in a state cannot be donated.
    counts = (jnp.zeros(bucket.size, jnp.int32) for _ in range(2))
    state[bucket.name] = Kronecker(tuple(factors), tuple(derived), *counts)
  return state


def refresh_counts(opt_state: Any) -> RefreshCounts | None:
  """What went wrong so far, to be logged; cheap, and works under jit.

  Args:
    opt_state: Of SOAP or Shampoo, chained or wrapped in any way.

  Returns:
    Sums over all matrices, both 0 in a healthy run; None if the state has no
    Kronecker factors.
  """
  nodes = jax.tree.leaves(
    opt_state, is_leaf=lambda node: isinstance(node, Kronecker)
  )
  found = [node for node in nodes if isinstance(node, Kronecker)]
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
  """Multiplies one side of each stacked matrix by a matrix of its own.

  Args:
    x: [S, I, O], or more sides.
    matrix: [S, n, n] with n the length of that side.
    side: 0 for the input side, 1 for the output side.
    transpose: True for M^T x along the side (into a basis), False for M x.
    precision: Of the product.

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
  """`mode_product` along every side that has a matrix."""
  for side, matrix in enumerate(matrices):
    if matrix is not None:
      x = mode_product(
        x, matrix, side, transpose=transpose, precision=precision
      )
  return x


def gram(x: jax.Array, side: int, precision: str) -> jax.Array:
  """Sum of products along the other sides: x x^T for side 0, x^T x for 1."""
  axes = string.ascii_lowercase[: x.ndim - 1]
  old = axes[side]
  return jnp.einsum(
    f"y{axes},y{axes.replace(old, 'z')}->y{old}z", x, x, precision=precision
  )


def average_grams(
  state: Kronecker, x: jax.Array, decay: jax.Array | float, precision: str
) -> Kronecker:
  """P <- decay P + (1 - decay) Gram(x) for each factored side."""
  factors = []
  for side, factor in enumerate(state.factors):
    if factor is not None:
      new = gram(x, side, precision)
      average = decay * factor.astype(x.dtype) + (1 - decay) * new
      factor = average.astype(factor.dtype)
    factors.append(factor)
  return state._replace(factors=tuple(factors))


def finite_or_zero(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Takes each matrix that would poison an average as zero; says which not.

  Judged by the sum of squares, the trace of either Gram matrix: finite
  exactly if all entries are and no Gram entry can overflow.

  Args:
    x: [S, I, O], or more sides.

  Returns:
    x with zeros in the place of bad matrices, and ok_S.
  """
  sides = tuple(range(1, x.ndim))
  ok_S = jnp.isfinite(jnp.sum(jnp.square(x), axis=sides))
  return jnp.where(jnp.expand_dims(ok_S, sides), x, 0), ok_S


def screen_leaf(g: jax.Array) -> jax.Array:
  """As `finite_or_zero`, for a leaf without a matrix, as a whole."""
  work = g.astype(jnp.promote_types(g.dtype, jnp.float32))
  return jnp.where(jnp.isfinite(jnp.sum(jnp.square(work))), g, 0)


def observe(
  plan: Plan,
  updates: Any,
  state: dict[str, Kronecker],
  decay: jax.Array | float,
  precision: Precision,
  stack_axes: Any | None,
  statistics: Any | None = None,
  param_specs: Any | None = None,
) -> tuple[Split, dict[str, Kronecker]]:
  """Stacks and screens the gradients, and averages their Gram matrices.

  Or those of `statistics`, if the updates are not the gradients they shall see.
  """
  split = sharding.split(updates, plan, stack_axes, param_specs)
  stacks, factors = {}, {}
  for bucket in plan.buckets:
    name, kept = bucket.name, state[bucket.name]
    x, ok_S = finite_or_zero(split.stacks[name])
    stacks[name] = x
    kept = kept._replace(rejections=kept.rejections + ~ok_S)
    kept = average_grams(kept, x, decay, precision.statistics)
    axis = 0 if bucket.shard_axis == 0 else None
    factors[name] = jax.tree.map(
      lambda array, axis=axis: sharding.constrain(array, axis, stack_axes), kept
    )
  if statistics is not None:
    _, factors = observe(
      plan, statistics, state, decay, precision, stack_axes, None, param_specs
    )
  return Split(stacks, jax.tree.map(screen_leaf, split.rest)), factors


def make_schedule(
  plan: Plan, frequency: int, *, stagger: bool, stack_shards: int
) -> dict[tuple[str, int], Refresh]:
  """Spreads the refreshes of all sides evenly over `frequency` phases.

  A stack of n matrices a shard needs slots of ceil(n / frequency); each slot
  gets, dearest first, the phase with the least work that its stack has not
  used yet. Not staggered, everything happens at phase 0.

  Returns:
    A `Refresh` for each (bucket name, side).
  """
  sides = [
    (bucket, side)
    for bucket in plan.buckets
    for side, has in enumerate(bucket.factored)
    if has
  ]
  sides.sort(key=lambda item: -item[0].shape[item[1]])
  load = np.zeros(frequency)
  schedule = {}
  for bucket, side in sides:
    shards = stack_shards if bucket.shard_axis == 0 else 1
    local = bucket.size // shards
    size = -(-local // frequency) if stagger else local
    phases = [-1] * frequency
    for slot in range(-(-local // size)):
      free = [p for p in range(frequency) if phases[p] < 0]
      phase = min(free, key=lambda p: load[p]) if stagger else 0
      phases[phase] = slot
      load[phase] += size * float(bucket.shape[side]) ** 3
    schedule[bucket.name, side] = Refresh(shards, size, tuple(phases))
  return schedule


def refresh_side(
  refresh: Refresh,
  count: jax.Array,
  enabled: jax.Array | bool,
  make: Callable[..., tuple[jax.Array, jax.Array]],
  state: Kronecker,
  side: int,
  carried: tuple[jax.Array, ...] = (),
  carry: Callable[..., jax.Array] = lambda x, old, new: x,
) -> tuple[Kronecker, tuple[jax.Array, ...]]:
  """Refreshes the matrices of one side whose turn it is.

  Args:
    refresh: The side's schedule.
    count: Steps so far, int32 []; its phase is the remainder by the frequency.
    enabled: Whether anything is refreshed now.
    make: (factor, old) -> (new, ok_S), for a stack of matrices.
    state: The bucket's.
    side: Which side.
    carried: Stacks that live in the basis, e.g. the momentum.
    carry: (x, old, new) -> x, moves them from the old basis to the new.

  Returns:
    The new state, and `carried`. Matrices that `make` does not vouch for keep
    the old one and count as a failure.
  """
  slots = jnp.asarray(refresh.slot_of_phase, jnp.int32)
  slot = slots[count % len(slots)]
  first = slot * refresh.size
  local = state.failures.shape[0] // refresh.shards
  # The last slot of a stack that does not divide evenly overlaps the one
  # before; what that one did already is left alone.
  start = jnp.minimum(first, local - refresh.size)
  overlaps = local % refresh.size > 0

  def take(x):
    x = x.reshape(refresh.shards, local, *x.shape[1:])
    x = jax.lax.dynamic_slice_in_dim(x, start, refresh.size, axis=1)
    return x.reshape(-1, *x.shape[2:])

  def put(x, part):
    parts = part.reshape(refresh.shards, refresh.size, *x.shape[1:])
    whole = x.reshape(refresh.shards, local, *x.shape[1:])
    whole = jax.lax.dynamic_update_slice_in_dim(
      whole, parts.astype(x.dtype), start, axis=1
    )
    return whole.reshape(x.shape)

  def update(factor, derived, failures, carried):
    work = jnp.promote_types(factor.dtype, jnp.float32)
    old = take(derived).astype(work)
    made, ok_S = make(take(factor).astype(work), old)
    bad_S, accept_S = ~ok_S, ok_S
    if overlaps:
      turn = jnp.arange(refresh.size) + start >= first
      turn_S = jnp.tile(turn, refresh.shards)
      bad_S, accept_S = turn_S & ~ok_S, turn_S & ok_S
    new = jnp.where(accept_S[:, None, None], made, old)
    moved = tuple(put(x, carry(take(x), old, new)) for x in carried)
    failed_S = take(failures) + bad_S
    return put(derived, new), put(failures, failed_S), moved

  def keep(factor, derived, failures, carried):
    del factor
    return derived, failures, carried

  operands = state.factors[side], state.derived[side], state.failures, carried
  derived, failures, carried = jax.lax.cond(
    (slot >= 0) & enabled, update, keep, *operands
  )
  all_derived = list(state.derived)
  all_derived[side] = derived
  state = state._replace(derived=tuple(all_derived), failures=failures)
  return state, carried
