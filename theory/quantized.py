"""Exact risk of weights rounded at random, on least squares.

Rounding w to the code below or above (w / s between them), with E[R(w)] = w and
independent coordinates, has variance sigma_i^2 = (u_i - w_i)(w_i - l_i), so

    E (R - w*)^T H (R - w*) / 2 = (w - w*)^T H (w - w*) / 2
                                  + sum_i H_ii sigma_i^2 / 2       exactly.

This is the smoothed loss of LOTION. The smoothed loss equals the risk on the
grid, its infimum is the risk of the best grid point, and it has kinks at grid
points. For a diagonal H and a fixed s the smoothed loss is the convex piecewise
linear interpolant of the risk, and its minimum is w* rounded to nearest. Only
off-diagonal entries of H, or a moving s, leave something to gain over rounding
to nearest.

A grid has codes (sorted, symmetric) and a rule for s: the largest magnitude of
a block over the largest code (`step_size=None`), or a number. Source: Kwun et
al., "LOTION", 2025, https://arxiv.org/abs/2510.08757. The gradient and the
brute force were derived for this package.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .checks import check_codes
from .precision import on_host
from .types import Array

_MOST_POINTS = 10**6  # Of a brute force: a second or so.


class GridPoint(NamedTuple):
  """A point of a grid.

  Attributes:
    w: [D] step_size times the codes.
    risk: Its risk.
    codes: [D] codes.
    step_size: s.
  """

  w: Array
  risk: Array
  codes: Array
  step_size: Array


@on_host("block_size")
def rounding_risk(w, h, codes, step_size=None, *, block_size=None):
  """What rounding adds to the risk in expectation, sum_i H_ii sigma_i^2 / 2.

  Args:
    w: [D] weights.
    h: [D] eigenvalues, or the matrix H [D, D].
    codes: [K] codes of the grid, sorted and symmetric.
    step_size: s > 0; None takes each block's largest |w| over the largest
      code, so that the lattice moves with w.
    block_size: Neighbouring weights that share an s; None: all of them.

  Returns:
    A scalar >= 0.
  """
  s_D, z_D, _ = _scaled(w, codes, step_size, block_size)
  below_D, above_D = _neighbours(z_D, codes)
  variance_D = s_D**2 * (above_D - z_D) * (z_D - below_D)
  return _diagonal(h, w) @ variance_D / 2


@on_host("block_size")
def smoothed_risk(w, h, wstar, codes, step_size=None, *, block_size=None):
  """E of the risk of w rounded at random: the risk plus `rounding_risk`.

  Args:
    w: [D] weights.
    h: [D] eigenvalues, or the matrix H [D, D].
    wstar: [D] minimiser of the risk (w - w*)^T H (w - w*) / 2.
    codes: As of `rounding_risk`.
    step_size: As of `rounding_risk`.
    block_size: As of `rounding_risk`.

  Returns:
    A scalar.
  """
  error_D = jnp.asarray(w) - wstar
  added = rounding_risk(w, h, codes, step_size, block_size=block_size)
  return error_D @ _times(h, error_D) / 2 + added


@on_host("block_size", "scale_gradient")
def smoothed_risk_gradient(
  w, h, wstar, codes, step_size=None, *, block_size=None, scale_gradient=True
):
  """Gradient of `smoothed_risk`.

      H (w - w*) + h s (c^+ + c^- - 2 z) / 2, z = w / s

  and, for the largest weight of a block, in addition sign(w) / c_max times
  sum_i h_i s [c^+ (z - c^-) - c^- (c^+ - z)] / 2 over the block. Weights that
  tie for the largest share this slope equally.

  The second term has a kink at a grid point, and the largest weight always
  lies on the grid. There the term counts as 0, the mean of its two slopes.

  Args:
    w: [D] weights.
    h: As of `smoothed_risk`.
    wstar: As of `smoothed_risk`.
    codes: As of `rounding_risk`.
    step_size: As of `rounding_risk`.
    block_size: As of `rounding_risk`.
    scale_gradient: False treats s as a constant although it follows w.

  Returns:
    [D].
  """
  w = jnp.asarray(w)
  s_D, z_D, largest_D = _scaled(w, codes, step_size, block_size)
  below_D, above_D = _neighbours(z_D, codes)
  half_D = _diagonal(h, w) * s_D / 2
  gradient_D = _times(h, w - wstar) + half_D * (below_D + above_D - 2 * z_D)
  if step_size is not None or not scale_gradient:
    return gradient_D
  slope_D = half_D * (above_D * (z_D - below_D) - below_D * (above_D - z_D))
  size = block_size or w.shape[0]

  def total(x_D):
    return jnp.repeat(jnp.sum(x_D.reshape(-1, size), axis=1), size)

  ties_D = jnp.maximum(total(1.0 * largest_D), 1)
  share_D = total(slope_D) / (codes[-1] * ties_D)
  return gradient_D + jnp.where(largest_D, jnp.sign(w) * share_D, 0)


def best_grid_point(h, wstar, codes, step_size=None) -> GridPoint:
  """The grid point of least risk, by trying all K^D of them.

  With a moving lattice the grid points are those that rounding does not move:
  at least one weight has the largest code. For each vector k of codes the best
  s is max(0, k^T H w* / k^T H k).

  Args:
    h: [D] eigenvalues, or the matrix H [D, D].
    wstar: [D] minimiser of the risk.
    codes: [K] codes of the grid, sorted and symmetric.
    step_size: s > 0, or None for the moving lattice.

  Returns:
    A `GridPoint` in float64.

  Raises:
    ValueError: For more than a million points.
  """
  check_codes(codes)
  codes, wstar_D = np.asarray(codes, float), np.asarray(wstar, float)
  h = np.asarray(h, float)
  h = np.diag(h) if h.ndim == 1 else h
  if len(codes) ** len(wstar_D) > _MOST_POINTS:
    raise ValueError(
      f"codes has {len(codes)} and wstar {len(wstar_D)} entries: "
      f"{len(codes)}^{len(wstar_D)} points are too many for a brute force. At "
      f"most {_MOST_POINTS}."
    )
  k_ND = np.array(list(itertools.product(codes, repeat=len(wstar_D))))
  if step_size is None:
    k_ND = k_ND[np.max(np.abs(k_ND), axis=1) == codes[-1]]
    curvature_N = np.einsum("nd,de,ne->n", k_ND, h, k_ND)
    slope_N = k_ND @ h @ wstar_D
    s_N = np.where(
      curvature_N > 0, slope_N / np.where(curvature_N > 0, curvature_N, 1), 0
    )
    s_N = np.maximum(s_N, 0)
  else:
    s_N = np.full(len(k_ND), float(step_size))
  error_ND = s_N[:, None] * k_ND - wstar_D
  risk_N = np.einsum("nd,de,ne->n", error_ND, h, error_ND) / 2
  best = np.argmin(risk_N)
  return GridPoint(s_N[best] * k_ND[best], risk_N[best], k_ND[best], s_N[best])


def _scaled(w, codes, step_size, block_size):
  """s, w / s limited to the grid, and which weights are their block's largest.

  The largest weight is set on the grid, whatever w / s rounds to.
  """
  w, top = jnp.asarray(w), codes[-1]
  size = block_size or w.shape[0]
  if w.ndim != 1 or w.shape[0] % size:
    raise ValueError(
      f"w has shape {w.shape}; it must be a vector whose length block_size="
      f"{block_size} divides (None: one block)."
    )
  if step_size is not None:
    z_D = jnp.clip(w / step_size, -top, top)
    return jnp.full_like(w, step_size), z_D, jnp.zeros(w.shape, bool)
  most_D = jnp.repeat(jnp.max(jnp.abs(w).reshape(-1, size), axis=1), size)
  s_D = jnp.where(most_D > 0, most_D, top) / top
  largest_D = (jnp.abs(w) == most_D) & (most_D > 0)
  z_D = jnp.where(largest_D, jnp.sign(w) * top, w / s_D)
  return s_D, jnp.clip(z_D, -top, top), largest_D


def _neighbours(z_D, codes):
  """Codes below and above; both are z where z is a code."""
  codes = jnp.asarray(codes)
  below = jnp.searchsorted(codes, z_D, side="right") - 1
  above = jnp.searchsorted(codes, z_D, side="left")
  return codes[below], codes[above]


def _diagonal(h, w):
  h, d = jnp.asarray(h), jnp.shape(w)
  if h.shape not in (d, d + d):
    raise ValueError(
      f"h has shape {h.shape} but w {d}; give the eigenvalues {d} or the "
      f"matrix {d + d}."
    )
  return h if h.ndim == 1 else jnp.diagonal(h)


def _times(h, x_D):
  h = jnp.asarray(h)
  return h * x_D if h.ndim == 1 else h @ x_D
