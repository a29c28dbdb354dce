"""LOTION: descend the loss that the weights have after rounding at random.

    E L(R(w)) = L(w) + 1/2 sum_i h_ii sigma_i^2(w) + O(s^3)

with sigma_i^2 the variance of the rounding. The penalty is zero on the grid and
largest midway, so it pulls weights to the grid, most where curvature is large;
it also shrinks the largest weight of a block, which refines the grid of all
others. There is no quantised forward pass.

Differs from the paper's description where it is silent: the scale is
differentiated (an argument), the largest weight of a block feels no pull to the
grid, curvature is a constant for the gradient and an average of its own, and
the penalty joins the gradient before the optimiser. The smoothed loss has the
minima of the rounded one; the penalised loss, its expansion, has them only
where the loss is quadratic, and neither is convex.

Source: Kwun et al., "LOTION: Smoothing the Optimization Landscape for Quantized
Training", 2025, https://arxiv.org/abs/2510.08757
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..common import checks
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
    curvature: Like params, float32: average of the squared task gradients or
      of the estimates supplied, bias-corrected; MaskedNode where none is kept.
  """

  count: jax.Array
  curvature: Any


class PenalizedState(NamedTuple):
  """State of `with_rounding_penalty`.

  Attributes:
    penalty: Averages of the leaves whose curvature the optimiser has not.
    inner: State of the optimiser.
  """

  penalty: RoundingPenaltyState
  inner: Any


