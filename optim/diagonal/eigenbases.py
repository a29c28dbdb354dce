"""Orthonormal bases for a whole tree: in, out, and following a curvature.

A family of bases is five pure functions and a state, as an optax transform is
two. Curvature reaches it as rows a_k and b_k with G = sum_k a_k b_k^T, trees
like params with the axis K first, of which it takes the part it needs.

Dimension key: K rows, P parameters, Q coordinates (P of them); S, I, O as in
`optim/matrices/plan.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..common.tree import like as like_types
from ..common.tree import upcast
from ..matrices import eigenbasis, linalg
from ..matrices import factors as kronecker
from ..matrices.layout import DimensionTree
from ..matrices.options import Precision
from ..matrices.plan import make_plan
from ..matrices.round_off import coarsest, grains, silence, without_round_off
from ..matrices.stacks import Stacks

# The eigenvectors of P x P matrices: 100 MB and a minute on a CPU at 5,000.
MAX_DENSE_SIZE = 5_000
_PRECISION = "highest"


class Coordinates(NamedTuple):
  """A family of bases U.

  Attributes:
    init: params -> bases, the state; at first U = 1.
    into: (bases, tree) -> U^T tree, in float32 or more.
    back: (bases, coordinates, like) -> U coordinates, of the types of `like`.
    observe: (bases, a, b, decay) -> bases, with G in their averages.
    refresh: (bases, nu) -> (bases, nu): eigenvectors of the averages; nu,
      a diagonal in the old U, becomes that of U diag(nu) U^T in the new.
  """

  init: Callable[[Any], Any]
  into: Callable[[Any, Any], Any]
  back: Callable[[Any, Any, Any], Any]
  observe: Callable[[Any, Any, Any, Any], Any]
  refresh: Callable[[Any, Any], tuple[Any, Any]]


class Dense(NamedTuple):
  """Bases of `eigen`."""

  factor: jax.Array  # [P, P]: average of G.
  basis: jax.Array  # [P, Q]: U.


class Sides(NamedTuple):
  """Bases of `sides`: a factor and a basis for each side of each matrix."""

  kronecker: Stacks  # A `Kronecker` for each bucket.


def identity() -> Coordinates:
  """U = 1."""
  return Coordinates(
    init=lambda params: (),
    into=lambda bases, tree: upcast(tree),
    back=lambda bases, x, like: like_types(x, like),
    observe=lambda bases, a, b, decay: bases,
    refresh=lambda bases, nu: (bases, nu),
  )


def supplied(basis_PQ: jax.Array) -> Coordinates:
  """A constant U, rows in the order of the flattened tree."""

  def init(params):
    _check_supplied(basis_PQ, params)
    return ()

  return identity()._replace(
    init=init,
    into=lambda bases, tree: _into_dense(basis_PQ, tree),
    back=lambda bases, x, like: _unflat(_times(basis_PQ, x), like),
  )


def eigen() -> Coordinates:
  """All eigenvectors of the average of G: for at most 5,000 parameters."""

  def init(params):
    size = _flat(params).size
    if size > MAX_DENSE_SIZE:
      raise ValueError(
        f"basis='eigen' keeps two matrices of the side {size}, the number of "
        f"parameters; it is for at most {MAX_DENSE_SIZE}. Take "
        "basis='kronecker', which keeps two a side of each matrix."
      )
    dtype = _flat(params).dtype
    return Dense(jnp.zeros((size, size), dtype), jnp.eye(size, dtype=dtype))

  def observe(bases, a, b, decay):
    new = _times(jax.vmap(_flat)(a).T, jax.vmap(_flat)(b))
    factor = decay * bases.factor + (1 - decay) * (new + new.T) / 2
    return bases._replace(factor=factor.astype(bases.factor.dtype))

  def refresh(bases, nu):
    new = linalg.eigenbasis(bases.factor[None])[0]
    new = jnp.where(jnp.all(jnp.isfinite(new)), new, bases.basis)
    overlap = jnp.square(_times(new.T, bases.basis))
    return bases._replace(basis=new), _times(overlap, nu)

  return Coordinates(
    init=init,
    into=lambda bases, tree: _into_dense(bases.basis, tree),
    back=lambda bases, x, like: _unflat(_times(bases.basis, x), like),
    observe=observe,
    refresh=refresh,
  )


def sides(
  dimension_numbers: DimensionTree = None,
  max_precond_dim: int = 10_000,
) -> Coordinates:
  """SOAP's: eigenvectors of E[G G^T] and E[G^T G] for each matrix.

  For G = sum_k vec(a_k) vec(b_k)^T the two averages are of sum_k a_k b_k^T and
  sum_k a_k^T b_k. Leaves without a matrix stay as they are.

  Returns:
    The family.
  """
  plan_of = functools.partial(
    make_plan,
    dimension_numbers=dimension_numbers,
    max_precond_dim=max_precond_dim,
  )

  precision = Precision(rotation=_PRECISION)

  def into(bases, tree):
    plan = plan_of(tree)
    split = plan.split(upcast(tree))
    if not isinstance(split.stacks, Stacks):  # A placeholder's.
      return split
    kept = bases.kronecker
    split = eigenbasis.rotate(split, kept, precision, transpose=True)
    return silence(split, kept, precision, grains(plan, tree))

  def back(bases, x, like):
    x = eigenbasis.rotate(x, bases.kronecker, precision, transpose=False)
    return plan_of(like).merge(x, like=like)

  def observe(bases, a, b, decay):
    split = lambda tree: plan_of(tree).split(tree).stacks  # noqa: E731
    a, b = jax.vmap(split)(a), jax.vmap(split)(b)
    observe_one = functools.partial(_observe_sides, decay=decay)
    kept = bases.kronecker.items()
    return Sides(Stacks({k: observe_one(v, a[k], b[k]) for k, v in kept}))

  def refresh(bases, nu):
    stacks, buckets = Stacks(nu.stacks), Stacks()
    for name, bucket in bases.kronecker.items():
      buckets[name], stacks[name] = _refresh_sides(bucket, nu.stacks[name])
    return Sides(buckets), nu._replace(stacks=stacks)

  def init(params):
    return Sides(kronecker.init(plan_of(params)))

  return Coordinates(init, into, back, observe, refresh)


def interpolate_bases(start_PQ: Any, end_PQ: Any, s: float) -> np.ndarray:
  r"""A point of the shortest path of rotations from one basis to another.

      U(s) = U_0 exp(s log(U_0^T U_1)),    0 <= s <= 1

  Rotations only: if det(U_0^T U_1) = -1 the first column of U_1 changes sign,
  which no diagonal in the basis notices. The path depends on the order and the
  signs of the columns of U_1. Computed on the host from a real Schur form, in
  which the logarithm is a list of angles: orthonormal to rounding at any s.

  Args:
    start_PQ: U_0, orthonormal columns.
    end_PQ: U_1, orthonormal columns.
    s: 0 gives U_0, and 1 gives U_1.

  Returns:
    [P, Q] float64, for `scale_by_diagonal_preconditioner(basis=...)`.

  Raises:
    ValueError: If a basis is not square or not orthonormal.
  """
  from scipy import linalg  # Comes with jax; not needed to import `optim`.

  start = check_orthonormal("start_PQ", np.asarray(start_PQ, np.float64))
  end = check_orthonormal("end_PQ", np.asarray(end_PQ, np.float64)).copy()
  if start.shape != end.shape:
    raise ValueError(
      f"start_PQ has shape {start.shape}, but end_PQ {end.shape}; give two "
      "bases of one space."
    )
  if np.linalg.det(start.T @ end) < 0:
    end[:, 0] *= -1
  # Block diagonal for an orthogonal matrix: 2 x 2 rotations, and +1 or -1.
  form: Any = linalg.schur(start.T @ end, output="real")
  schur, vectors = form
  turned, planes, lone, i = np.eye(len(start)), [], [], 0
  while i < len(start):
    if i + 1 < len(start) and abs(schur[i + 1, i]) > 1e-8:
      planes.append((i, i + 1, np.arctan2(schur[i + 1, i], schur[i, i])))
      i += 2
    else:
      lone += [i] if schur[i, i] < 0 else []
      i += 1
  # The -1 come in pairs, the determinant being +1: half turns.
  planes += [(j, k, np.pi) for j, k in zip(lone[::2], lone[1::2], strict=True)]
  for j, k, angle in planes:
    cosine, sine = np.cos(s * angle), np.sin(s * angle)
    turned[np.ix_([j, k], [j, k])] = [[cosine, -sine], [sine, cosine]]
  return start @ vectors @ turned @ vectors.T


def check_orthonormal(name: str, basis: np.ndarray) -> np.ndarray:
  """The basis; raises unless it is square with orthonormal columns."""
  if basis.ndim != 2 or basis.shape[0] != basis.shape[1]:
    raise ValueError(
      f"{name} has shape {basis.shape}; a basis is a square matrix, one column "
      "a basis vector."
    )
  error = np.max(np.abs(basis.T @ basis - np.eye(len(basis))), initial=0.0)
  if not error < 1e-3:
    raise ValueError(
      f"{name} is not orthonormal: U^T U differs from 1 by {error:.2g}. Take "
      "e.g. the Q of jnp.linalg.qr(basis)."
    )
  return basis


def _check_supplied(basis, params) -> None:
  size = _flat(params).size
  if jax.tree.leaves(params) and basis.shape != (size, size):
    raise ValueError(
      f"basis has shape {basis.shape}, but params have {size} entries; give "
      f"an orthonormal matrix of shape {(size, size)}, its rows in the order "
      "of jax.flatten_util.ravel_pytree(params)."
    )


def _observe_sides(bucket, a, b, *, decay):
  """Averages of [K, S, I, O] rows' Gram matrices, for each factored side."""
  factors = []
  for side, factor in enumerate(bucket.factors):
    if factor is not None:
      rows = (jnp.moveaxis(x, 2 + side, 2) for x in (a, b))
      rows = (x.reshape(*x.shape[:3], -1) for x in rows)
      new = jnp.einsum("ksix,ksjx->sij", *rows, precision=_PRECISION)
      average = decay * factor + (1 - decay) * (new + new.mT) / 2
      factor = average.astype(factor.dtype)
    factors.append(factor)
  return bucket._replace(factors=tuple(factors))


