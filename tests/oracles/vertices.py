"""The gradient of a loss smoothed by rounding, by all 2^d roundings."""

import jax
import jax.numpy as jnp


def vertex_gradient(loss_fn, params, lower, upper):
  r"""Exact gradient of E L(R(w)) at fixed scales, for d <= 12.

  E L(R) interpolates L multilinearly between the 2^d grid points around w:

      dE L/dw_i = E[L(R | R_i = u_i) - L(R | R_i = l_i)] / (u_i - l_i)

  Where w_i is on the grid, between two slopes, it is E dL/dw_i(R).

  Args:
    loss_fn: A function of one vector.
    params: w, [d].
    lower: Grid points below, [d].
    upper: Grid points above, [d].

  Returns:
    [d].
  """
  size = params.shape[0]
  fixed, width = upper == lower, upper - lower
  chance = jnp.where(fixed, 0, (params - lower) / jnp.where(fixed, 1, width))
  up = (jnp.arange(2**size)[:, None] >> jnp.arange(size)) % 2 == 1
  vertices = jnp.where(up, upper, lower)
  losses, slopes = jax.vmap(jax.value_and_grad(loss_fn))(vertices)
  weight = jnp.where(up, chance, 1 - chance)
  gradient = []
  for i in range(size):
    others = jnp.prod(weight.at[:, i].set(1.0), axis=1)
    sign = jnp.where(up[:, i], 1.0, -1.0)
    across = jnp.sum(others * sign * losses) / jnp.where(fixed[i], 1, width[i])
    along = jnp.sum(jnp.prod(weight, axis=1) * slopes[:, i])
    gradient.append(jnp.where(fixed[i], along, across))
  return jnp.stack(gradient)
