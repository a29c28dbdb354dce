"""Sampled runs of a method, to check the formulas with the same arguments."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .checks import check_batch, check_problem
from .precision import float64
from .types import Array, Method, Problem


class Sampled(NamedTuple):
  """Risks of sampled runs.

  Attributes:
    mean: [T + 1] over the replicas.
    stderr: [T + 1] standard error of the mean; heavy tails make it optimistic
      near the stability limit.
  """

  mean: Array
  stderr: Array


def simulate(
  key, problem: Problem, method: Method, batch, T: int, replicas: int = 1000
) -> Sampled:
  """Runs a method on fresh sampled data, in float64 on the host.

  The law of the features is read from (kappa, tau) of the problem, see
  `with_features`; the start is sqrt(m0) in each eigen-direction.

  Args:
    key: From `jax.random.key`.
    problem: Uncompressed: every multiplicity 1.
    method: From `methods`.
    batch: Samples per step, whole.
    T: Number of updates.
    replicas: Independent runs.

  Returns:
    Mean risk of the read-out and its standard error.
  """
  check_problem(problem)
  check_batch(batch)
  if batch != int(batch):
    raise ValueError(f"batch={batch} must be whole to be sampled.")
  if np.any(np.asarray(problem.mult) != 1):
    raise ValueError(
      "simulate needs one direction per node; build the problem with "
      "power_law(..., nodes=None) or from_spectrum without compress."
    )
  law = _law_of(problem)
  with float64():
    problem = jax.tree.map(lambda x: jnp.asarray(x, float), problem)
    method = jax.tree.map(lambda x: jnp.asarray(x, float), method)
    sums = _simulate(key, problem, method, law, int(batch), T, replicas)
    mean, square = (np.asarray(x) / replicas for x in sums)
  variance = np.maximum(square - mean**2, 0) * replicas / (replicas - 1)
  return Sampled(mean, np.sqrt(variance / replicas))


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _simulate(key, problem, method, law, batch, T, replicas):
  """Sums over replicas of the risk and its square, [T + 1] each."""
  lam_D = problem.lam
  moving = [
    x if x.ndim > rank else jnp.broadcast_to(x, (T, *x.shape))
    for x, rank in zip(method[:4], (2, 1, 1, 1), strict=True)
  ]

  def read(s_RKD, h):
    risk_R = (jnp.einsum("rkd,k->rd", s_RKD, h) ** 2) @ lam_D / 2
    return risk_R.sum(), jnp.sum(risk_R**2)

  def step(s_RKD, hyper):
    key, (P, f, e, h) = hyper
    x_key, noise_key = jax.random.split(key)
    x_RBD = _features(x_key, law, (replicas, batch, lam_D.size), problem)
    noise_RB = jax.random.normal(noise_key, (replicas, batch), float)
    point_RD = jnp.einsum("rkd,k->rd", s_RKD, e)
    residual_RB = jnp.einsum("rbd,rd->rb", x_RBD, point_RD)
    residual_RB -= jnp.sqrt(problem.sigma2) * noise_RB
    g_RD = jnp.einsum("rbd,rb->rd", x_RBD, residual_RB) / batch
    s_new = jnp.einsum("kj,rjd->rkd", P, s_RKD)
    return s_new - f[:, None] * g_RD[:, None, :], read(s_RKD, h)

  first_KD = method.start[:, None] * jnp.sqrt(problem.m0)
  s_RKD = jnp.broadcast_to(first_KD, (replicas, *first_KD.shape))
  hypers = (jax.random.split(key, T), moving)
  s_RKD, curves = jax.lax.scan(step, s_RKD, hypers)
  last = read(s_RKD, moving[3][-1])
  return jax.tree.map(jnp.append, curves, last)


def _law_of(problem):
  """Name of the feature law with these fourth moments."""
  kappa, tau = np.asarray(problem.kappa), float(problem.tau)
  if tau == 0:
    return "one-hot"
  if kappa.ndim == 0 and tau == 1:
    named = {2.0: "gaussian", 0.0: "rademacher", 0.8: "uniform", 5.0: "laplace"}
    for value, name in named.items():
      if abs(kappa - value) < 1e-12:
        return name
  if kappa.ndim == 0 and abs(kappa - 2 * tau) < 1e-12 and tau > 1:
    return "elliptic"
  raise ValueError(
    f"no feature law with kappa={kappa}, tau={tau} can be sampled; use one "
    "that with_features names."
  )


def _features(key, law, shape, problem):
  """x [R, B, D] with covariance diag(lam)."""
  root_D = jnp.sqrt(problem.lam)
  if law == "one-hot":
    index = jax.random.categorical(key, jnp.log(problem.lam), shape=shape[:2])
    return jax.nn.one_hot(index, shape[2], dtype=float)
  if law == "rademacher":
    return root_D * jax.random.rademacher(key, shape, float)
  if law == "uniform":
    return root_D * jax.random.uniform(key, shape, float, -(3**0.5), 3**0.5)
  if law == "laplace":
    return root_D * jax.random.laplace(key, shape, float) / 2**0.5
  x = root_D * jax.random.normal(key, shape, float)
  if law == "gaussian":
    return x
  # rho^2 Gamma distributed with mean 1 and variance q - 1.
  rho_key = jax.random.fold_in(key, 1)
  k = 1 / (problem.tau - 1)
  rho2 = jax.random.gamma(rho_key, k, (*shape[:2], 1), float) / k
  return x * jnp.sqrt(rho2)
