"""LOTION: descend the loss that the weights have after rounding at random.

    E L(R(w)) = L(w) + 1/2 sum_i h_ii sigma_i^2(w) + O(s^3)

with sigma_i^2 the variance of the rounding. The penalty is zero on the grid and
largest midway. So the penalty pulls weights to the grid, most where curvature
is large. The penalty also shrinks the largest weight of a block, which refines
the grid of all other weights. There is no quantised forward pass.

Choices where the paper is silent:

- The scale is differentiated (an argument).
- The largest weight of a block feels no pull to the grid.
- The curvature is a constant for the gradient, and an average of its own.
- The penalty joins the gradient before the optimiser.

The smoothed loss has the minima of the rounded loss. The penalised loss is the
expansion of the smoothed loss, and has these minima only if the loss is
quadratic. Neither loss is convex.

Source: Kwun et al., "LOTION: Smoothing the Optimization Landscape for Quantized
Training", 2025, https://arxiv.org/abs/2510.08757
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..common import checks
from ..common.options import also_takes, takes
from ..common.tree import is_masked, zeros
from ..rounding.params import (
  Leaf,
  QuantizerTree,
  check_quantizers,
  find_leaves,
)
from .penalty import match_curvature, penalty_force


class RoundingPenaltyState(NamedTuple):
  """State of `add_rounding_penalty`.

  Attributes:
    count: int32 [], updates made.
    curvature: Like params, float32: the bias-corrected average of the squared
      task gradients, or of the estimates that were passed. `optax.MaskedNode()`
      where no average is kept.
  """

  count: jax.Array
  curvature: Any


class PenalizedState(NamedTuple):
  """State of `with_rounding_penalty`.

  Attributes:
    penalty: Averages for the leaves without a known curvature.
    inner: State of the optimiser.
  """

  penalty: RoundingPenaltyState
  inner: Any


@dataclasses.dataclass(frozen=True, eq=False)
class PenaltyOptions:
  """Options of `add_rounding_penalty`.

  Attributes:
    quantizer: A `Quantizer` for every leaf, or a tree or function of them; see
      `optim.quantize_params`.
    strength: lambda >= 0, or a schedule of the update count. Warm it up: early
      averages are noisy. Where lambda is 0, the updates do not change.
    curvature_decay: Decay of the average of g, in [0, 1).
    mask: Tree of bools, or a function of params that makes such a tree: True
      penalises the leaf. None: every leaf with a quantizer is penalised.
    scale_gradient: Whether the scales move with the weights; see
      `optim.rounding_penalty`.
  """

  quantizer: QuantizerTree
  strength: optax.ScalarOrSchedule
  _: dataclasses.KW_ONLY
  curvature_decay: float = 0.99
  mask: Any | None = None
  scale_gradient: bool = True

  def __post_init__(self):
    """Raises for any argument out of range."""
    check_quantizers(self.quantizer, self.mask)
    x: Any = self.strength
    if not callable(x) and not isinstance(x, jax.core.Tracer):
      number = isinstance(x, (int, float, np.number, np.ndarray, jax.Array))
      if not number or np.ndim(x) or not 0 <= x < np.inf:
        raise ValueError(
          f"strength={x!r} must be >= 0 and finite, e.g. 10.0, or a schedule, "
          "e.g. optax.linear_schedule(0.0, 10.0, 1000)."
        )
    checks.decay("curvature_decay", self.curvature_decay)

  def leaves(self, params: Any) -> list[Leaf]:
    """The leaves of params, with their quantizers."""
    return find_leaves(params, self.quantizer, self.mask, unbiased=True)


@takes(PenaltyOptions)
def add_rounding_penalty(
  o: PenaltyOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Adds the gradient of lambda / 2 sum_i g_i sigma_i^2(w) to the updates.

  g is an average of the squared updates that come in, or of the curvature that
  is passed: `update(updates, state, params, curvature=tree)`. A leaf that the
  tree does not have uses its squared updates. The strength depends on g.
  Squares of a gradient that is averaged over N independent samples are about g
  / N, so lambda is about N. With the diagonal of a Fisher matrix of single
  samples, lambda is about 1.

  Chain this transform before the optimiser, so that the optimiser's moments see
  the sum: added after Adam's division, the penalty is unstable. Chain it after
  clipping, which would shrink gradient and penalty. Accumulate gradients
  outside, with `optax.MultiSteps` around the whole chain.

  Returns:
    A transform whose `update` needs `params`. Its state has one float32 copy of
    the penalised leaves.

  Raises:
    ValueError: For an argument out of range, or for a scale rule that makes
      rounding biased (for a function of params, at `init`). At `init`, for a
      leaf that its quantizer does not fit. At `update`, for a curvature whose
      paths or shapes are not those of params.

  References:
    Kwun et al., "LOTION", 2025, https://arxiv.org/abs/2510.08757
  """

  def init_fn(params):
    return _init(o, params)

  def update_fn(updates, state, params=None, *, curvature=None, **extra_args):
    del extra_args
    _check_params("add_rounding_penalty", params)
    leaves, supplied = o.leaves(params), {}
    if curvature is not None:
      supplied = match_curvature(curvature, params, leaves)
    averages, state = _average(o, leaves, updates, state, supplied)
    return _penalize(o, leaves, updates, averages, state.count), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(add_rounding_penalty)
