"""The diagonal of curvature that the factors of SOAP and Shampoo hold.

Dimension key: see `matrices/plan.py`.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..common import meshes
from ..common.options import also_takes
from ..common.tree import find, is_masked, zeros
from ..matrices.factors import Kronecker
from ..matrices.options import LayoutOptions
from ..matrices.placement import constrain
from ..matrices.plan import Bucket, Plan
from ..matrices.stacks import Split, Stacks
from ..methods.shampoo import ShampooState
from ..methods.soap import SoapState


@also_takes(LayoutOptions)
def factor_diagonal(
  opt_state: Any, params: Any, *, decay: float | None = None, **options: Any
) -> Any:
  r"""E[G_io^2] of every matrix, from the diagonals of its two factors.

      E[G_io^2] = L_ii R_oo / tr(L),        L = E[G G^T],  R = E[G^T G]

  L_ii and R_oo are the sums of E[G^2] along a row and along a column. Both
  traces are the sum of E[G^2] over the matrix. The result is exact if E[G^2]
  has rank 1, as it has if E[vec(G) vec(G)^T] is a Kronecker product. Along a
  side of n entries without a factor the sum is shared equally, 1 / n for each
  entry. Each block of a matrix has its own factors and its own sum. On a mesh
  the diagonals are gathered, and not the factors.

  Pass the options that the optimiser got. Only `decay` is an option of this
  function alone.

  Args:
    opt_state: State of SOAP or Shampoo, chained or wrapped in any way.
    params: A tree like the tree that the state was made for.
    decay: The `shampoo_beta` of the optimiser, or its `b2` if `shampoo_beta` is
      None. The bias of the averages is corrected by 1 / (1 - decay^t). None: no
      correction.
    **options: The options of the optimiser.

  Returns:
    A tree like params, float32, with `optax.MaskedNode()` for leaves without a
    factor. Zeros before the first update.

  Raises:
    ValueError: If the state has no factors, or if they do not fit params.
  """
  o = LayoutOptions(**options)
  plan = o.plan(params)
  if plan.empty:
    return params
  state = _find(opt_state)
  if any(kept.scales is not None for kept in state.kronecker.values()):
    raise ValueError(
      "opt_state has KL factors: their diagonals are not sums of E[G^2]. Give "
      "the optimiser factors='gram'."
    )
  known = {bucket.name for bucket in plan.buckets}
  if known != set(state.kronecker):
    raise ValueError(
      f"params make buckets {sorted(known)} but opt_state has "
      f"{sorted(state.kronecker)}; give dimension_numbers, max_precond_dim, "
      "one_sided, block_size and placement as to the optimiser."
    )

  def place(result, mesh):
    return jax.tree.map(
      lambda x, own: x if is_masked(x) else own,
      result,
      meshes.layouts(params, mesh),
      is_leaf=is_masked,
    )

  return meshes.in_auto_mode(
    functools.partial(_diagonal, o, plan),
    state.kronecker,
    state.count,
    params,
    decay,
    out=place,
  )


def _diagonal(
  o: LayoutOptions,
  plan: Plan,
  kronecker: Stacks,
  count: jax.Array,
  params: Any,
  decay: Any,
) -> Any:
  """`factor_diagonal`, of factors that fit."""
  correction = jnp.ones(())
  if decay is not None:
    # Before the first update the factors are zero, too.
    correction = 1 / (1 - decay ** jnp.maximum(count, 1))
  stacks = {
    bucket.name: correction
    * _second_moment(kronecker[bucket.name], bucket, o.placement.stack_axes)
    for bucket in plan.buckets
  }
  like = zeros(params)
  split = Split(Stacks(stacks), plan.split(like).rest)
  merged = plan.merge(split, like)
  covered = {piece.index for bucket in plan.buckets for piece in bucket.pieces}
  leaves = [
    leaf if index in covered else optax.MaskedNode()
    for index, leaf in enumerate(plan.treedef.flatten_up_to(merged))
  ]
  return jax.tree.unflatten(plan.treedef, leaves)


def _find(opt_state: Any) -> SoapState | ShampooState:
  """The state that has the factors, within any other."""
  found = find(opt_state, SoapState, ShampooState)
  if len(found) != 1:
    raise ValueError(
      f"opt_state has {len(found)} states of SOAP or Shampoo, and must have "
      "one: pass the state of optim.soap or optim.shampoo."
    )
  return found[0]


def _second_moment(
  state: Kronecker, bucket: Bucket, stack_axes: Any
) -> jax.Array:
  """[S, I, O] of E[G^2]; never stored, the compiler fuses the products."""
  diagonals, flat = [], 1
  for side, factor in enumerate(state.factors):
    if factor is None:
      flat *= bucket.shape[side]
      continue
    d = jnp.diagonal(factor, axis1=-2, axis2=-1).astype(bucket.dtype)
    d = constrain(d, None, stack_axes)
    others = [1 + k for k in range(len(bucket.shape)) if k != side]
    diagonals.append((d, others))
  total_S = jnp.sum(diagonals[0][0], axis=1)
  total_S = jnp.maximum(total_S, jnp.finfo(bucket.dtype).tiny)[:, None]
  # Sums along the first side, shares along the others: no square underflows.
  parts = [
    jnp.expand_dims(d if k == 0 else d / total_S, others)
    for k, (d, others) in enumerate(diagonals)
  ]
  product = functools.reduce(jnp.multiply, parts) / flat
  return jnp.broadcast_to(product, (math.prod(total_S.shape), *bucket.shape))
