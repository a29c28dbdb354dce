"""Muon and its relatives on the matrix engine: stacked Newton-Schulz.

Differs from `optax.contrib.muon`: the momentum is the plain average of the
authors' code (no bias correction), and matrices of one shape are multiplied
in one batch. Embeddings and heads are treated like other matrices. Give
them None in `dimension_numbers` to leave them to Adam.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.options import also_takes, takes
from ..matrices import elementwise, factors, linalg
from ..matrices.any_mesh import on_any_mesh
from ..matrices.muon_options import MuonOptions, NorMuonOptions
from ..matrices.newton_schulz import newton_schulz
from ..matrices.placement import from_stacks, to_stacks
from ..matrices.stacks import Momentum, Split, Squares, Stacks, marked
from ..matrices.variance import divide_by_variance, initial_variance
from .decay import Decay, descend
from .spheres import SphereOptions, for_sphere, on_sphere


class MuonState(NamedTuple):
  """State of `scale_by_muon`."""

  momentum: Momentum  # By bucket, [S, I, O], float32 or `mu_dtype`.
  adam: Any  # Adam's state of the leaves that are no matrices, on a `Split`.


class AdaptiveMuonState(NamedTuple):
  """State of `scale_by_muon` with a `variance`."""

  momentum: Momentum  # By bucket, [S, I, O], float32 or `mu_dtype`.
  adam: Any  # Adam's state of the leaves that are no matrices, on a `Split`.
  variance: Squares  # By bucket: [S, 1, O], [S, I, 1], [S, I, O] or [S, 1, 1].


@takes(MuonOptions)
@on_any_mesh
def scale_by_muon(o: MuonOptions) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the momentum of each matrix by a nearly orthogonal matrix.

      M = b M + (1 - b) G,    N = b M + (1 - b) G  (Nesterov; else M)
      U = newton_schulz(N) * sqrt(max(1, O / I))

  with I inputs and O outputs. newton_schulz(N) is near the orthogonal matrix
  nearest to N. I and O are the sides of one matrix: of one head if the heads
  are a stack. Leaves without a matrix get Adam. A matrix whose gradient has a
  NaN or an infinity is replaced by zeros.

  Returns:
    A transform whose updates are a direction of ascent, like gradients.

  Raises:
    ValueError: For an argument out of range. At `init`, for a leaf of unknown
      layout or type, or for a leaf that has not two sides.

  References:
    Jordan et al., "Muon", 2024, https://kellerjordan.github.io/posts/muon/
    Liu et al., "Muon is scalable for LLM training", 2025,
    https://arxiv.org/abs/2502.16982 (consistent_rms)
    Li et al., "NorMuon", 2025, https://arxiv.org/abs/2510.05491 (rows)
    Si et al., "AdaMuon", 2025, https://arxiv.org/abs/2507.11005 (entries)
  """
  adam = elementwise.scale_by_split_adam(
    o.adam_b1, o.adam_b2, o.adam_eps, o.adam_eps_root
  )

  def init_fn(params):
    split = o.plan(params).split(params)
    momentum = jax.tree.map(
      lambda x: jnp.zeros(x.shape, o.mu_dtype or x.dtype), split.stacks
    )
    rest = Split(Stacks(), split.rest)
    state = MuonState(marked(momentum, Momentum), adam.init(rest))
    if o.variance == "none":
      return state
    variance = jax.tree.map(
      lambda x: initial_variance(o.variance, x), split.stacks
    )
    return AdaptiveMuonState(*state, marked(variance, Squares))

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    plan = o.plan(updates)
    if plan.empty:
      return updates, state
    split = to_stacks(updates, plan, o.placement)
    momentum, variance, directions = Momentum(), Squares(), Stacks()
    for name, g in split.stacks.items():
      g = jnp.where(linalg.finite(g)[:, None, None], g, 0)
      old = state.momentum[name]
      m = o.beta * old.astype(g.dtype) + (1 - o.beta) * g
      momentum[name] = m.astype(old.dtype)
      ahead = o.beta * m + (1 - o.beta) * g if o.nesterov else m
      orthogonal = newton_schulz(
        ahead,
        o.ns_coeffs,
        num_steps=o.ns_steps,
        norm=o.ns_norm,
        eps=o.ns_eps,
        dtype=o.ns_dtype or g.dtype,
      )
      if o.variance != "none":
        orthogonal, variance[name] = divide_by_variance(
          o.variance, orthogonal, ahead, g, state.variance[name],
          b2=o.b2, eps=o.eps,
        )  # fmt: skip
      directions[name] = orthogonal * o.factor(g.shape)
    rest = jax.tree.map(factors.screen_leaf, split.rest)
    stepped: Any = adam.update(Split(Stacks(), rest), state.adam)
    rest, adam_state = stepped
    split = Split(directions, rest.rest)
    updates = from_stacks(split, plan, updates, o.placement)
    state = MuonState(momentum, adam_state)
    if o.variance != "none":
      state = AdaptiveMuonState(*state, variance)
    return updates, state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(scale_by_muon)