def add_rounding_penalty(
  quantizer: QuantizerTree,
  strength: optax.ScalarOrSchedule,
  *,
  curvature_decay: float = 0.99,
  mask: Any | None = None,
  scale_gradient: bool = True,
) -> optax.GradientTransformationExtraArgs:
  r"""Adds the gradient of lambda / 2 sum_i g_i sigma_i^2(w); put it first.

  g is the average of the squared updates that come in, or of what is passed:
  `update(updates, state, params, curvature=tree)`; leaves the tree lacks use
  their squared updates. In units: squares of a gradient averaged over N
  independent samples are about g / N, so that lambda is then about N; with the
  diagonal of a Fisher matrix of single samples it is about 1.

  Chain it before the optimiser, whose moments then see the sum (adding it
  after Adam's division is unstable), and after clipping, which would shrink
  both; accumulate gradients outside (`optax.MultiSteps` around all of it).

  Args:
    quantizer: For every leaf, or a tree or function of them; see
      `optim.quantize_params`.
    strength: lambda >= 0, or a schedule of the update count; warm it up, since
      early averages are noisy. Where it is 0 the updates are passed on as they
      are.
    curvature_decay: Of the average of g, in [0, 1).
    mask: True penalises; None: every leaf that has a quantizer.
    scale_gradient: Whether the scales move with the weights; see
      `optim.rounding_penalty`.

  Returns:
    A transform whose `update` needs `params`. It keeps one float32 copy of the
    penalised leaves.

  Raises:
    ValueError: For an argument out of range or a scale rule that makes
      rounding biased (at `init`, for a function of params); at `init`, for a
      leaf that its quantizer does not fit; at `update`, for a curvature with
      other paths or shapes than params.

  References:
    Kwun et al., "LOTION", 2025, https://arxiv.org/abs/2510.08757
  """
  _check(quantizer, strength, curvature_decay, mask)

  def init_fn(params):
    return _init(params, quantizer, mask)

  def update_fn(updates, state, params=None, *, curvature=None, **extra_args):
    del extra_args
    _check_params("add_rounding_penalty", params)
    leaves = find_leaves(params, quantizer, mask, unbiased=True)
    supplied = {}
    if curvature is not None:
      supplied = match_curvature(curvature, params, leaves)
    averages, state = _average(
      leaves, updates, state, supplied, curvature_decay
    )
    updates = _penalize(
      leaves, updates, averages, strength, state.count, scale_gradient
    )
    return updates, state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def with_rounding_penalty(
  tx: optax.GradientTransformation,
  quantizer: QuantizerTree,
  strength: optax.ScalarOrSchedule,
  curvature: Callable[[Any, Any], Any],
  *,
  curvature_decay: float = 0.99,
  mask: Any | None = None,
  scale_gradient: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """`add_rounding_penalty`, with the curvature that the optimiser keeps.

  No second copy is kept, but for the leaves that `curvature` leaves out: they
  use their own average of squared task gradients. The optimiser is given the
  penalised gradient, and the task's as the extra argument `statistics`, which
  SOAP and Shampoo take for their factors: a curvature that sees the penalty
  would feed on itself.

  Args:
    tx: The whole optimiser.
    quantizer: As of `add_rounding_penalty`.
    strength: As of `add_rounding_penalty`.
    curvature: (state of tx, params) -> tree of g, with `optax.MaskedNode()`
      for a leaf it does not know; e.g. `optim.factor_diagonal` with the
      optimiser's options.
    curvature_decay: Of the averages of the leaves left out.
    mask: As of `add_rounding_penalty`.
    scale_gradient: As of `add_rounding_penalty`.

  Returns:
    A transform whose `update` needs `params`.

  Raises:
    ValueError: As `add_rounding_penalty`.
  """
  _check(quantizer, strength, curvature_decay, mask)
  tx = optax.with_extra_args_support(tx)

  def find_known(inner, params):
    leaves = find_leaves(params, quantizer, mask)
    return match_curvature(curvature(inner, params), params, leaves)

  def init_fn(params):
    inner = tx.init(params)
    known = jax.eval_shape(find_known, inner, params)
    return PenalizedState(_init(params, quantizer, mask, known), inner)

  def update_fn(updates, state, params=None, **extra_args):
    _check_params("with_rounding_penalty", params)
    leaves = find_leaves(params, quantizer, mask, unbiased=True)
    known = find_known(state.inner, params)
    averages, penalty = _average(
      leaves, updates, state.penalty, known, curvature_decay
    )
    penalized = _penalize(
      leaves, updates, averages, strength, penalty.count, scale_gradient
    )
    extra_args = dict(extra_args, statistics=updates)
    updates, inner = tx.update(penalized, state.inner, params, **extra_args)
    return updates, PenalizedState(penalty, inner)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check(quantizer, strength, curvature_decay, mask) -> None:
  check_quantizers(quantizer, mask)
  if not callable(strength) and not isinstance(strength, jax.core.Tracer):
    number = isinstance(
      strength, (int, float, np.number, np.ndarray, jax.Array)
    )
    if not number or np.ndim(strength) or not 0 <= strength < np.inf:
      raise ValueError(
        f"strength={strength!r} must be >= 0 and finite, e.g. 10.0, or a "
        "schedule, e.g. optax.linear_schedule(0.0, 10.0, 1000)."
      )
  checks.decay("curvature_decay", curvature_decay)


def _check_params(name: str, params) -> None:
  if params is None:
    raise ValueError(
      f"params=None but {name} rounds the parameters, so pass them: "
      "tx.update(grads, opt_state, params)."
    )


def _init(params, quantizer, mask, known=()) -> RoundingPenaltyState:
  """Zero averages for the penalised leaves whose curvature is not known."""
  averages = [
    optax.MaskedNode()
    if leaf.quantizer is None or leaf.path in known
    else zeros(leaf.value)
    for leaf in find_leaves(params, quantizer, mask, unbiased=True)
  ]
  tree = jax.tree.unflatten(jax.tree.structure(params), averages)
  return RoundingPenaltyState(jnp.zeros((), jnp.int32), tree)


def _average(
  leaves: list[Leaf],
  updates: Any,
  state: RoundingPenaltyState,
  supplied: dict[str, jax.Array],
  decay: float,
) -> tuple[list, RoundingPenaltyState]:
  """g of every leaf (None: not penalised), and the new averages."""
  count: Any = optax.safe_increment(state.count)
  # The average of t samples with weights decay^(t - i), without the bias.
  share = (1 - decay) / (1 - decay**count)
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


def _penalize(leaves, updates, curvature, strength, count, scale_gradient):
  """updates + lambda dR/dw; `count` includes this update."""
  if callable(strength):
    strength = strength(count - 1)
  elif not isinstance(strength, jax.Array) and strength == 0:
    return updates

  def add(leaf: Leaf, u, g):
    if g is None or leaf.quantizer is None:
      return u
    force = penalty_force(leaf.value, g, leaf.quantizer, scale_gradient)
    penalized = (u.astype(force.dtype) + strength * force).astype(u.dtype)
    # A force that is not finite times 0 is not 0.
    return jnp.where(jnp.equal(strength, 0), u, penalized)

  treedef = jax.tree.structure(updates)
  flat = treedef.flatten_up_to(updates)
  return jax.tree.unflatten(
    treedef, [add(*row) for row in zip(leaves, flat, curvature, strict=True)]
  )
