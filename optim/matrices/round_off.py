"""Replaces by 0 what a rotation leaves as round-off only."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .options import Precision
from .plan import Plan
from .stacks import Split, Stacks

# Machine epsilons of the norm that count as round-off of a rotation: the
# largest that was seen is 4.4, for sides of 12 to 512.
_ROUND_OFF = 16
# Of inputs rounded to a coarser type; independent errors have 0.3 (3 sigma
# of four roundings: 1.2).
_COARSE = 2
# Share of the largest entry below which a first step is damped.
_FIRST_FLOOR = 1e-6


def grains(plan: Plan, tree: Any) -> dict[str, float]:
  """By bucket: the coarsest machine epsilon of the leaves, 0 if it is fine."""
  dtypes = [x.dtype for x in jax.tree.leaves(tree)]
  return {
    bucket.name: coarsest(
      bucket.dtype, *(dtypes[p.index] for p in bucket.pieces)
    )
    for bucket in plan.buckets
  }


def silence(
  split: Split,
  factors: Stacks,
  precision: Precision,
  grain: dict[str, float],
) -> Split:
  """`without_round_off` of rotated stacks."""

  def clean(name, x):
    matrices, p = factors[name].derived, precision.rotation
    return without_round_off(x, matrices, grain=grain[name], precision=p)

  return split.map(clean)


def damp_noise(directions: Split, rotated: Split, first: jax.Array) -> Split:
  """A first step in the bases of its own gradient, its small entries damped.

  The gradient is diagonal in these bases, and its other entries are round-off.
  A direction g' / |g'| becomes g' / max(|g'|, 1e-6 max|G'|).

  Args:
    directions: In the bases, of the element-wise rule.
    rotated: G', of which they were made.
    first: Whether this is the first call; later ones are left alone.
  """

  def damp(name, u):
    size = jnp.abs(rotated.stacks[name])
    sides = tuple(range(1, u.ndim))
    floor = _FIRST_FLOOR * jnp.max(size, axis=sides, keepdims=True)
    small = first & (size < floor)
    return jnp.where(small, u * (size / jnp.where(small, floor, 1)), u)

  return directions.map(damp)


def without_round_off(
  x: jax.Array,
  matrices: tuple[jax.Array | None, ...],
  *,
  grain: float = 0.0,
  precision: str = "highest",
) -> jax.Array:
  r"""Zeros where a rotated matrix holds nothing but round-off.

  A rule that divides by root mean squares makes a full step of any number,
  however small. In a direction without gradient, a rotation leaves round-off.
  The round-off of an entry is about the machine epsilon e times the norms of
  the row and of the column that cross there, and of the whole matrix, spread
  over a side. An entry x'_ij is replaced by 0 where

      x'_ij^2 < sum over rotated sides of a_n (norm of the fibre along it)^2
                + a_n ||x'||^2 / n, with the shorter side's n (two sides only)
      a_n = (16 e)^2 + (2 g)^2 / n

  with g the epsilon of a coarser type to which an input was rounded: the type
  of the leaf, of the basis or of the product. Errors of that rounding are
  independent, and spread over a side of n. Float64 has the same rule with its
  own e. A matrix that no basis turns yet (the identity) stays as it is.

  Args:
    x: [S, I, O], or more sides, in the bases.
    matrices: The basis [S, n, n] of each side, or None.
    grain: g of the numbers that were rotated, e.g. 2^-7 for bfloat16; 0 for
      no coarser than `x`.
    precision: Of the product that rotated them.

  Returns:
    Like `x`. Below about 1e-19 in float32 squares are 0 and nothing is
    replaced: there, eps of a rule decides.
  """
  sides = tuple(range(1, x.ndim))
  square = jnp.square(x)
  power, share, fibres, shortest = jnp.zeros((), x.dtype), 0.0, [], []
  for side, matrix in enumerate(matrices):
    if matrix is None:
      continue
    n = matrix.shape[-1]
    coarse = jnp.maximum(
      max(grain, coarsest(x.dtype, matrix.dtype)), _product_grain(x, precision)
    )
    amount = (_ROUND_OFF * jnp.finfo(x.dtype).eps) ** 2
    amount = amount + (_COARSE * coarse) ** 2 / n
    amount = jnp.expand_dims(jnp.where(_is_turned(matrix), amount, 0), sides)
    amount = amount.astype(x.dtype)
    fibres.append(jnp.sum(square, axis=side + 1, keepdims=True))
    power += amount * fibres[-1]
    share = jnp.maximum(share, amount)
    shortest.append(n)
  if len(shortest) > 1:
    total = jnp.sum(fibres[0], axis=sides, keepdims=True)
    power += share * total / min(shortest)
  return jnp.where(square < power, 0, x)


def _is_turned(basis_SIJ):
  """[S]: whether a basis has a diagonal entry that is not 1."""
  # A masked maximum: `jnp.diagonal` takes XLA:CPU twice as long to compile.
  eye = jnp.eye(basis_SIJ.shape[-1], dtype=bool)
  return jnp.max(jnp.where(eye, jnp.abs(basis_SIJ - 1), 0), axis=(-2, -1)) != 0


def coarsest(work: Any, *dtypes: Any) -> float:
  """The coarsest epsilon of the types, 0 if none is coarser than `work`."""
  grain = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
  return grain if grain > float(jnp.finfo(work).eps) else 0.0


def _product_grain(x, precision: str):
  """The epsilon to which a product of float32 rounds what it is given."""
  if x.dtype != jnp.float32 or precision == "highest":
    return 0.0
  tpu = dict(default=2.0**-7, high=2.0**-15)[precision]
  # TF32 on NVIDIA's, for both.
  epsilons = dict(cpu=0.0, tpu=tpu, default=2.0**-10)
  return jax.lax.platform_dependent(
    **{k: functools.partial(jnp.float32, v) for k, v in epsilons.items()}
  )
