"""Gradients corrected by the previous gradient, matrix by matrix."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.options import takes
from ..common.tree import by_path, is_masked, zeros
from ..common.wide import in_work_dtype
from . import layout
from .layout import DimensionTree


class MarsCorrectionState(NamedTuple):
  """State of `mars_correction`."""

  count: jax.Array  # int32 []: updates made.
  previous: Any  # The last gradients, float32; None if `exact`.


@dataclasses.dataclass(frozen=True, eq=False)
class MarsCorrectionOptions:
  """Options of `mars_correction`.

  Attributes:
    b1: Decay of the momentum that follows, in [0, 1).
    gamma: Strength of the correction, >= 0; 0 corrects nothing.
    max_norm: Largest norm of a corrected matrix or leaf. None: no limit.
    exact: True: the previous gradient is that of this batch at the previous
      parameters, which `update` takes as `previous_grads`; a second gradient a
      step. False: the last gradient, of another batch.
    dimension_numbers: Which axes are stack, input and output: a tree of
      `DimensionNumbers` (None: no matrix) like params or a prefix of it, or a
      function of params that makes a tree, e.g. `by_rank`. A leaf without an
      entry gets the default: a leaf of two axes is a matrix [inputs, outputs],
      a leaf of fewer axes is no matrix, and a leaf of more axes is an error.
      The argument None gives all leaves the default.
  """

  b1: float = 0.95
  _: dataclasses.KW_ONLY
  gamma: float = 0.025
  max_norm: float | None = 1.0
  exact: bool = False
  dimension_numbers: DimensionTree = None

  def __post_init__(self):
    """Raises for any argument out of range."""
    checks.decay("b1", self.b1)
    checks.positive("gamma", self.gamma, zero_too=True)
    if self.max_norm is not None:
      checks.positive("max_norm", self.max_norm)

  def sides(self, tree: Any) -> dict[str, tuple[int, ...] | None]:
    """{path: axes of each matrix of a leaf}; None: the leaf is no matrix."""
    numbers = layout.numbers_by_path(tree, self.dimension_numbers)
    leaves = by_path(tree)
    dims = {k: layout.checked(k, x, numbers[k]) for k, x in leaves.items()}
    return {
      k: None if d is None else tuple(sum(d.side_axes, ()))
      for k, d in dims.items()
    }


@takes(MarsCorrectionOptions)
def mars_correction(
  o: MarsCorrectionOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Adds to each gradient a multiple of its change since the last step.

      c = g + gamma b1 / (1 - b1) (g - g'),    c <- c min(1, max_norm / ||c||)

  g' is the previous gradient, 0 at the first step. Any direction whose momentum
  has the decay b1 may follow: `optax.chain(optim.mars_correction(0.95),
  optim.scale_by_soap(b1=0.95))`. The norm is that of each matrix of a stack, or
  of a leaf that is no matrix. A matrix, or leaf, whose gradient has a NaN or an
  infinity is replaced by zeros.

  Returns:
    A transform whose updates are corrected gradients.

  Raises:
    ValueError: For an argument out of range, for a leaf of unknown layout, or
      for an `update` without `previous_grads` if `exact`, or with it if not.

  References:
    Yuan et al., "MARS: unleashing the power of variance reduction for training
    large models", 2024, https://arxiv.org/abs/2411.10438
  """

  def init_fn(params):
    previous = None if o.exact else zeros(params)
    return MarsCorrectionState(jnp.zeros((), jnp.int32), previous)

  def update_fn(
    updates, state, params=None, *, previous_grads=None, **extra_args
  ):
    del params, extra_args
    grads = screened(updates, o)
    previous = state.previous
    if (previous_grads is None) == o.exact:
      raise ValueError(
        f"exact={o.exact}, but update got "
        f"{'no' if o.exact else 'an'} argument previous_grads, which is the "
        "gradient of this batch at the previous parameters. Pass "
        "previous_grads if and only if exact=True."
      )
    if o.exact:
      begun = state.count > 0
      previous = jax.tree.map(
        lambda g, old: g if is_masked(g) else jnp.where(begun, old, 0),
        updates,
        previous_grads,
        is_leaf=is_masked,
      )
    corrected = _correct(grads, previous, o)
    count: Any = optax.safe_increment(state.count)
    kept = None if o.exact else grads
    return corrected, MarsCorrectionState(count, kept)

  return in_work_dtype(
    optax.GradientTransformationExtraArgs(init_fn, update_fn)
  )


def screened(updates: Any, o: MarsCorrectionOptions) -> Any:
  """Replaces what is not finite by zeros, matrix by matrix."""

  def screen(g, axes):
    return jnp.where(jnp.isfinite(_square(g, axes)), g, 0)

  return _by_sides(screen, o, updates)


def _correct(grads: Any, previous: Any, o: MarsCorrectionOptions) -> Any:
  strength = o.gamma * o.b1 / (1 - o.b1)

  def correct(g, axes, old):
    c = g + strength * (g - old.astype(g.dtype))
    if o.max_norm is not None:
      square = _square(c, axes)
      long = square > o.max_norm**2
      norm = jnp.sqrt(jnp.where(long, square, 1))
      c = c * jnp.where(long, o.max_norm / norm, 1)
    return c.astype(g.dtype)

  return _by_sides(correct, o, grads, previous)


def _by_sides(
  function: Callable[..., Any], o: MarsCorrectionOptions, *trees: Any
) -> Any:
  """Maps function(leaf, axes of each matrix, other leaves)."""
  sides = o.sides(trees[0])
  return jax.tree_util.tree_map_with_path(
    lambda path, g, *rest: function(
      g, sides[jax.tree_util.keystr(path)], *rest
    ),
    *trees,
  )


def _square(x: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
  return jnp.sum(jnp.square(x), axis=axes, keepdims=True)