def with_rounding_penalty(
  tx: optax.GradientTransformation,
  quantizer: QuantizerTree,
  strength: optax.ScalarOrSchedule,
  curvature: Callable[[Any, Any], Any],
  **options: Any,
) -> optax.GradientTransformationExtraArgs:
  """`add_rounding_penalty`, with the curvature that the optimiser keeps.

  The state has no second copy of the curvature. Only the leaves that
  `curvature` leaves out have their own average of squared task gradients. The
  optimiser gets the penalised gradient as updates, and the task's gradient as
  the extra argument `statistics`. SOAP and Shampoo average `statistics` in
  their factors: a curvature that sees the penalty would feed on itself.

  Args:
    tx: The whole optimiser.
    quantizer: As for `add_rounding_penalty`.
    strength: As for `add_rounding_penalty`.
    curvature: (state of tx, params) -> tree of g, with `optax.MaskedNode()` for
      leaves without a known curvature. E.g. `optim.factor_diagonal` with the
      options of the optimiser.
    **options: The other arguments of `add_rounding_penalty`.

  Returns:
    A transform whose `update` needs `params`. Its state is a `PenalizedState`.

  Raises:
    ValueError: As for `add_rounding_penalty`.
  """
  o = PenaltyOptions(quantizer, strength, **options)
  tx = optax.with_extra_args_support(tx)

  def find_known(inner, params):
    leaves = find_leaves(params, o.quantizer, o.mask)
    return match_curvature(curvature(inner, params), params, leaves)

  def init_fn(params):
    inner = tx.init(params)
    known = jax.eval_shape(find_known, inner, params)
    return PenalizedState(_init(o, params, known), inner)

  def update_fn(updates, state, params=None, **extra_args):
    _check_params("with_rounding_penalty", params)
    leaves, known = o.leaves(params), find_known(state.inner, params)
    averages, penalty = _average(o, leaves, updates, state.penalty, known)
    penalized = _penalize(o, leaves, updates, averages, penalty.count)
    extra_args = dict(extra_args, statistics=updates)
    updates, inner = tx.update(penalized, state.inner, params, **extra_args)
    return updates, PenalizedState(penalty, inner)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_params(name: str, params) -> None:
  if params is None:
    raise ValueError(
      f"params=None but {name} rounds the parameters, so pass them: "
      "tx.update(grads, opt_state, params)."
    )


def _init(o: PenaltyOptions, params, known=()) -> RoundingPenaltyState:
  """Zero averages for the penalised leaves without a known curvature."""
  averages = [
    optax.MaskedNode()
    if leaf.quantizer is None or leaf.path in known
    else zeros(leaf.value)
    for leaf in o.leaves(params)
  ]
  tree = jax.tree.unflatten(jax.tree.structure(params), averages)
  return RoundingPenaltyState(jnp.zeros((), jnp.int32), tree)


def _average(
  o: PenaltyOptions,
  leaves: list[Leaf],
  updates: Any,
  state: RoundingPenaltyState,
  supplied: dict[str, jax.Array],
) -> tuple[list, RoundingPenaltyState]:
  """g of every leaf (None if not penalised), and the new averages."""
  count: Any = optax.safe_increment(state.count)
  # The average of t samples with weights decay^(t - i), without the bias.
  share = (1 - o.curvature_decay) / (1 - o.curvature_decay**count)
  treedef = jax.tree.structure(updates)
  grads = treedef.flatten_up_to(updates)
  kept = treedef.flatten_up_to(state.curvature)
  used, averages = [], []
  for leaf, g, old in zip(leaves, grads, kept, strict=True):
    if is_masked(old):
      used.append(supplied.get(leaf.path) if leaf.quantizer else None)
      averages.append(old)
      continue
    sample = supplied.get(leaf.path)
    if sample is None:
      sample = jnp.square(g.astype(old.dtype))
    new = old + share * (sample - old)
    # An entry that is not finite would stay in the average for ever.
    new = jnp.where(jnp.isfinite(new), new, old).astype(old.dtype)
    used.append(new)
    averages.append(new)
  tree = jax.tree.unflatten(treedef, averages)
  return used, RoundingPenaltyState(count, tree)


def _penalize(o: PenaltyOptions, leaves, updates, curvature, count):
  """updates + lambda dR/dw; `count` includes this update."""
  strength = o.strength
  if callable(strength):
    strength = strength(count - 1)
  elif not isinstance(strength, jax.Array) and strength == 0:
    return updates

  def add(leaf: Leaf, u, g):
    if g is None or leaf.quantizer is None:
      return u
    force = penalty_force(leaf.value, g, leaf.quantizer, o.scale_gradient)
    penalized = (u.astype(force.dtype) + strength * force).astype(u.dtype)
    # A force that is not finite times 0 is not 0.
    return jnp.where(jnp.equal(strength, 0), u, penalized)

  treedef = jax.tree.structure(updates)
  flat = treedef.flatten_up_to(updates)
  return jax.tree.unflatten(
    treedef, [add(*row) for row in zip(leaves, flat, curvature, strict=True)]
  )