def muon(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.0,
  mask: Any | None = None,
  adam_learning_rate: optax.ScalarOrSchedule | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """Muon for matrices and Adam for the rest; see `scale_by_muon`.

  Args:
    learning_rate: The learning rate of the matrices; about 0.02, or about
      Adam's with `consistent_rms=0.2`. Number, array or schedule.
    weight_decay: weight_decay * params is added to the direction; number,
      schedule or `Decay`.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays, biases and gains of
      norms as well. `optax.contrib.muon` does not decay biases and gains, and
      neither does `lambda params: jax.tree.map(lambda x: x.ndim > 1, params)`.
    adam_learning_rate: The learning rate of the other leaves; None is
      `learning_rate`.
    **direction: The arguments of `scale_by_muon`.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_muon`.
  """
  step = None
  if adam_learning_rate is not None:
    checks.scalar_or_schedule("adam_learning_rate", adam_learning_rate)
    o = MuonOptions(**direction)
    step = elementwise.two_rates(learning_rate, adam_learning_rate, o.plan)
  return descend(
    scale_by_muon(**direction), learning_rate, weight_decay, mask, step=step
  )


@also_takes(NorMuonOptions, muon)
def normuon(
  learning_rate: optax.ScalarOrSchedule, **options: Any
) -> optax.GradientTransformationExtraArgs:
  """NorMuon: Muon whose orthogonal matrix is normalised for each output.

  Args:
    learning_rate: The learning rate of the matrices, as for `muon`.
    **options: Those of `muon`; the list and the variance are NorMuon's.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_muon`.

  References:
    Li et al., "NorMuon", 2025, https://arxiv.org/abs/2510.05491
  """
  return muon(learning_rate, **_NORMUON | options)


@also_takes(SphereOptions, scale_by_muon)
def muon_h(
  learning_rate: optax.ScalarOrSchedule, **options: Any
) -> optax.GradientTransformationExtraArgs:
  """Muon on spheres: `on_sphere(scale_by_muon(...), learning_rate, ...)`.

  Args:
    learning_rate: eta of the matrices, about the angle of a step; 0.018 in the
      speed run. Number, array or schedule.
    **options: The arguments of `on_sphere` and of `scale_by_muon`.

  Returns:
    A transform; its `update` needs `params`.

  Raises:
    ValueError: As for `on_sphere` and `scale_by_muon`.

  References:
    MuonH: the optimisation track of modded-nanogpt, 2026.
  """
  sphere, direction = for_sphere(options)
  return on_sphere(scale_by_muon(**direction), learning_rate, **sphere)


@also_takes(SphereOptions, NorMuonOptions)
def normuon_h(
  learning_rate: optax.ScalarOrSchedule, **options: Any
) -> optax.GradientTransformationExtraArgs:
  """NorMuon on spheres: `muon_h` with the defaults of `normuon`.

  Args:
    learning_rate: As for `muon_h`.
    **options: The arguments of `on_sphere` and the fields of `NorMuonOptions`.

  Returns:
    A transform; its `update` needs `params`.

  Raises:
    ValueError: As for `muon_h`.
  """
  return muon_h(learning_rate, **_NORMUON | options)


_NORMUON = dict(ns_coeffs="quintic", variance="rows")
