"""Eigenbases and roots of stacks of matrices.

Each function takes [S, I, I] (or [S, I, O]) and treats the S matrices alike,
without a loop over S. The stack axis may be sharded: no function communicates
along the stack axis. No function raises on bad numbers. A function that can
fail returns ok_S, which says which matrices can be trusted.

Dimension key: see `plan.py`.
"""

import functools

import jax
import jax.numpy as jnp

from . import roots

# A basis is accepted if no entry of Q^T Q - 1 is larger.
ORTHOGONALITY_TOLERANCE = 1e-4


def eigenbasis(factor_SII: jax.Array) -> jax.Array:
  """Eigenvectors of symmetric matrices, largest eigenvalue first.

  Args:
    factor_SII: Symmetric matrices.

  Returns:
    basis_SIJ: Orthonormal columns Q with P Q = Q diag(eigenvalues).
  """

  def eigenvectors(implementation, x):
    return jax.lax.linalg.eigh(
      x, implementation=implementation, symmetrize_input=False
    )[0]

  # What JAX takes on a TPU above 256 rows is 22,000 instructions a size, a
  # minute and more to compile, for what a run does once.
  jacobi = jax.lax.linalg.EighImplementation.JACOBI
  # LAPACK's matrices lie column by column: transposed, they need no copy.
  even_SII = 0.5 * (factor_SII + factor_SII.mT)
  vectors_SIJ = jax.lax.platform_dependent(
    even_SII.mT,
    tpu=functools.partial(eigenvectors, jacobi),
    default=functools.partial(eigenvectors, None),
  )
  return vectors_SIJ[..., ::-1]


def power_step(
  factor_SII: jax.Array,
  basis_SIJ: jax.Array,
  *,
  method: str = "qr",
  precision: str = "highest",
) -> tuple[jax.Array, jax.Array]:
  """One step of orthogonal power iteration towards the eigenvectors.

  Q <- orthonormalise(P Q). The columns are sorted by their estimated
  eigenvalues diag(Q^T P Q), largest first, orthonormalised in this order, and
  put back in their old places. So a number that is stored for each column, as
  Adam's second moment is, stays with its column.

  Args:
    factor_SII: P, symmetric and positive semi-definite.
    basis_SIJ: Q, orthonormal columns.
    method: "qr" (Householder) or "cholesky" (matrix products and one Cholesky
      factorisation; Householder if that fails).
    precision: Precision of the products.

  Returns:
    The new basis, and ok_S: False where the new basis is not orthonormal.

  References:
    Vyas et al., "SOAP", 2024, algorithm 4, https://arxiv.org/abs/2409.11321
  """
  image_SIJ = jnp.matmul(factor_SII, basis_SIJ, precision=precision)
  eigenvalues_SJ = _column_products(basis_SIJ, image_SIJ, precision)
  order_SJ = jnp.argsort(-eigenvalues_SJ, axis=-1)
  sorted_SIJ = _take_columns(image_SIJ, order_SJ)
  orthonormalize = {"qr": householder, "cholesky": cholesky_or_householder}
  new_SIJ, ok_S = orthonormalize[method](sorted_SIJ, precision=precision)
  back_SJ = jnp.argsort(order_SJ, axis=-1)
  return _take_columns(new_SIJ, back_SJ), ok_S


def householder(
  x_SIJ: jax.Array, *, precision: str = "highest"
) -> tuple[jax.Array, jax.Array]:
  """The Q of a QR factorisation, and ok_S: whether Q is finite."""
  del precision  # LAPACK's own.
  q_SIJ = jnp.linalg.qr(x_SIJ)[0]
  return q_SIJ, finite(q_SIJ)


def scaled_cholesky_qr(
  x_SIJ: jax.Array, *, precision: str = "highest"
) -> tuple[jax.Array, jax.Array]:
  r"""QR by matrix products: the Q of Householder, up to column signs.

  The columns are scaled to unit length. The scaling does not change Q, and it
  brings X^T X near the identity once a basis has settled. The Cholesky factor
  R^T R = X^T X gives Y = X R^{-1}. The error E = Y^T Y - 1 is removed by one
  Newton step of the triangular factor, Y (1 - triu(E, 1) - diag(E) / 2). The
  Newton step replaces the second Cholesky factorisation of CholeskyQR2.

  Args:
    x_SIJ: Full-rank square or tall matrices.
    precision: Precision of the products.

  Returns:
    q_SIJ, and ok_S: False where the Cholesky factorisation failed, or where E
    was too large for one Newton step (condition numbers above about 1e3).

  References:
    Yamamoto et al., "Roundoff error analysis of the CholeskyQR2 algorithm",
    2015; the column scaling is the guard described in `docs/soap.md`.
  """
  norm_S1J = jnp.sqrt(_column_products(x_SIJ, x_SIJ, precision))[:, None]
  tiny = jnp.finfo(x_SIJ.dtype).tiny
  x_SIJ = x_SIJ / jnp.maximum(norm_S1J, tiny)
  gram_SJJ = jnp.matmul(x_SIJ.mT, x_SIJ, precision=precision)
  lower_SJJ = jnp.linalg.cholesky(gram_SJJ, symmetrize_input=False)
  y_SIJ = jax.lax.linalg.triangular_solve(
    lower_SJJ, x_SIJ, left_side=False, lower=True, transpose_a=True
  )
  gram_SJJ = jnp.matmul(y_SIJ.mT, y_SIJ, precision=precision)
  error_SJJ = gram_SJJ - jnp.eye(gram_SJJ.shape[-1], dtype=gram_SJJ.dtype)
  half_SJJ = jnp.triu(error_SJJ, 1) + error_SJJ * (
    0.5 * jnp.eye(gram_SJJ.shape[-1], dtype=gram_SJJ.dtype)
  )
  q_SIJ = y_SIJ - jnp.matmul(y_SIJ, half_SJJ, precision=precision)
  # The Newton step leaves an error of the order of ||E||^2.
  size_S = jnp.sum(jnp.square(error_SJJ), axis=(-2, -1))
  ok_S = finite(q_SIJ) & (size_S < ORTHOGONALITY_TOLERANCE)
  return q_SIJ, ok_S


