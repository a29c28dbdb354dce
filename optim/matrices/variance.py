"""Second moments of orthogonalised matrices: NorMuon, AdaMuon, NAMO.

Dimension key: see `plan.py`.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from .linalg import norm

Variance = Literal["none", "rows", "longer", "entries", "matrix"]


def initial_variance(kind: Variance, stack_SIO: jax.Array) -> jax.Array:
  """Zeros of the shape of v: [S, 1, O], [S, I, 1], [S, I, O] or [S, 1, 1]."""
  if stack_SIO.ndim != 3:  # A placeholder for all stacks.
    return stack_SIO
  return jnp.zeros_like(_mean_square(kind, stack_SIO))


def divide_by_variance(
  kind: Variance,
  x_SIO: jax.Array,
  momentum_SIO: jax.Array,
  grad_SIO: jax.Array,
  old: jax.Array,
  *,
  b2: float,
  eps: float,
) -> tuple[jax.Array, jax.Array]:
  """Divides orthogonal matrices X by the root of a running second moment v.

      rows, longer   v = b2 v + (1 - b2) mean(X^2),  U ~ X / sqrt(v),
                     U of the norm of X
      entries        v = b2 v + (1 - b2) X^2,        U = X / (sqrt(v) + eps)
      matrix         v = b2 v + (1 - b2) ||G||^2,    U = X ||N|| / (sqrt(v) + eps)

  "rows" has one v for each output, and eps beside the root. "longer" has one v
  for each index of the longer side (outputs, if the sides are equal), and eps
  is the least v.

  Args:
    kind: See above.
    x_SIO: X.
    momentum_SIO: N, whose orthogonal matrices X are.
    grad_SIO: G.
    old: v so far.
    b2: Decay of v.
    eps: See above.

  Returns:
    U and the new v.
  """  # noqa: E501
  new = norm(grad_SIO) ** 2 if kind == "matrix" else _mean_square(kind, x_SIO)
  v = b2 * old + (1 - b2) * new
  if kind == "longer":
    root = jnp.sqrt(jnp.maximum(v, eps))
  else:
    root = jnp.sqrt(v) + eps
  u_SIO = _ratio(x_SIO, root)
  if kind == "matrix":
    u_SIO *= norm(momentum_SIO)
  if kind in ("rows", "longer"):
    u_SIO *= _ratio(norm(x_SIO), norm(u_SIO))
  return u_SIO, v


def _mean_square(kind, x_SIO):
  longer = 1 if x_SIO.shape[2] >= x_SIO.shape[1] else 2
  axes = dict(rows=(1,), longer=(longer,), entries=(), matrix=(1, 2))[kind]
  return jnp.mean(jnp.square(x_SIO), axis=axes, keepdims=True)


def _ratio(a, b):
  """a / b, and 0 where b is 0."""
  some = b > 0
  return jnp.where(some, a / jnp.where(some, b, 1), 0)
