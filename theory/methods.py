"""Linear methods as block recursions: constructors of `Method`.

Per eigen-direction a method keeps K numbers s (iterate, averages, momenta),
takes the gradient g at e . s and moves s' = P s - f g; h . s is read out.
Step sizes and coefficients are numbers, or vectors [T] for a method that
changes every step. Iterates and averages start at w_0, momenta at 0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .types import Method


def sgd(eta) -> Method:
  """w' = w - eta g."""
  return Method(_stack([[1]], eta), _stack([eta]), *_const([1], [1], [1]))


def averaged(method: Method, theta) -> Method:
  """Any method with the average a' = (1 - theta) a + theta h . s' read out.

  Args:
    method: The method that is averaged.
    theta: Number or [T], see `theta_uniform` and the like.

  Returns:
    A method with one more state, a_0 = w_0.
  """
  xp = jnp if _traced(method, theta) else np
  k = method.start.shape[0]
  theta = xp.asarray(theta, float)[..., None]
  time = xp.broadcast_shapes(theta.shape[:-1], method.P.shape[:-2])
  pull = theta * xp.einsum("...i,...ij->...j", method.h, method.P)
  top = xp.concatenate([method.P, xp.zeros((*method.P.shape[:-1], 1))], -1)
  low = xp.concatenate(
    [xp.broadcast_to(pull, (*time, k)), xp.broadcast_to(1 - theta, (*time, 1))],
    -1,
  )
  top = xp.broadcast_to(top, (*time, k, k + 1))
  dot = xp.sum(method.h * method.f, -1, keepdims=True)
  f = xp.concatenate(
    [
      xp.broadcast_to(method.f, (*time, k)),
      xp.broadcast_to(theta * dot, (*time, 1)),
    ],
    -1,
  )
  zero = xp.zeros((*method.e.shape[:-1], 1))
  e = xp.concatenate([method.e, zero], -1)
  start = xp.append(method.start, xp.sum(method.h * method.start))
  P = xp.concatenate([top, low[..., None, :]], -2)
  return Method(P, f, e, xp.eye(k + 1)[k], start)


def heavy_ball(eta, beta) -> Method:
  """v' = beta v + g, w' = w - eta v'; state (w, v)."""
  return decoupled(eta, beta, 0.0)


def nesterov(eta, beta) -> Method:
  """v' = beta v + g, w' = w - eta (g + beta v'), as PyTorch writes it."""
  P = _stack([[1, -eta * beta**2], [0, beta]])
  f = _stack([eta * (1 + beta), -1])
  return Method(P, f, *_const([1, 0], [1, 0], [1, 0]))


def decoupled(eta, beta, alpha) -> Method:
  """v' = beta v + g, w' = w - eta (v' + alpha g): Simplified-AdEMAMix."""
  P = _stack([[1, -eta * beta], [0, beta]])
  f = _stack([eta * (1 + alpha), -1])
  return Method(P, f, *_const([1, 0], [1, 0], [1, 0]))


def ademamix(eta, b1, b3, mix) -> Method:
  """m_k' = b_k m_k + (1 - b_k) g, w' = w - eta (m_1' + mix m_3').

  AdEMAMix's numerator, without its second moment; state (w, m_1, m_3).
  """
  P = _stack([[1, -eta * b1, -eta * mix * b3], [0, b1, 0], [0, 0, b3]])
  f = _stack([eta * (1 - b1) + eta * mix * (1 - b3), b1 - 1, b3 - 1])
  return Method(P, f, *_const([1, 0, 0], [1, 0, 0], [1, 0, 0]))


def asgd(alpha, beta, gamma, delta) -> Method:
  """Accelerated SGD with a gradient at y = alpha x + (1 - alpha) z.

  x' = y - delta g, z' = beta y + (1 - beta) z - gamma g; x is read out.
  Source: Jain et al., arXiv 1704.08227.
  """
  P = _stack([[alpha, 1 - alpha], [beta * alpha, 1 - beta * alpha]])
  f, e = _stack([delta, gamma]), _stack([alpha, 1 - alpha])
  return Method(P, f, e, *_const([1, 0], [1, 1]))


def schedule_free(eta, beta, c) -> Method:
  """y = (1 - beta) z + beta x, z' = z - eta g(y), x' = (1 - c) x + c z'.

  State (z, x), x is read out. Source: Defazio et al., arXiv 2405.15682.

  Args:
    eta: Step size.
    beta: Interpolation.
    c: Averaging weight, number or [T]: `theta_weighted(eta**2)` in the paper.

  Returns:
    The method.
  """
  P = _stack([[1, 0], [c, 1 - c]])
  f, e = _stack([eta, c * eta]), _stack([1 - beta, beta])
  return Method(P, f, e, *_const([0, 1], [1, 1]))


def weight_decay(eta, omega) -> Method:
  """w' = (1 - eta omega) w - eta g from w_0 = 0; state (w - w*, w*).

  Args:
    eta: Step size.
    omega: Decay in the units of the curvature, multiplied by eta.

  Returns:
    The method; w* is a constant coordinate, so the risk ends at the
    regularised solution's.
  """
  P = _stack([[1 - eta * omega, -eta * omega], [0, 1]])
  return Method(P, _stack([eta, 0]), *_const([1, 0], [1, 0], [1, -1]))


def _traced(*values):
  leaves = jax.tree.leaves(values)
  return any(isinstance(x, jax.core.Tracer) for x in leaves)


def _stack(rows, *more):
  """Nested lists of numbers or [T] vectors to [..., K] or [..., K, K]."""
  xp = jnp if _traced(rows, more) else np
  flat = jax.tree.leaves(rows)
  shape = xp.broadcast_shapes(*(xp.shape(x) for x in [*flat, *more]))
  full = [xp.broadcast_to(xp.asarray(x, float), shape) for x in flat]
  out = xp.stack(full, axis=-1)
  nested = isinstance(rows[0], list)
  return out.reshape(*shape, len(rows), len(rows)) if nested else out


def _const(*vectors):
  return [np.asarray(v, np.float64) for v in vectors]
