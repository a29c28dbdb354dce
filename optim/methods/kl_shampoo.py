"""KL-Shampoo: Shampoo whose sides whiten each other, without grafting.

Differs from the authors' code: eigenvalues start at the root mean square of
the first gradient in place of 0.1, have no cap, and eps is relative to them, so
that nothing depends on the scale of the gradients; the momentum is kept in the
basis and turned when the basis changes; refreshes are spread over the steps.
`docs/soap.md` has the options that give the authors' trajectories.

Dimension key: see `matrices/plan.py`.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common.options import also_takes, takes
from ..common.tree import zeros
from ..matrices import eigenbasis, elementwise, factors, kl_factors
from ..matrices.any_mesh import on_any_mesh
from ..matrices.basis_options import BasisOptions
from ..matrices.placement import from_stacks
from ..matrices.round_off import grains
from ..matrices.stacks import Momentum, Split, Stacks, marked
from ..matrices.update_size import sized
from .decay import Decay, Order, descend


class KLShampooState(NamedTuple):
  """State of `scale_by_kl_shampoo`."""

  count: jax.Array  # int32 []: calls.
  momentum: Momentum  # By bucket, [S, I, O]: M in the bases.
  adam: Any  # Adam's state of the leaves without a factor, on a `Split`.
  kronecker: Stacks  # A `Kronecker` for each bucket; derived = bases Q.


@dataclasses.dataclass(frozen=True, eq=False)
class KLShampooOptions(BasisOptions):
  """Options of `scale_by_kl_shampoo`.

  Attributes:
    b1: Decay of the momentum M, and of Adam's first moment.
    b2: Decay of Adam's second moment, for leaves without a factor.
    eps: Added to sqrt(l_L l_R^T), as a share of its size; see `relative_eps`.
      Adam's eps for leaves without a factor.
    relative_eps: True: eps is multiplied by the root of the product of the
      means of l_L and l_R. False: eps is in units of the gradient, as in the
      authors' code.
  """

  _: dataclasses.KW_ONLY
  relative_eps: bool = True


@takes(KLShampooOptions)
@on_any_mesh
def scale_by_kl_shampoo(
  o: KLShampooOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Multiplies the momentum of each matrix by inverse roots of KL factors.

  For a matrix G [I, O] with bases Q_L, Q_R and eigenvalues l_L, l_R:

      M' = b1 M' + (1 - b1) Q_L^T G Q_R
      U  = Q_L [M' / (sqrt(l_L l_R^T) + eps)] Q_R^T
      L  = beta L + (1 - beta) G Q_R diag(1 / l_R) Q_R^T G^T / O,     R alike
      l_L = beta l_L + (1 - beta) mean over columns of G'^2 / l_R,  l_R alike

  and once in `precondition_frequency` calls Q <- orthonormalise(P Q) for L and
  R each. M' turns with its bases, and l is kept for each column. All of U is
  made of the old bases and eigenvalues. The first call takes bases and
  eigenvalues from its gradient and makes no step. There is no second moment, no
  grafting and no bias correction: with b1 = 0.95 the first steps are short.

  Leaves without a factor get Adam, at the first call as well. A matrix whose
  gradient has a NaN or an infinity is replaced by zeros and counted in
  `kronecker[...].rejections`. If a refresh fails, the matrix keeps its old
  basis, and `kronecker[...].failures` counts the refresh.

  Returns:
    A transform whose updates are a direction of ascent, like gradients. U does
    not depend on the scale of the gradients. If `update` is given `statistics`,
    a tree like the gradients, factors and eigenvalues average the statistics
    instead of the gradients.

  Raises:
    ValueError: For an argument out of range. At `init`, for a leaf of unknown
      layout or type.

  References:
    Lin et al., "Understanding and improving Shampoo and SOAP via
    Kullback-Leibler minimization", 2025, https://arxiv.org/abs/2509.03378
  """
  adam = elementwise.scale_by_split_adam(
    o.b1, o.b2, o.eps, o.eps_root, storage=o.storage
  )
  whiten = kl_factors.whitener(o.eigenvalues, o.precision.statistics)
  inward = kl_factors.inward(o.precision)

  def init_fn(params):
    plan = o.plan(params)
    split = plan.split(params)
    kept = factors.init(plan, o.storage)
    return KLShampooState(
      jnp.zeros((), jnp.int32),
      marked(zeros(split.stacks, o.storage.mu), Momentum),
      adam.init(Split(Stacks(), split.rest)),
      kl_factors.with_eigenvalues(plan, kept),
    )

  def update_fn(updates, state, params=None, *, statistics=None, **extra_args):
    del params, extra_args
    plan, first = o.plan(updates), state.count == 0
    if plan.empty:
      return updates, state
    grads, kept = factors.observe(
      plan, updates, state.kronecker, o.beta, o, statistics, whiten
    )
    kept, grain = eigenbasis.first_bases(kept, first), grains(plan, updates)
    rotated = eigenbasis.into(grads, kept, inward, grain)
    momentum, directions = Momentum(), Stacks()
    for bucket in plan.buckets:
      name, g = bucket.name, rotated.stacks[bucket.name]
      old = state.momentum[name]
      m = o.b1 * old.astype(g.dtype) + (1 - o.b1) * g
      momentum[name] = jnp.where(first, old, m.astype(old.dtype))
      directions[name] = jnp.where(first, 0, _divided(o, m, kept[name].scales))
    kept = eigenbasis.average_eigenvalues(
      plan, o, rotated, state.kronecker, kept, grain, statistics
    )
    stepped: Any = adam.update(Split(Stacks(), rotated.rest), state.adam)
    rest, adam_state = stepped
    split = Split(directions, rest.rest)
    split = eigenbasis.rotate(split, kept, o.precision, transpose=False)
    split = sized(split, plan, o.update_rms, o.max_update_rms)
    momentum, kept = eigenbasis.refresh_due(
      plan, o, state.count, grain, momentum, kept,
      first_step="skip", squares=False,
    )  # fmt: skip
    updates = from_stacks(split, plan, updates, o.placement)
    count: Any = optax.safe_increment(state.count)
    return updates, KLShampooState(count, momentum, adam_state, kept)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(scale_by_kl_shampoo)