def cholesky_or_householder(
  x_SIJ: jax.Array, *, precision: str = "highest"
) -> tuple[jax.Array, jax.Array]:
  """`scaled_cholesky_qr`, and Householder where `scaled_cholesky_qr` fails."""
  q_SIJ, ok_S = scaled_cholesky_qr(x_SIJ, precision=precision)
  return jax.lax.cond(
    jnp.all(ok_S), lambda x, q, ok: (q, ok), _repair, x_SIJ, q_SIJ, ok_S
  )


def inverse_root(
  factor_SII: jax.Array,
  exponent: jax.Array | float,
  epsilon: jax.Array | float,
  *,
  method: str = "eigh",
  relative: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """(P + epsilon)^(-exponent) of symmetric positive semi-definite matrices.

  "eigh": eigenvalues below I * (machine epsilon) * (the largest eigenvalue) are
  round-off. They are raised to this floor, so that the null space of a
  rank-deficient P gets one large factor, and not arbitrary ones. "products":
  see `roots.inverse_square_root`, which has a floor by itself.

  Args:
    factor_SII: P.
    exponent: For instance 1/2 or 1/4; "products" knows these two only.
    epsilon: Added to the eigenvalues, in units of the eigenvalues.
    method: "eigh" (eigenvectors) or "products" (matrix products alone).
    relative: True: epsilon is in units of the largest eigenvalue of each P, or,
      with "products", of a bound: the largest absolute row sum of P, which is
      at most the root of I times as large. In units of 1 where P = 0.

  Returns:
    root_SII, and ok_S: False where the root is not finite.

  Raises:
    ValueError: For an exponent that "products" does not know.
  """
  if method == "products":
    if relative:
      epsilon = epsilon * _one_for_zero(roots.row_sum(factor_SII))
    eye = jnp.eye(factor_SII.shape[-1], dtype=factor_SII.dtype)
    shifted_SII = factor_SII + (epsilon * eye).astype(factor_SII.dtype)
    root_SII = roots.inverse_root_by_products(shifted_SII, exponent)
    return root_SII, finite(root_SII)
  eigenvalues_SI, vectors_SIJ = jnp.linalg.eigh(factor_SII)
  noise = factor_SII.shape[-1] * jnp.finfo(factor_SII.dtype).eps
  floor_S1 = noise * jnp.maximum(eigenvalues_SI[:, -1:], 0)
  if relative:
    epsilon = epsilon * _one_for_zero(jnp.maximum(eigenvalues_SI[:, -1:], 0))
  scale_SI = (jnp.maximum(eigenvalues_SI, floor_S1) + epsilon) ** -exponent
  root_SII = jnp.matmul(
    vectors_SIJ * scale_SI[:, None], vectors_SIJ.mT, precision="highest"
  )
  return root_SII, finite(root_SII)


def norm(x: jax.Array) -> jax.Array:
  """Frobenius norm of each matrix, [S, 1, 1]; its derivative at 0 is 0."""
  axes = tuple(range(1, x.ndim))
  square = jnp.sum(jnp.square(x), axis=axes, keepdims=True)
  some = square > 0
  return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)


def squared_overlaps(
  old_SIJ: jax.Array, new_SIP: jax.Array, precision: str
) -> jax.Array:
  """(Q_old^T Q_new)^2 element by element: how much two bases share."""
  # Not a product with `.mT`, which XLA:CPU compiles to a copy.
  overlap_SJP = jnp.einsum(
    "sij,sip->sjp", old_SIJ, new_SIP, precision=precision
  )
  return jnp.square(overlap_SJP)


def _column_products(x_SIJ, y_SIJ, precision):
  # On a CPU, 40 times as fast as a sum over the rows of the product.
  return jnp.einsum("sij,sij->sj", x_SIJ, y_SIJ, precision=precision)


def _take_columns(x_SIJ, order_SJ):
  return jnp.take_along_axis(
    x_SIJ, order_SJ[:, None], axis=-1, mode="promise_in_bounds"
  )


def _one_for_zero(x):
  return jnp.where(x > 0, x, 1)


def _repair(x_SIJ, q_SIJ, ok_S):
  again_SIJ, again_ok_S = householder(x_SIJ)
  q_SIJ = jnp.where(ok_S[:, None, None], q_SIJ, again_SIJ)
  return q_SIJ, ok_S | again_ok_S


def finite(x_SIJ: jax.Array) -> jax.Array:
  """Whether each matrix has finite entries only."""
  # A test of every entry would take XLA:CPU 20 times as long to compile.
  return jnp.isfinite(jnp.max(jnp.abs(x_SIJ), axis=(-2, -1)))