def _refresh_sides(bucket, nu):
  """Eigenvectors of each factor, and nu moved side by side."""
  derived, failures = [], bucket.failures
  for side, (factor, old) in enumerate(
    zip(bucket.factors, bucket.derived, strict=True)
  ):
    if factor is None:
      derived.append(None)
      continue
    new, failures = eigenbasis.eigenbasis_or_old(factor, old, failures)
    overlap = jnp.square(jnp.matmul(old.mT, new, precision=_PRECISION))
    nu = kronecker.mode_product(
      nu, overlap, side, transpose=True, precision=_PRECISION
    )
    derived.append(new)
  return bucket._replace(derived=tuple(derived), failures=failures), nu


def _flat(tree) -> jax.Array:
  return ravel_pytree(upcast(tree))[0]


def _unflat(x, like):
  return like_types(ravel_pytree(upcast(like))[1](x), like)


def _into_dense(basis_PQ, tree):
  """U^T of a tree, without the round-off of directions it does not have."""
  x = _times(basis_PQ.T, _flat(tree))
  dtypes = [leaf.dtype for leaf in jax.tree.leaves(tree)]
  grain = coarsest(x.dtype, *dtypes)
  return without_round_off(x[None], (basis_PQ[None],), grain=grain)[0]


def _times(a, b):
  return jnp.matmul(a, b, precision=_PRECISION)
