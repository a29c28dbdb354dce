"""Adam on a `Split`: the element-wise rule of SOAP, full or factorised.

optax's Adam with float32 arithmetic whatever is stored, and with a second
moment that may be kept as row and column sums for the stacked matrices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common.tree import work_dtype, zeros
from .options import Storage
from .stacks import Stacks, still, turning


class Sums(NamedTuple):
  """Factorised second moment: averages of row and column sums of G^2."""

  rows: jax.Array  # [S, I]
  columns: jax.Array  # [S, O]


class AdamState(NamedTuple):
  """State of `scale_by_split_adam`."""

  count: jax.Array  # int32 []: updates made.
  mu: Any  # Split of first moments, the stacks of which are `Momentum`.
  nu: Any  # Split of second moments; `Sums` for factorised stacks.


def with_momentum(
  tx: optax.GradientTransformation, fields: tuple[str, ...]
) -> optax.GradientTransformationExtraArgs:
  """Marks stacks in some fields of a transform's state as `Momentum`.

  Args:
    tx: Any transform of a `Split`.
    fields: Names of the fields of its state, or of states within, that are
      sums of gradients.

  Returns:
    The transform, whose state says by type what turns with a basis.
  """
  tx = optax.with_extra_args_support(tx)

  def mark(path, node):
    names = {getattr(key, "name", getattr(key, "key", None)) for key in path}
    return turning(node) if names & set(fields) else node

  def marked(state):
    return jax.tree_util.tree_map_with_path(
      mark, state, is_leaf=lambda x: isinstance(x, Stacks)
    )

  def init_fn(params):
    return marked(tx.init(params))

  def update_fn(updates, state, params=None, **extra_args):
    updates, state = tx.update(updates, still(state), params, **extra_args)
    return updates, marked(state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def bias_scale(count: jax.Array, b1: Any, b2: Any) -> jax.Array:
  """sqrt(1 - b2^t) / (1 - b1^t), both of Adam's corrections in one."""
  return jnp.sqrt(1 - b2**count) / (1 - b1**count)


def scale_by_split_adam(
  b1: float,
  b2: float,
  eps: float,
  eps_root: float = 0.0,
  *,
  bias_correction: bool = True,
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
    eps_root: Added within the square root; > 0 where the update itself is
      differentiated, since the root of 0 has no derivative.
    bias_correction: False leaves both corrections out.
    factorized: Keep v of the stacks as `Sums`.
    storage: Types of m and v.

  Returns:
    A transform of `Split`s, whose leaves it takes as one matrix a stack entry.
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
    return AdamState(jnp.zeros((), jnp.int32), turning(mu), nu)

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
      v = _dense(v)
      m, v = m.astype(work_dtype(g)), v.astype(work_dtype(g))
      root = jnp.sqrt(v + within) if rooted else jnp.sqrt(v)
      return (scale * m / (root + small)).astype(g.dtype)

    mu = jax.tree.map(first, updates, still(state.mu))
    nu = jax.tree.map(second, updates, state.nu)
    updates = jax.tree.map(direction, updates, mu, nu)
    return updates, AdamState(count, turning(mu), nu)

  return optax.GradientTransformation(init_fn, update_fn)


def _dense(v):
  """v_ij = a_i c_j / sum(a), or `v` itself if it is not factorised."""
  if not isinstance(v, Sums):
    return v
  total = jnp.sum(v.rows, axis=1)[:, None, None]
  # No gradient yet: 0 * 0 / tiny = 0.
  total = jnp.maximum(total, jnp.finfo(total.dtype).tiny)
  return v.rows[:, :, None] / total * v.columns[:, None, :]
