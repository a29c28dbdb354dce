"""Muon on the matrix engine: stacked Newton-Schulz iterations.

Differs from `optax.contrib.muon`: the momentum is the plain average of the
authors' code (no bias correction), and matrices of one shape are multiplied
in one batch. Embeddings and heads are treated like other matrices. Give
them None in `dimension_numbers` to leave them to Adam.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.options import also_takes, takes
from ..matrices import elementwise, factors, linalg
from ..matrices.any_mesh import on_any_mesh
from ..matrices.layout import DimensionTree
from ..matrices.newton_schulz import newton_schulz
from ..matrices.options import check_placement
from ..matrices.placement import Placement, from_stacks, to_stacks
from ..matrices.plan import Plan, check_two_sides, make_plan
from ..matrices.stacks import Momentum, Split, Stacks, marked
from .decay import descend


class MuonState(NamedTuple):
  """State of `scale_by_muon`."""

  momentum: Momentum  # By bucket, [S, I, O], float32 or `mu_dtype`.
  adam: Any  # Adam's state of the leaves that are no matrices, on a `Split`.


@dataclasses.dataclass(frozen=True, eq=False)
class MuonOptions:
  """Options of `scale_by_muon`.

  Attributes:
    beta: Decay b of the momentum, in [0, 1).
    nesterov: True orthogonalises N, which looks one step ahead; False M.
    adam_b1: Decay of the first moment of Adam, for leaves that are no matrices.
    adam_b2: Decay of the second moment of Adam, for leaves that are no
      matrices.
    adam_eps: eps of Adam, added to the square root.
    adam_eps_root: eps_root of Adam, added inside the square root. Set it > 0 if
      the update itself is differentiated.
    dimension_numbers: Which axes are stack, input and output: a tree of
      `DimensionNumbers` (None: no matrix) like params or a prefix of it, or a
      function of params that makes a tree, e.g. `by_rank`. A leaf without an
      entry gets the default: a leaf of two axes is a matrix [inputs, outputs],
      a leaf of fewer axes is no matrix, and a leaf of more axes is an error.
      The argument None gives all leaves the default.
    ns_coeffs: a, b, c of the iteration X <- a X + (b A + c A^2) X, A = X X^T.
    ns_steps: Iterations, >= 1.
    consistent_rms: A number r replaces the scale sqrt(max(1, O / I)) by
      r sqrt(max(I, O)). The updates then have a root mean square of about r;
      0.2 is Adam's.
    mu_dtype: Type of the momentum; None is float32.
    placement: Where the stacks lie on a mesh; see `Placement`.
  """

  beta: float = 0.95
  _: dataclasses.KW_ONLY
  nesterov: bool = True
  adam_b1: float = 0.9
  adam_b2: float = 0.95
  adam_eps: float = 1e-10
  adam_eps_root: float = 0.0
  dimension_numbers: DimensionTree = None
  ns_coeffs: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
  ns_steps: int = 5
  consistent_rms: float | None = None
  mu_dtype: Any | None = None
  placement: Placement = Placement()

  def __post_init__(self):
    """Raises for any argument out of range."""
    for name in ("beta", "adam_b1", "adam_b2"):
      checks.decay(name, getattr(self, name))
    for name in ("adam_eps", "adam_eps_root"):
      checks.positive(name, getattr(self, name), zero_too=True)
    checks.count("ns_steps", self.ns_steps)
    check_placement(self.placement)

  def plan(self, tree: Any) -> Plan:
    """`make_plan` with these options: no side is too long for Muon."""
    plan = make_plan(
      tree,
      self.dimension_numbers,
      max_precond_dim=2**31,
      stack_shards=self.placement.stack_shards,
    )
    check_two_sides(plan, "Muon")
    return plan

  def scale(self, shape: tuple[int, ...]) -> float:
    """The factor of the orthogonal matrix of a bucket of this shape."""
    inputs, outputs = shape[-2:]
    if self.consistent_rms is not None:
      return self.consistent_rms * max(inputs, outputs) ** 0.5
    return max(1.0, outputs / inputs) ** 0.5


@takes(MuonOptions)
@on_any_mesh
def scale_by_muon(o: MuonOptions) -> optax.GradientTransformationExtraArgs:
  r"""Replaces the momentum of each matrix by a nearly orthogonal matrix.

      M = b M + (1 - b) G,    N = b M + (1 - b) G  (Nesterov; else M)
      U = newton_schulz(N) * sqrt(max(1, O / I))

  with I inputs and O outputs. newton_schulz(N) is near the orthogonal matrix
  nearest to N. Leaves without a matrix get Adam. A matrix whose gradient has a
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
    return MuonState(marked(momentum, Momentum), adam.init(rest))

  def update_fn(updates, state, params=None, **extra_args):
    del params, extra_args
    plan = o.plan(updates)
    if plan.empty:
      return updates, state
    split = to_stacks(updates, plan, o.placement)
    momentum, directions = Momentum(), Stacks()
    for name, g in split.stacks.items():
      g = jnp.where(linalg.finite(g)[:, None, None], g, 0)
      old = state.momentum[name]
      m = o.beta * old.astype(g.dtype) + (1 - o.beta) * g
      momentum[name] = m.astype(old.dtype)
      ahead = o.beta * m + (1 - o.beta) * g if o.nesterov else m
      orthogonal = newton_schulz(
        ahead, o.ns_coeffs, num_steps=o.ns_steps, dtype=g.dtype
      )
      directions[name] = orthogonal * o.scale(g.shape)
    rest = jax.tree.map(factors.screen_leaf, split.rest)
    stepped: Any = adam.update(Split(Stacks(), rest), state.adam)
    rest, adam_state = stepped
    split = Split(directions, rest.rest)
    updates = from_stacks(split, plan, updates, o.placement)
    return updates, MuonState(momentum, adam_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(scale_by_muon)
def muon(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule = 0.0,
  mask: Any | None = None,
  adam_learning_rate: optax.ScalarOrSchedule | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """Muon for matrices and Adam for the rest; see `scale_by_muon`.

  Args:
    learning_rate: The learning rate of the matrices; about 0.02, or about
      Adam's with `consistent_rms=0.2`. Number, array or schedule.
    weight_decay: weight_decay * params is added to the direction; number or
      schedule.
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
    step = optax.partition(
      {
        "matrix": optax.scale_by_learning_rate(learning_rate),
        "rest": optax.scale_by_learning_rate(adam_learning_rate),
      },
      lambda params: _labels(o.plan(params)),
    )
  return descend(
    scale_by_muon(**direction), learning_rate, weight_decay, mask, step=step
  )


def _labels(plan: Plan) -> Any:
  """Labels: "matrix" for leaves that the plan stacks, else "rest"."""
  stacked = {piece.index for bucket in plan.buckets for piece in bucket.pieces}
  return jax.tree.unflatten(
    plan.treedef,
    ["matrix" if i in stacked else "rest" for i in range(len(plan.paths))],
  )
