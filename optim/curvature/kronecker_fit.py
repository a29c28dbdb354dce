r"""How good is a Kronecker product as a model of gradient second moments?

Let A = E[vec(G) vec(G)^T] for the gradients G [I, O] of single examples. With
labels drawn from the model, A is the Gauss-Newton (Fisher) block of the matrix.
With the data's labels, A is the empirical Fisher block. A is never formed. The
Kronecker product L x R acts as G -> L G R, and these three numbers suffice:

    <A, L x R> = E <G, L G R>,    ||L x R|| = ||L|| ||R||,
    ||A||^2 = E_{G, H} <G, H>^2   over independent pairs.

Shampoo's preconditioner L^(1/4) x R^(1/4) models A as L^(1/2) x R^(1/2). The
square of this model is L x R with L = E[G G^T] and R = E[G^T G]. The square is
one step of the power iteration towards the best Kronecker product, from the
identity.

Source: Morwani et al., "A New Perspective on Shampoo's Preconditioner", 2024,
https://arxiv.org/abs/2406.17748. Dimension key: B gradients, I, J inputs,
O, P outputs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..common import checks
from ..common.meshes import on_any_mesh


class KroneckerReport(NamedTuple):
  """Cosines in [0, 1] between A and three Kronecker models of it."""

  optimal: jax.Array  # The best Kronecker product, by power iteration.
  shampoo_squared: jax.Array  # E[G G^T] x E[G^T G].
  shampoo: jax.Array  # The square roots of both factors.


@on_any_mesh
def kronecker_factors(
  grads_BIO: jax.Array, *, num_steps: int = 1
) -> tuple[jax.Array, jax.Array]:
  """Finds the best Kronecker product L x R near A by power iteration.

      L <- E[G R G^T],    R <- E[G^T L G],    from L = R = 1, normalised

  Both factors are updated from the old values, so that one step gives the
  factors of Shampoo. The iteration converges to the top singular pair of A
  rearranged as [I^2, O^2].

  Args:
    grads_BIO: Gradients of single examples (or of batches).
    num_steps: Iterations, >= 1.

  Returns:
    left_IJ and right_OP, of Frobenius norm 1.

  Raises:
    ValueError: If num_steps < 1.
  """
  checks.count("num_steps", num_steps)
  _, inputs, outputs = grads_BIO.shape
  eyes = jnp.eye(inputs), jnp.eye(outputs)

  def step(_, factors):
    left_IJ, right_OP = factors
    g = grads_BIO
    new_left_IJ = jnp.einsum("bio,op,bjp->ij", g, right_OP, g)
    new_right_OP = jnp.einsum("bio,ij,bjp->op", g, left_IJ, g)
    return _unit(new_left_IJ), _unit(new_right_OP)

  return jax.lax.fori_loop(0, num_steps, step, eyes)


@on_any_mesh
def kronecker_cosine(
  grads_BIO: jax.Array,
  left_IJ: jax.Array,
  right_OP: jax.Array,
  *,
  unbiased: bool = False,
) -> jax.Array:
  """Cosine between A and L x R in the Frobenius inner product.

  Args:
    grads_BIO: Samples of G; A is their second moment.
    left_IJ: L, symmetric.
    right_OP: R, symmetric.
    unbiased: True estimates ||A||^2 from pairs of different samples only, which
      is right for the distribution that the samples are from. False is exact
      for the samples themselves. True needs B >= 2.

  Returns:
    A scalar.
  """
  image_BIO = jnp.einsum("ij,bjp,op->bio", left_IJ, grads_BIO, right_OP)
  inner = jnp.mean(jnp.sum(grads_BIO * image_BIO, axis=(1, 2)))
  flat_BN = grads_BIO.reshape(grads_BIO.shape[0], -1)
  squares_BB = jnp.square(flat_BN @ flat_BN.T)
  batch = flat_BN.shape[0]
  if unbiased:
    off_diagonal = jnp.sum(squares_BB) - jnp.trace(squares_BB)
    norm_squared = off_diagonal / (batch * (batch - 1))
  else:
    norm_squared = jnp.mean(squares_BB)
  norms = jnp.linalg.norm(left_IJ) * jnp.linalg.norm(right_OP)
  return inner / (norms * jnp.sqrt(norm_squared))


def operator_cosine(
  matvec: Callable[[jax.Array], jax.Array],
  left_IJ: jax.Array,
  right_OP: jax.Array,
  key: jax.Array,
  *,
  num_probes: int = 100,
) -> jax.Array:
  """`kronecker_cosine` for a matrix A known by its products with vectors.

  With random signs z, <A, L x R> = E <A z, L z R> and ||A||^2 = E ||A z||^2
  (Hutchinson). The error falls as 1 / sqrt(num_probes).

  Args:
    matvec: G [I, O] -> A G, symmetric, e.g. a Gauss-Newton product.
    left_IJ: L, symmetric.
    right_OP: R, symmetric.
    key: Random key of the signs.
    num_probes: Number of products with A.

  Returns:
    A scalar.
  """
  shape = (left_IJ.shape[0], right_OP.shape[0])

  def probe(key):
    z_IO = jax.random.rademacher(key, shape, left_IJ.dtype)
    image_IO = matvec(z_IO)
    inner = jnp.sum(image_IO * (left_IJ @ z_IO @ right_OP))
    return inner, jnp.sum(jnp.square(image_IO))

  inner_B, square_B = jax.lax.map(probe, jax.random.split(key, num_probes))
  norms = jnp.linalg.norm(left_IJ) * jnp.linalg.norm(right_OP)
  return jnp.mean(inner_B) / (norms * jnp.sqrt(jnp.mean(square_B)))


def kronecker_report(
  grads_BIO: jax.Array, *, num_steps: int = 30, unbiased: bool = False
) -> KroneckerReport:
  """Compares the best Kronecker product, Shampoo squared and Shampoo.

  Args:
    grads_BIO: Gradients of single examples.
    num_steps: Power iterations for the best product.
    unbiased: As for `kronecker_cosine`.

  Returns:
    The three cosines.
  """
  best = kronecker_factors(grads_BIO, num_steps=num_steps)
  squared = kronecker_factors(grads_BIO, num_steps=1)
  roots = tuple(_square_root(factor) for factor in squared)
  return KroneckerReport(
    *(
      kronecker_cosine(grads_BIO, *pair, unbiased=unbiased)
      for pair in (best, squared, roots)
    )
  )


def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.linalg.norm(x)


def _square_root(factor_II: jax.Array) -> jax.Array:
  eigenvalues_I, vectors_IJ = jnp.linalg.eigh(factor_II)
  return (vectors_IJ * jnp.sqrt(jnp.maximum(eigenvalues_I, 0))) @ vectors_IJ.T
