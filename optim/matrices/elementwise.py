"""Adam on a `Split`: the element-wise rule of SOAP, full or factorised.

This is optax's Adam with two differences. The arithmetic is in float32 for all
storage types. The second moment of stacked matrices may be kept as row and
column sums.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common.tree import work_dtype, zeros
from .options import Storage
from .plan import Plan
from .stacks import Momentum, Squares, Stacks, marked


class Sums(NamedTuple):
  """Factorised second moment: averages of row and column sums of G^2."""

  rows: jax.Array  # [S, I]
  columns: jax.Array  # [S, O]


class AdamState(NamedTuple):
  """State of `scale_by_split_adam`."""

  count: jax.Array  # int32 []: updates made.
  mu: Any  # Split of first moments; its stacks are `Momentum`.
  nu: Any  # Split of second moments, `Squares`; `Sums` for factorised stacks.


def with_marks(
  tx: optax.GradientTransformation,
  momentum_fields: tuple[str, ...],
  square_fields: tuple[str, ...],
) -> optax.GradientTransformationExtraArgs:
  """Marks the stacks in some fields of a transform's state by their type.

  Args:
    tx: Any transform of a `Split`.
    momentum_fields: Names of the fields of its state, or of states within, that
      are sums of gradients: their stacks become `Momentum`.
    square_fields: Names of those that are averages of squares: `Squares`.

  Returns:
    The transform, whose state says by type what turns with a basis, and how.
  """
  tx = optax.with_extra_args_support(tx)
  kinds = dict.fromkeys(momentum_fields, Momentum)
  kinds |= dict.fromkeys(square_fields, Squares)

  def mark(path, node):
    for key in path:
      name = getattr(key, "name", getattr(key, "key", None))
      if name in kinds:
        return marked(node, kinds[name])
    return node

  def with_types(state):
    return jax.tree_util.tree_map_with_path(
      mark, state, is_leaf=lambda x: isinstance(x, Stacks)
    )

  def init_fn(params):
    return with_types(tx.init(params))

  def update_fn(updates, state, params=None, **extra_args):
    plain = marked(state, Stacks)
    updates, state = tx.update(updates, plain, params, **extra_args)
    return updates, with_types(state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def bias_scale(count: jax.Array, b1: Any, b2: Any) -> jax.Array:
  """sqrt(1 - b2^t) / (1 - b1^t): both corrections of Adam in one factor."""
  return jnp.sqrt(1 - b2**count) / (1 - b1**count)


def scale_by_split_adam(
  b1: float,
  b2: float,
  eps: float,
  eps_root: float = 0.0,
  *,
  bias_correction: bool = True,
  nesterov: bool = False,
  factorized: bool = False,
  storage: Storage = Storage(),  # noqa: B008
) -> optax.GradientTransformation:
  r"""Adam, m / (1 - b1^t) / (sqrt(v / (1 - b2^t) + eps_root) + eps).

  Factorised, v_ij = a_i c_j / sum(a) with a and c averages of the row and
  column sums of G^2: Adafactor's rank-1 form.

  Args:
    b1: Decay of m.
    b2: Decay of v.
    eps: Added to the square root.
    eps_root: Added within the square root. Set it > 0 if the update itself is
      differentiated: the root of 0 has no derivative.
    bias_correction: False leaves both corrections out.
    nesterov: True: b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t) in the place
      of m / (1 - b1^t), as `optax.nadam` has.
    factorized: True keeps v of the stacks as `Sums`.
    storage: Types of m and v.

  Returns:
    A transform of a `Split`: each entry of a stack is one matrix.
  """

  rooted = isinstance(eps_root, jax.Array) or eps_root != 0

  def init_fn(params):
    mu, nu = zeros(params, storage.mu), zeros(params, storage.nu)
    if factorized and isinstance(nu.stacks, dict):
      sums = {
        name: Sums(jnp.sum(v, axis=2), jnp.sum(v, axis=1))
        for name, v in nu.stacks.items()
      }
      nu = nu._replace(stacks=Stacks(sums))
    return AdamState(
      jnp.zeros((), jnp.int32), marked(mu, Momentum), marked(nu, Squares)
    )

  def update_fn(updates, state, params=None):
    del params
    count = state.count + 1
    scale = bias_scale(count, b1, b2) if bias_correction else 1.0
    # eps inside the square root's correction: m / (sqrt(v) + eps') below.
    small = eps * jnp.sqrt(1 - b2**count) if bias_correction else eps
    within = eps_root * (1 - b2**count) if bias_correction else eps_root

    def average(old, new, decay):
      work = old.astype(work_dtype(new)) * decay + (1 - decay) * new
      return work.astype(old.dtype)

    def first(g, m):
      return average(m, g.astype(work_dtype(g)), b1)

    def second(g, v):
      g = g.astype(work_dtype(g))
      if not isinstance(v, Sums):
        return average(v, jnp.square(g), b2)
      rows = jnp.einsum("sio,sio->si", g, g, precision="highest")
      columns = jnp.einsum("sio,sio->so", g, g, precision="highest")
      return Sums(average(v.rows, rows, b2), average(v.columns, columns, b2))

    def direction(g, m, v):
      v = dense(v)
      m, v = m.astype(work_dtype(g)), v.astype(work_dtype(g))
      if nesterov:
        ahead = (1 - b1**count) / (1 - b1 ** (count + 1))
        m = b1 * m * (ahead if bias_correction else 1.0)
        m = m + (1 - b1) * g.astype(m.dtype)
      root = (jnp.sqrt(v + within) if rooted else jnp.sqrt(v)) + small
      # No gradient so far, and eps 0: no step, not 0 / 0.
      step = scale * m / jnp.where(root > 0, root, 1)
      return jnp.where(root > 0, step, 0).astype(g.dtype)

    mu = jax.tree.map(first, updates, marked(state.mu, Stacks))
    nu = jax.tree.map(second, updates, marked(state.nu, Stacks))
    updates = jax.tree.map(direction, updates, mu, nu)
    return updates, AdamState(count, marked(mu, Momentum), marked(nu, Squares))

  return optax.GradientTransformation(init_fn, update_fn)


def two_rates(
  learning_rate: optax.ScalarOrSchedule,
  rest_rate: optax.ScalarOrSchedule,
  plan: Callable[[Any], Plan],
) -> optax.GradientTransformation:
  """Multiplies stacked leaves and all others by -(a learning rate) of each.

  Args:
    learning_rate: Of the leaves that the plan stacks.
    rest_rate: Of all other leaves.
    plan: Parameters -> the plan.
  """

  return optax.partition(
    {
      "matrix": optax.scale_by_learning_rate(learning_rate),
      "rest": optax.scale_by_learning_rate(rest_rate),
    },
    lambda params: labels(plan(params)),
  )


def labels(plan: Plan) -> Any:
  """A tree: "matrix" for leaves that the plan stacks, "rest" for others."""
  stacked = {piece.index for bucket in plan.buckets for piece in bucket.pieces}
  names = ["matrix" if i in stacked else "rest" for i in range(len(plan.paths))]
  return jax.tree.unflatten(plan.treedef, names)


def dense(v: Any) -> jax.Array:
  """v_ij = a_i c_j / sum(a), or `v` itself if `v` is not factorised."""
  if not isinstance(v, Sums):
    return v
  total = jnp.sum(v.rows, axis=1)[:, None, None]
  # No gradient yet: 0 * 0 / tiny = 0.
  total = jnp.maximum(total, jnp.finfo(total.dtype).tiny)
  return v.rows[:, :, None] / total * v.columns[:, None, :]
