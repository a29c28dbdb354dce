"""Which matrices are refreshed when: an equal part of all at each call.

Making a basis or a root from a factor is dear, so each matrix is refreshed once
in `frequency` calls. The refreshes are staggered, so that no call takes much
longer than another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..common.tree import work_dtype
from .factors import Kronecker
from .options import MatrixOptions
from .plan import Plan


class Refresh(NamedTuple):
  """When the matrices of one side of one bucket are refreshed; static.

  The stack is cut into `shards` equal parts, one part a device. A slot is
  `size` neighbouring matrices of each part.
  """

  shards: int
  size: int
  slot_of_phase: tuple[int, ...]  # [frequency]; -1: no slot.


def make_schedule(
  plan: Plan, o: MatrixOptions
) -> dict[tuple[str, int], Refresh]:
  """Spreads the refreshes of all sides evenly over the phases of a period.

  A stack of n matrices a shard has slots of ceil(n / frequency) matrices. The
  dearest slots choose first. Each slot takes the phase with the least work,
  among the phases that its stack has not used yet. Without staggering, all
  refreshes happen at phase 0.

  Returns:
    A `Refresh` for each (bucket name, side).
  """
  frequency = o.precondition_frequency
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
    shards = o.placement.stack_shards if bucket.shard_axis == 0 else 1
    local = bucket.size // shards
    size = -(-local // frequency) if o.stagger else local
    phases = [-1] * frequency
    for slot in range(-(-local // size)):
      free = [p for p in range(frequency) if phases[p] < 0]
      phase = min(free, key=lambda p: load[p]) if o.stagger else 0
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
  carried: Any = (),
  carry: Callable[..., Any] = lambda parts, old, new: parts,
) -> tuple[Kronecker, Any]:
  """Refreshes the matrices of one side whose turn it is.

  Args:
    refresh: The schedule of the side.
    count: Steps so far, int32 []; the phase is count modulo the frequency.
    enabled: False: nothing is refreshed at this call.
    make: (factor, old) -> (new, ok_S), for a stack of matrices.
    state: The `Kronecker` of the bucket.
    side: The index of the side.
    carried: Tree of stacks that live in the basis, e.g. the momentum.
    carry: (carried, old, new) -> carried, moves the matrices whose turn it is
      from the old basis to the new.

  Returns:
    The new state, and the new `carried`. Where ok_S is False, the old matrix
    stays and a failure is counted.
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
    work = work_dtype(factor)
    old = take(derived).astype(work)
    made, ok_S = make(take(factor).astype(work), old)
    bad_S, accept_S = ~ok_S, ok_S
    if overlaps:
      turn = jnp.arange(refresh.size) + start >= first
      turn_S = jnp.tile(turn, refresh.shards)
      bad_S, accept_S = turn_S & ~ok_S, turn_S & ok_S
    new = jnp.where(accept_S[:, None, None], made, old)
    moved = carry(jax.tree.map(take, carried), old, new)
    moved = jax.tree.map(put, carried, moved)
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
