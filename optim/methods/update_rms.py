"""The root mean square of the updates of any direction, matched or limited."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.tree import work_dtype
from ..matrices.layout import DimensionTree, matrices_by_path


def with_update_rms(
  direction: optax.GradientTransformation,
  *,
  update_rms: float | None = None,
  max_update_rms: float | None = None,
  dimension_numbers: DimensionTree = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Gives the updates of each matrix one root mean square, or a largest one.

      optim.descend(
        optim.with_update_rms(optim.scale_by_shampoo(), update_rms=0.2), 1e-3
      )

  Updates that match Adam's root mean square, about 0.2, let methods share one
  learning rate at one size of model. Such updates do not transfer over widths.
  Norms are those of whole matrices, blocks or not. A leaf that is no matrix
  keeps its updates.

  Args:
    direction: Transform of gradients into a direction of ascent.
    update_rms: r: U <- r U / rms(U), for each matrix. None: U keeps its size.
    max_update_rms: r: U <- U min(1, r / rms(U)), after that. None: no limit.
    dimension_numbers: As for `scale_by_muon`. Pass what the direction got.

  Returns:
    A transform whose updates are a direction of ascent.

  Raises:
    ValueError: For an argument out of range. For a leaf of unknown layout.

  References:
    Liu et al., "Muon is scalable for LLM training", 2025,
    https://arxiv.org/abs/2502.16982 (the number 0.2)
  """
  for name, value in dict(
    update_rms=update_rms, max_update_rms=max_update_rms
  ).items():
    if value is not None:
      checks.positive(name, value)

  def update_fn(updates, state, params=None):
    del params
    numbers = matrices_by_path(updates, dimension_numbers)

    def size(key_path, u):
      dims: Any = numbers[jax.tree_util.keystr(key_path)]
      if dims is None:
        return u
      sides = tuple(axis for axes in dims.side_axes for axis in axes)
      u32 = u.astype(work_dtype(u))
      rms = jnp.sqrt(jnp.mean(jnp.square(u32), axis=sides, keepdims=True))
      rms = jnp.where(rms > 0, rms, 1)  # A matrix of zeros stays.
      if update_rms is not None:
        u32, rms = u32 * (update_rms / rms), update_rms
      if max_update_rms is not None:
        u32 = u32 * jnp.minimum(1, max_update_rms / rms)
      return u32.astype(u.dtype)

    return jax.tree_util.tree_map_with_path(size, updates), state

  def init_fn(params):
    del params
    return optax.EmptyState()

  return optax.chain(
    direction, optax.GradientTransformation(init_fn, update_fn)
  )
