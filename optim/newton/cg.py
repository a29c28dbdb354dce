"""Conjugate gradients for (G + damping I) d = -g, on trees."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.tree import dot
from .damping import is_zero


class CG(NamedTuple):
  """Solves for the displacement on a whole outer batch at once.

  g and G come from the same batches. G is singular if there are fewer outputs
  than parameters, and then a g outside the range of G has no solution.

  Attributes:
    iters: Largest number of products with G, >= 1.
    precond: (params, batches) -> tree like params of positive numbers M, which
      approximate the diagonal of G + damping I. None: M = 1. Martens takes
      (diagonal of the empirical Fisher + damping)^(3/4).
    tol: Iteration i is the last if k = max(10, i / 10) iterations gained less
      than the share k tol of the model's decrease. 0 never stops early.
    curvature_batches: A number n takes G from the first n batches, and g from
      all batches, which is cheaper and needs damping. None: G is from all.

  References:
    Martens, "Deep learning via Hessian-free optimization", 2010.
  """

  iters: int = 20
  precond: Callable[[Any, Any], Any] | None = None
  tol: float = 5e-4
  curvature_batches: int | None = None


class Solution(NamedTuple):
  """Result of `solve`."""

  d: Any
  iters: jax.Array  # int32 []: products made in iterations.


class _Loop(NamedTuple):
  i: jax.Array
  d: Any
  residual: Any  # -g - A d
  direction: Any
  slope: jax.Array  # <r, M^-1 r>
  decreases: jax.Array  # [iters + 1]: <g, d> + <d, A d> / 2
  done: jax.Array


def check(solver: CG, damping: Any, inner_steps: int) -> None:
  """Raises for a value out of range, and for a system without a solution."""
  checks.count("solver.iters", solver.iters)
  checks.positive("solver.tol", solver.tol, zero_too=True)
  if solver.curvature_batches is None:
    return
  checks.count("solver.curvature_batches", solver.curvature_batches)
  if is_zero(damping) and solver.curvature_batches < inner_steps:
    raise ValueError(
      f"solver.curvature_batches={solver.curvature_batches} of {inner_steps} "
      "with damping=0: the gradient of the other batches is outside the range "
      "of G, where G d = -g has no solution and CG diverges. Set damping > 0, "
      "or curvature_batches=None."
    )


def solve(
  product: Callable[[Any], Any],
  grad: Any,
  start: Any,
  precond: Any | None,
  solver: CG,
) -> Solution:
  """Minimises <g, d> + <d, A d> / 2 from a first d, preconditioned by M.

  `product` is v -> A v, symmetric and positive semi-definite.
  """

  def scaled(r):
    return r if precond is None else jax.tree.map(jnp.divide, r, precond)

  def decrease(d, r):
    return 0.5 * dot(d, optax.tree.sub(grad, r))

  residual = jax.tree.map(lambda g, a: -g - a, grad, product(start))
  direction = scaled(residual)
  first = dot(residual, direction)
  tiny = (10 * jnp.finfo(first.dtype).eps) ** 2 * first  # Round-off.
  decreases = jnp.full(solver.iters + 1, decrease(start, residual))
  zero = jnp.zeros((), jnp.int32)
  loop = _Loop(
    zero, start, residual, direction, first, decreases, first <= tiny
  )

  def step(s):
    image = product(s.direction)
    curve = dot(s.direction, image)
    solvable = curve > 0  # Else the direction is in the null space.
    size = jnp.where(solvable, s.slope / jnp.where(solvable, curve, 1), 0)
    d = optax.tree.add_scale(s.d, size, s.direction)
    residual = optax.tree.add_scale(s.residual, -size, image)
    ahead = scaled(residual)
    slope = dot(residual, ahead)
    direction = optax.tree.add_scale(ahead, slope / s.slope, s.direction)
    i = s.i + 1
    value = decrease(d, residual)
    decreases = s.decreases.at[i].set(value)
    k = jnp.maximum(10, i // 10)
    gained = value - decreases[jnp.maximum(i - k, 0)]
    slow = (i > k) & (value < 0) & (gained / value < k * solver.tol)
    done = slow | (slope <= tiny) | ~solvable
    return _Loop(i, d, residual, direction, slope, decreases, done)

  end = jax.lax.while_loop(lambda s: ~s.done & (s.i < solver.iters), step, loop)
  return Solution(end.d, end.i)
