"""The loss after rounding at random: its penalty, its estimate, its gradient.

    E L(R(w)) = L(w) + 1/2 sum_i h_ii sigma_i^2(w) + O(s^3)

with sigma_i^2 the variance of the rounding, which is zero on the grid and
largest midway. The expansion is exact if L is quadratic. Source: Kwun et al.,
"LOTION: Smoothing the Optimization Landscape for Quantized Training", 2025,
https://arxiv.org/abs/2510.08757. The closed form of the gradient is ours.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..common.tree import is_masked, work_dtype
from ..rounding import grids
from ..rounding.blocks import cut, to_blocks, to_codes, to_largest, uncut
from ..rounding.params import (
  Leaf,
  QuantizerTree,
  check_quantizers,
  find_leaves,
  quantize_params,
)
from ..rounding.round import rounding_variance
from ..rounding.scales import Quantizer, check_whole, from_codes


def rounding_penalty(
  params: Any,
  curvature: Any,
  quantizer: QuantizerTree,
  *,
  mask: Any | None = None,
  scale_gradient: bool = True,
) -> jax.Array:
  r"""1/2 sum_i g_i sigma_i^2(w), with a closed-form gradient.

  With z = w / s between the codes c^- and c^+, a = c^+ - z and b = z - c^-:

      sigma_i^2 = s^2 a b
      dR/dw_i   = g_i s (a - b) / 2                    the snap; 0 on the grid
      dR/ds     = sum_i g_i s (c^+ b - c^- a) / 2      over the block
      dR/dw_m  += sign(w_m) / c_max dR/ds              m the largest weight

  The last line is left out if `scale_gradient` is False, and for scales that
  are powers of two. Weights that tie for the largest share the last line. The
  largest weight is on the grid, so it gets no snap.

  Args:
    params: Any tree of floating arrays.
    curvature: g, a tree like params: the diagonal of the Gauss-Newton or Fisher
      matrix, >= 0. The gradient with respect to g_i is sigma_i^2 / 2.
    quantizer: A `Quantizer` for every leaf, or a tree or function of them; see
      `optim.quantize_params`.
    mask: Tree of bools, or a function of params that makes such a tree: True
      penalises the leaf. None: every leaf with a quantizer is penalised.
    scale_gradient: True: the scales move with the weights. False: the scales
      are constants for the gradient.

  Returns:
    float32 [].

  Raises:
    ValueError: For a leaf that its quantizer does not fit, or with a scale
      rule for which rounding at random is biased; for a curvature that is not
      like params.
  """
  leaves = find_leaves(params, quantizer, mask, unbiased=True)
  weights = match_curvature(curvature, params, leaves)
  total = jnp.zeros((), jnp.float32)
  for leaf in leaves:
    if leaf.quantizer is not None:
      if leaf.path not in weights:
        raise ValueError(
          f"curvature has no leaf {leaf.path}; it must be a tree like params."
        )
      total = total + _leaf_penalty(
        leaf.value, weights[leaf.path], leaf.quantizer, scale_gradient
      )
  return total


def penalty_force(
  w: jax.Array, g: jax.Array, quantizer: Quantizer, scale_gradient: bool
) -> jax.Array:
  """The gradient of one leaf's penalty; see `rounding_penalty`.

  Returns:
    Like w, float32.
  """
  blocks = to_blocks(w, quantizer)
  curvature, _ = cut(g.astype(blocks.x.dtype), quantizer)
  z = to_codes(blocks, quantizer.grid)
  lower, upper = grids.bracket(z, quantizer.grid)
  half = from_codes(curvature / 2, blocks.scale)
  above, below = upper - z, z - lower
  force = half * (above - below)
  if scale_gradient and quantizer.scale == "absmax":
    slopes = half * (upper * below - lower * above)
    force = force + to_largest(blocks, slopes, quantizer.grid)
  return uncut(force, w, quantizer)


def smoothed_loss(
  loss_fn: Callable[[Any, Any], jax.Array],
  quantizer: QuantizerTree,
  *,
  num_draws: int,
  mask: Any | None = None,
) -> Callable[[Any, jax.Array, Any], jax.Array]:
  """Makes a Monte-Carlo estimate of E L(R(w)), one draw after the other.

  Use the estimate for evaluation. The gradient of the estimate passes straight
  through the rounding (RAT). This is not the gradient of E L(R(w)): the snap of
  `rounding_penalty` is missing.

  Args:
    loss_fn: (params, batch) -> loss, a scalar.
    quantizer: As for `optim.quantize_params`, with an unbiased rule.
    num_draws: Number of roundings to average over, >= 1.
    mask: Tree of bools, or a function of params that makes such a tree: True
      rounds the leaf. None: every leaf with a quantizer is rounded.

  Returns:
    (params, key, batch) -> mean loss.

  Raises:
    ValueError: For an argument out of range, or for a scale rule for which
      rounding at random is biased. A quantizer that is a function of params is
      checked when the estimate is called.
  """
  check_whole("num_draws", num_draws, 1, "16")
  check_quantizers(quantizer, mask)

  def mean_loss(params, key, batch):
    def one(key):
      rounded = quantize_params(params, quantizer, mask=mask, key=key)
      return loss_fn(rounded, batch)

    return jnp.mean(jax.lax.map(one, jax.random.split(key, num_draws)))

  return mean_loss


def match_curvature(
  curvature: Any, params: Any, leaves: list[Leaf]
) -> dict[str, jax.Array]:
  """{path: g} of a tree whose leaves are some of the leaves of params.

  The tree may have leaves that `optax.masked` took out of params.

  Returns:
    Arrays by path.

  Raises:
    ValueError: For a path that params does not have, or for another shape.
  """
  shapes = {leaf.path: np.shape(leaf.value) for leaf in leaves}
  flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_masked)
  removed = {path for path, leaf in flat if is_masked(leaf)}
  found = {}
  for key_path, g in jax.tree_util.tree_flatten_with_path(curvature)[0]:
    path = jax.tree_util.keystr(key_path)
    if any(key_path[:stop] in removed for stop in range(len(key_path) + 1)):
      continue
    if path not in shapes:
      raise ValueError(
        f"curvature has a leaf {path} that params has not; it must be a tree "
        f"like params, whose leaves are {list(shapes)[:8]}."
      )
    if np.shape(g) != shapes[path]:
      raise ValueError(
        f"curvature{path} has shape {np.shape(g)} but the parameter "
        f"{shapes[path]}; give one number for each weight, e.g. "
        "jnp.broadcast_to(g, w.shape)."
      )
    found[path] = jnp.asarray(g)
  return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _leaf_penalty(w, g, quantizer, scale_gradient):
  """The penalty of one leaf."""
  variance = rounding_variance(w, quantizer)
  penalty = jnp.sum(g.astype(variance.dtype) * variance) / 2
  return penalty.astype(work_dtype(penalty))


def _leaf_penalty_fwd(w, g, quantizer, scale_gradient):
  return _leaf_penalty(w, g, quantizer, scale_gradient), (w, g)


def _leaf_penalty_bwd(quantizer, scale_gradient, residuals, cotangent):
  w, g = residuals
  force = penalty_force(w, g, quantizer, scale_gradient)
  half_variance = rounding_variance(w, quantizer) / 2
  return (
    (cotangent * force).astype(w.dtype),
    (cotangent * half_variance).astype(g.dtype),
  )


_leaf_penalty.defvjp(_leaf_penalty_fwd, _leaf_penalty_bwd)
