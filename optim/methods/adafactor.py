"""Adafactor as the study of 2407.07972 ran it: Adam with a rank-one v.

Differs from `optax.adafactor` (Shazeer and Stern): the momentum averages the
raw gradient, and not the divided one; b2 is constant, and v is bias-corrected
as Adam's; no update is clipped; no rate is multiplied by the size of the
parameter; every matrix is factorised, however short its sides; leaves of more
axes have one average a side, and not two for the two longest axes.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common import checks, moments
from ..common.options import also_takes, takes
from ..common.tree import like, upcast, zeros
from ..matrices.any_mesh import on_any_mesh
from ..matrices.layout import DimensionTree, checked, numbers_by_path
from .decay import Decay, descend


class AdafactorState(NamedTuple):
  """State of `scale_by_adafactor`."""

  count: jax.Array  # int32 []: calls.
  mu: Any  # Average of the gradients, like params, float32 or `mu_dtype`.
  nu: Any  # For each leaf {side: means of the squared gradients along it}.


@dataclasses.dataclass(frozen=True, eq=False)
class AdafactorOptions:
  """Options of `scale_by_adafactor`.

  Attributes:
    b1: Decay of m, in [0, 1).
    b2: Decay of the means of squares, in [0, 1).
    eps: Added to the square root.
    neuron_only: True leaves the mean along the inputs out: v is then one number
      for each output, a neuron.
    parity: True gives a leaf with one side, e.g. a gain, one scalar v, as the
      authors' code does. False: such a leaf has Adam's v.
    dimension_numbers: Which axes are stack, input and output: a tree of
      `DimensionNumbers` (None: Adam's v) like params or a prefix of it, or a
      function of params that makes a tree, e.g. `by_rank`. Stack axes are never
      averaged over. A leaf without an entry gets the default: a leaf of two
      axes is a matrix [inputs, outputs], a leaf of fewer axes has Adam's v, and
      a leaf of more axes is an error. The argument None gives all leaves the
      default.
    mu_dtype: Type of m; None is float32.
  """

  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-15
  _: dataclasses.KW_ONLY
  neuron_only: bool = False
  parity: bool = False
  dimension_numbers: DimensionTree = None
  mu_dtype: Any | None = None

  def __post_init__(self):
    """Raises for any argument out of range."""
    for name in ("b1", "b2"):
      checks.decay(name, getattr(self, name))
    checks.positive("eps", self.eps, zero_too=True)

  def sides(self, tree: Any) -> Any:
    """A tree of `_Sides` like `tree`."""
    numbers = numbers_by_path(tree, self.dimension_numbers)

    def of_leaf(path, leaf):
      name = jax.tree_util.keystr(path)
      dims = checked(name, leaf, numbers[name])
      if dims is None or leaf.size == 0:
        axes, stack = (), tuple(range(leaf.ndim))
        if self.parity and dims is None and leaf.ndim == 1:
          stack = ()
      elif len(dims.side_axes) == 1:
        axes, stack = (), dims.stack_axes
        if not self.parity:
          stack = tuple(range(leaf.ndim))
      else:
        axes, stack = dims.side_axes, dims.stack_axes
        axes = axes[1:] if self.neuron_only else axes
      return _Sides(leaf.ndim, axes, stack)

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


@takes(AdafactorOptions)
@on_any_mesh
def scale_by_adafactor(
  o: AdafactorOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Divides Adam's momentum by the root of a rank-one second moment.

      m = b1 m + (1 - b1) G
      r = b2 r + (1 - b2) mean_o G_io^2,    c = b2 c + (1 - b2) mean_i G_io^2
      V_io = r_i c_o / mean(r)
      u = (m / (1 - b1^t)) / (sqrt(V / (1 - b2^t)) + eps)

  A leaf of N sides has one average for each side, and V is their product over
  mean(r)^(N - 1). Leaves without a matrix have Adam's v. The first step is
  G / sqrt(V) of the first gradient's own V.

  Returns:
    A transform whose updates are a direction of ascent, like gradients.

  Raises:
    ValueError: For an argument out of range. At `init`, for a leaf of unknown
      layout or type.

  References:
    Zhao et al., "Deconstructing what makes a good optimizer for language
    models", 2024, https://arxiv.org/abs/2407.07972
    Shazeer and Stern, "Adafactor", 2018, https://arxiv.org/abs/1804.04235
  """

  def init_fn(params):
    nu = jax.tree.map(_means, zeros(params), o.sides(params))
    mu = zeros(params, o.mu_dtype)
    return AdafactorState(jnp.zeros((), jnp.int32), mu, nu)

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    count: Any = optax.safe_increment(state.count)
    grads, sides = upcast(updates), o.sides(updates)

    def means(g, s, old):
      new = _means(jnp.square(g), s)
      return {k: moments.average(old[k], new[k], o.b2) for k in new}

    def direction(m, s, v):
      scale = (1 - o.b1**count) * moments.root(_dense(v, s), o.eps, o.b2, count)
      return moments.divide(m, scale.astype(m.dtype))

    mu = jax.tree.map(lambda g, m: moments.average(m, g, o.b1), grads, state.mu)
    nu = jax.tree.map(means, grads, sides, state.nu)
    steps = jax.tree.map(direction, mu, sides, nu)
    return like(steps, updates), AdafactorState(count, like(mu, state.mu), nu)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(scale_by_adafactor)
def adafactor(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.0,
  mask: Any | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """Adafactor with decoupled weight decay; see `scale_by_adafactor`.

  This is not `optax.adafactor`; the module's text lists the differences.

  Args:
    learning_rate: Number, array or schedule; Adam's.
    weight_decay: weight_decay * params is added to the direction; number,
      schedule or `Decay`.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays, biases and gains of
      norms as well.
    **direction: The arguments of `scale_by_adafactor`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_adafactor`.
  """
  return descend(
    scale_by_adafactor(**direction), learning_rate, weight_decay, mask
  )


@dataclasses.dataclass(frozen=True)
class _Sides:
  """What the second moment of a leaf keeps.

  Attributes:
    ndim: Number of the leaf's axes.
    axes: Axes of each side with an average of its own; () for one average over
      all axes that are not in `stack`.
    stack: Axes that every average has.
  """

  ndim: int
  axes: tuple[tuple[int, ...], ...]
  stack: tuple[int, ...]

  def dropped(self, side: tuple[int, ...]) -> tuple[int, ...]:
    """The axes over which the average of a side is a mean."""
    kept = (*self.stack, *side)
    return tuple(axis for axis in range(self.ndim) if axis not in kept)


def _means(squares: jax.Array, sides: _Sides) -> dict[str, jax.Array]:
  """{name of a side: mean of the squares over all other sides}."""
  axes = sides.axes or ((),)
  means = [jnp.mean(squares, axis=sides.dropped(side)) for side in axes]
  return {f"side{k}": mean for k, mean in enumerate(means)}


def _dense(means: dict[str, jax.Array], sides: _Sides) -> jax.Array:
  """V, broadcast to the leaf's axes."""
  axes = sides.axes or ((),)
  parts = [
    jnp.expand_dims(means[f"side{k}"], sides.dropped(side))
    for k, side in enumerate(axes)
  ]
  v = parts[0]
  for part, side in zip(parts[1:], axes[1:], strict=True):
    # Each side's average has the same mean; no product of two may underflow.
    mean = jnp.mean(part, axis=side, keepdims=True)
    v = v * (part / jnp.maximum(mean, jnp.finfo(part.dtype).tiny))
  return v