def kl_shampoo(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.01,
  mask: Any | None = None,
  decay_order: Order = "optax",
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """KL-Shampoo with decoupled weight decay; see `scale_by_kl_shampoo`.

  Args:
    learning_rate: Number, array or schedule; about Adam's. A schedule counts
      calls, the skipped first one included.
    weight_decay: lambda, number, schedule or `Decay`; 0 turns it off. Nothing
      decays at the skipped call.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays, biases and gains of
      norms as well; `lambda params: jax.tree.map(lambda x: x.ndim > 1, params)`
      leaves biases and gains out.
    decay_order: "optax", w - eta (u + lambda w); "official", (w - eta u)
      (1 - eta lambda), as the authors' code does.
    **direction: The arguments of `scale_by_kl_shampoo`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_kl_shampoo`.
  """
  return descend(
    scale_by_kl_shampoo(**direction),
    learning_rate,
    weight_decay,
    mask,
    order=decay_order,
    skip_first=True,
  )


def _divided(o: KLShampooOptions, m, scales):
  """M' / (sqrt of the product of all l + eps), 0 where l has not started."""
  roots = kl_factors.inverse_roots(scales)
  whitened = kl_factors.scale_sides(m, roots)
  eps = o.eps
  if o.relative_eps:
    means = [jnp.mean(l, axis=1) for l in scales if l is not None]
    size = math.prod(jnp.sqrt(mean) for mean in means)
    eps = jnp.expand_dims(eps * size, tuple(range(1, m.ndim)))
  # m s / (1 + eps s) with s the inverse of the root.
  return whitened / (1 + kl_factors.scale_sides(eps * jnp.ones_like(m), roots))
