"""Inverse square roots of stacks of matrices by products alone.

Dimension key: see `plan.py`.
"""

import jax
import jax.numpy as jnp

# (beta, alpha) of each step: NVIDIA's scaled coupled CANS.
_STEPS = (
  (5.182503604966906, -5.126830178299687),
  (2.586120737395915, -0.641538812403133),
  (2.567364126726186, -0.6391058222170474),
  (2.520560084348265, -0.6330225823828756),
  (2.410759275435182, -0.6186815444268036),
  (2.1883348130094173, -0.5893091162177136),
  (1.8595760874873613, -0.5449991062102938),
  (1.589020160467417, -0.5075811685214573),
  (1.5051653981684994, -0.4957799077972079),
  (1.4925557853149838, -0.49259266842078675),
)


def row_sum(factor_SII: jax.Array) -> jax.Array:
  """The largest absolute row sum of each matrix, [S, 1, 1].

  Of a symmetric matrix no eigenvalue is larger, and the largest eigenvalue is
  at least the row sum divided by the root of I.
  """
  sums_SI1 = jnp.sum(jnp.abs(factor_SII), axis=-1, keepdims=True)
  return jnp.max(sums_SI1, axis=-2, keepdims=True)


def inverse_square_root(factor_SII: jax.Array) -> jax.Array:
  r"""P^(-1/2) of symmetric positive semi-definite matrices, by 27 products.

  With s the largest absolute row sum of P, Y = P / s and Z = 1, ten times

      T = Z Y,    Z <- beta Z + alpha T Z,    Y <- beta Y + alpha Y T

  Z tends to Y^(-1/2), and P^(-1/2) = Z / sqrt(s). The errors, relative to the
  root in the Frobenius norm, were measured in float32 for sides of 32 and 128:
  2e-5 at a condition number of 1e2, 3e-5 at 1e4, 5e-3 at 1e6. Eigenvalues below
  about 1e-7 s are not reached: their roots stop at about 3000 / sqrt(s), as if
  the eigenvalues had this floor. The lists are made for ten steps, so that
  float64 is not more exact than about 1e-5.

  Args:
    factor_SII: P. A matrix of zeros gets a multiple of the identity.

  Returns:
    Like `factor_SII`, symmetric.

  References:
    NVIDIA, Emerging-Optimizers, 2025 (coefficients);
    Grishina et al., "Accelerating Newton-Schulz iteration for orthogonalization
    via Chebyshev-type polynomials", 2025, https://arxiv.org/abs/2506.10935
  """
  size_S11 = row_sum(factor_SII)
  size_S11 = jnp.where(size_S11 > 0, size_S11, 1)
  y = factor_SII / size_S11
  beta, alpha = _STEPS[0]  # Z = 1, so that T = Y.
  z = beta * jnp.eye(y.shape[-1], dtype=y.dtype) + alpha * y
  y = beta * y + alpha * _product(y, y)

  def step(pair, coefficients):
    y, z = pair
    beta, alpha = coefficients
    t = _product(z, y)
    return (
      beta * y + alpha * _product(y, t),
      beta * z + alpha * _product(t, z),
    ), None

  middle = jnp.asarray(_STEPS[1:-1], y.dtype)
  (y, z), _ = jax.lax.scan(step, (y, z), middle)
  beta, alpha = _STEPS[-1]  # Z only.
  z = beta * z + alpha * _product(_product(z, y), z)
  z = z / jnp.sqrt(size_S11)
  return (z + z.mT) / 2


def inverse_root_by_products(
  factor_SII: jax.Array, exponent: jax.Array | float
) -> jax.Array:
  """P^(-exponent) for the exponents 1/2 and 1/4; see `inverse_square_root`.

  Args:
    factor_SII: P.
    exponent: 1/2, or 1/4: the inverse square root of P P^(-1/2), 55 products.

  Returns:
    Like `factor_SII`.

  Raises:
    ValueError: For another exponent, or a traced one.
  """
  check_exponent(exponent)
  root_SII = inverse_square_root(factor_SII)
  if exponent == 0.5:
    return root_SII
  half_SII = _product(factor_SII, root_SII)
  return inverse_square_root((half_SII + half_SII.mT) / 2)


def check_exponent(exponent: jax.Array | float) -> None:
  """Raises unless products alone can make this root."""
  if isinstance(exponent, jax.Array) or exponent not in (0.5, 0.25):
    raise ValueError(
      f"exponent={exponent} must be the Python number 0.5 or 0.25: products "
      "alone make no other root. Take eigenvectors for other exponents "
      '(root="eigh"). Under optax.inject_hyperparams list it in static_args, '
      'e.g. static_args=("exponent",).'
    )


def _product(x, y):
  return jnp.matmul(x, y, precision="highest")
