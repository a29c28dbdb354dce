"""Risks and stability limits of any linear `Method`: exact, O(D K^3) a step.

With M_i = P - lam_i f e^T and S_i = E s s^T the K x K moments of direction i,

    S_i' = M_i S_i M_i^T + f f^T [ lam_i^2 (kappa - 1)/B e^T S_i e
                                   + (lam_i mult_i / B) (tau r + sigma2) ],
    r = sum_i lam_i e^T S_i e.

The new batch is independent of s, so the recursion is exact. At K = 1 it is the
recursion of plain SGD (`sgd_moments`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from .checks import check_batch
from .precision import on_host
from .sgd_moments import as_risk
from .types import Method, Problem, Risk


@on_host("T")
def method_scan(problem: Problem, method: Method, batch, T: int) -> Risk:
  """Risk curve of h . s over T updates. Exact.

  Args:
    problem: The problem.
    method: From `methods`; time-varying leaves must have T entries.
    batch: B, number or [T].
    T: Number of updates.

  Returns:
    Risks [T + 1]. `stable` only says that the risks are finite; a constant
    method is stable if and only if `method_chi` < 1.
  """
  lam_D = jnp.asarray(problem.lam)
  own_D = lam_D**2 * (jnp.asarray(problem.kappa) - 1)
  scale_D = lam_D * problem.mult
  batch_T = jnp.broadcast_to(jnp.asarray(batch, float), (T,))
  moving = [
    _over_time(x, n, T) for x, n in zip(method[:4], (2, 1, 1, 1), strict=True)
  ]

  def step(S_PKKD, hyper):
    now, batch = hyper
    P, f, e, h = now
    r_P = jnp.einsum("pijd,i,j,d->p", S_PKKD, h, h, lam_D)
    point_PD = jnp.einsum("pijd,i,j->pd", S_PKKD, e, e)
    source_P = problem.tau * (point_PD @ lam_D)
    source_P = source_P + jnp.array([0, 1.0]) * problem.sigma2
    noise_PD = own_D * point_PD + scale_D * source_P[:, None]
    M_KKD = P[..., None] - lam_D * jnp.outer(f, e)[..., None]
    half = jnp.einsum("ijd,pjld->pild", M_KKD, S_PKKD)
    S_PKKD = jnp.einsum("pild,mld->pimd", half, M_KKD)
    push = jnp.einsum("i,j,pd->pijd", f, f, noise_PD / batch)
    return S_PKKD + push, r_P

  first = jnp.outer(method.start, method.start)[..., None] * problem.m0
  S_PKKD = jnp.stack([first, 0 * first])
  S_PKKD, r_TP = jax.lax.scan(step, S_PKKD, (moving, batch_T))
  h = moving[3][-1]
  last_P = jnp.einsum("pijd,i,j,d->p", S_PKKD, h, h, lam_D)
  r_TP = jnp.concatenate([r_TP, last_P[None]])
  return as_risk(r_TP / 2, jnp.all(jnp.isfinite(r_TP)))


@on_host()
def method_chi(problem: Problem, method: Method, batch):
  """Gain of the noise loop of a constant method; stable iff < 1. Exact.

  Each direction alone must contract: T_i = M_i (x) M_i + lam_i^2
  (kappa - 1)/B f f^T (x) e e^T has spectral radius below 1. Then, with
  (I - T_i) G_i = f f^T,

      chi = (tau / B) sum_i mult_i lam_i^2 e^T G_i e.

  A coordinate that never moves (w* under weight decay) is left out.

  Args:
    problem: The problem.
    method: A method without time axis.
    batch: B.

  Returns:
    chi; `inf` if some direction does not contract by itself.
  """
  G_DKK, radius = _response(problem, method, batch)
  point_D = jnp.einsum("dij,i,j->d", G_DKK, method.e, method.e)
  weight_D = problem.mult * jnp.asarray(problem.lam) ** 2
  value = problem.tau / batch * jnp.sum(weight_D * point_D)
  return jnp.where(radius < 1, value, jnp.inf)


@on_host()
def method_stationary(problem: Problem, method: Method, batch):
  """Risk of the read-out after infinitely many steps. Exact.

  S_i = (mult_i lam_i / B) sigma2 / (1 - chi) G_i, with G of `method_chi`.

  Args:
    problem: The problem.
    method: A method without time axis.
    batch: B.

  Returns:
    A scalar; `inf` if the method is not stable.
  """
  chi = method_chi(problem, method, batch)
  G_DKK, _ = _response(problem, method, batch)
  read_D = jnp.einsum("dij,i,j->d", G_DKK, method.h, method.h)
  weight_D = problem.mult * jnp.asarray(problem.lam) ** 2
  loop = jnp.where(chi < 1, 1 - chi, 1.0)
  risk = problem.sigma2 / batch / loop * jnp.sum(weight_D * read_D) / 2
  return jnp.where(chi < 1, risk, jnp.inf)


def method_eta_max(problem: Problem, family, batch, *, rtol=1e-12) -> float:
  """Smallest step size at which a family of methods stops being stable.

  Args:
    problem: The problem.
    family: eta -> `Method`, e.g. `lambda eta: heavy_ball(eta, 0.9)`.
    batch: B.
    rtol: Relative width of the final bracket.

  Returns:
    The root of chi = 1 (or where a direction stops contracting).
  """
  check_batch(batch)

  def stable(eta):
    return method_chi(problem, family(eta), batch) < 1

  low = high = 1e-6 / float(np.max(problem.lam))
  if not stable(low):
    raise ValueError(
      f"The method is not stable even at eta={low:.3g}; is some coordinate "
      "besides w* not contracting (e.g. beta >= 1)?"
    )
  while stable(high):
    low, high = high, 1.1 * high
    if high * float(np.max(problem.lam)) > 1e9:
      return float("inf")
  while high - low > rtol * high:
    middle = (low + high) / 2
    low, high = (middle, high) if stable(middle) else (low, middle)
  return low


def _over_time(x, rank, T):
  """Gives a leaf of this rank its leading time axis."""
  x = jnp.asarray(x)
  if x.ndim == rank:
    return jnp.broadcast_to(x, (T, *x.shape))
  if x.shape[0] != T:
    raise ValueError(
      f"a leaf of the method has {x.shape[0]} steps but T={T}; build it with "
      "vectors of T entries."
    )
  return x


def _response(problem, method, batch):
  """G [D, K, K] and the largest spectral radius of the uncoupled maps."""
  f, e, k = jnp.asarray(method.f), jnp.asarray(method.e), method.f.shape[0]
  P = jnp.asarray(method.P)
  # A coordinate that neither moves nor hears the gradient is a constant.
  constant_K = (f == 0) & jnp.all(P == jnp.eye(k), axis=1)
  P = jnp.where(constant_K[:, None], 0.0, P)
  lam_D = jnp.asarray(problem.lam)
  own_D = lam_D**2 * (jnp.asarray(problem.kappa) - 1) / batch
  M_DKK = P - lam_D[:, None, None] * jnp.outer(f, e)
  map_D = jnp.einsum("dij,dlm->diljm", M_DKK, M_DKK).reshape(-1, k * k, k * k)
  ff, ee = jnp.outer(f, f).reshape(-1), jnp.outer(e, e).reshape(-1)
  map_D = map_D + own_D[:, None, None] * jnp.outer(ff, ee)
  used_D = (problem.mult + problem.m0) * lam_D > 0
  eigenvalues = jnp.linalg.eigvals(jax.lax.stop_gradient(map_D))
  radius_D = jnp.abs(eigenvalues).max(axis=1)
  radius = jnp.max(jnp.where(used_D, radius_D, 0.0))
  # Directions that carry no risk may have radius 1; keep them solvable.
  map_D = jnp.where(used_D[:, None, None], map_D, 0.0)
  G_D = jnp.linalg.solve(
    jnp.eye(k * k) - map_D, jnp.broadcast_to(ff, (len(lam_D), k * k))[..., None]
  )
  return G_D.reshape(-1, k, k), radius
