"""Sophia-G: a momentum over an estimated curvature, clipped entry by entry.

Differs from `optax.contrib.sophia` (Sophia-H): the estimate comes from outside,
any estimate of a diagonal, and `gauss_newton_bartlett_diagonal` first of all;
the momentum has no bias correction, as in the authors' code. That code takes
the estimate after a step, at the new parameters. These are the parameters of
the next call, so here the estimate is taken at the start of the next call.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common import checks, meshes, moments
from ..common.options import also_takes, takes
from ..common.tree import by_path, is_function, like, upcast, zeros
from .decay import Decay, descend


class SophiaState(NamedTuple):
  """State of `scale_by_sophia_g`."""

  count: jax.Array  # int32 []: calls.
  mu: Any  # Average m of the gradients, like params, float32 or `mu_dtype`.
  nu: Any  # Average h of the estimates, like params, float32.
  unclipped: jax.Array  # float32 []: share of entries with |u| < 1, last call.


@dataclasses.dataclass(frozen=True, eq=False)
class SophiaOptions:
  """Options of `scale_by_sophia_g`.

  Attributes:
    b1: Decay of m, in [0, 1).
    b2: Decay of h, in [0, 1), for each estimate.
    rho: A step that is not clipped is Newton's step times the learning rate
      over rho, > 0. The larger rho, the fewer entries are clipped.
    batch_tokens: B. 1 for an estimate of the diagonal itself, as
      `gauss_newton_bartlett_diagonal` returns. The number of examples (tokens)
      of the curvature batch for the square of the gradient of a mean loss with
      drawn labels, which is B times too small.
    estimate_every: Calls k between two estimates, >= 1.
    estimate_first: True takes an estimate at the first call as well, as the
      paper's algorithm does. False: h is 0 for the first k calls, whose steps
      are signs, as in the authors' code.
    eps: Added to rho B h.
    mu_dtype: Type of m; None is float32.
  """

  b1: float = 0.965
  b2: float = 0.99
  rho: float = 0.04
  _: dataclasses.KW_ONLY
  batch_tokens: float = 1.0
  estimate_every: int = 10
  estimate_first: bool = False
  eps: float = 1e-15
  mu_dtype: Any | None = None

  def __post_init__(self):
    """Raises for any argument out of range."""
    for name in ("b1", "b2"):
      checks.decay(name, getattr(self, name))
    for name in ("rho", "batch_tokens", "eps"):
      checks.positive(name, getattr(self, name))
    checks.count("estimate_every", self.estimate_every)


@takes(SophiaOptions)
def scale_by_sophia_g(
  o: SophiaOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Divides a momentum by a curvature, and clips each entry at 1.

      h = b2 h + (1 - b2) estimate               at one of k calls, before m
      m = b1 m + (1 - b1) g
      u = sign(m) min(|m| / (rho B h + eps), 1)

  `update(grads, state, params, *, estimate)`: a tree like params, or a function
  without arguments that makes this tree. The function is called at the calls
  that are due only, inside of `jax.lax.cond`:

      def estimate():
        return optim.gauss_newton_bartlett_diagonal(
          model_fn, params, curvature_batch, key
        )

      updates, state = tx.update(grads, state, params, estimate=estimate)

  An array cannot be a function: to pass one through the arguments of `jax.jit`,
  take `jax.tree_util.Partial`. Under `jax.vmap` the function runs at each call.

  An entry of an estimate that is not finite leaves its h as it was. Where h is
  below 0, as Hutchinson's estimates may be, h counts as 0.

  Returns:
    A transform whose updates are a direction of ascent, like gradients.

  Raises:
    ValueError: For an argument out of range. At `update`, without an estimate,
      or for an estimate whose paths or shapes are not those of the gradients.

  References:
    Liu et al., "Sophia", 2023, https://arxiv.org/abs/2305.14342
  """

  def init_fn(params):
    count, share = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    return SophiaState(count, zeros(params, o.mu_dtype), zeros(params), share)

  def update_fn(updates, state, params=None, *, estimate=None, **extra_args):
    del params, extra_args
    if estimate is None:
      raise ValueError(
        "estimate=None: Sophia divides by a curvature that it cannot make. "
        "Call tx.update(grads, state, params, estimate=function), with e.g. "
        "lambda: optim.gauss_newton_bartlett_diagonal(model_fn, params, batch, "
        "key); the function is called once in estimate_every calls."
      )
    due = state.count % o.estimate_every == 0
    if not o.estimate_first:
      due &= state.count > 0
    h = jax.lax.cond(
      due, lambda h: _average(h, estimate, o.b2), lambda h: h, state.nu
    )
    mu = jax.tree.map(
      lambda g, m: moments.average(m, g, o.b1), upcast(updates), state.mu
    )

    def ratio(m, h):
      bound = o.rho * o.batch_tokens * jnp.maximum(h, 0) + o.eps
      return (jnp.abs(m) / bound).astype(m.dtype)

    ratios = jax.tree.map(ratio, mu, h)
    steps = jax.tree.map(
      lambda m, r: jnp.sign(m) * jnp.minimum(r, 1), mu, ratios
    )
    count: Any = optax.safe_increment(state.count)
    kept = SophiaState(count, like(mu, state.mu), h, _unclipped(ratios))
    return like(steps, updates), kept

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@also_takes(scale_by_sophia_g)
def sophia_g(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.0,
  mask: Any | None = None,
  **direction: Any,
) -> optax.GradientTransformationExtraArgs:
  """Sophia-G with decoupled weight decay; see `scale_by_sophia_g`.

  Args:
    learning_rate: Number, array or schedule; the largest step of an entry.
    weight_decay: weight_decay * params is added to the direction; number,
      schedule or `Decay`. The authors' default is 0.1.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays, biases and gains of
      norms as well.
    **direction: The arguments of `scale_by_sophia_g`.

  Returns:
    A transform; its `update` needs `estimate`, and `params` unless
    `weight_decay` is 0.

  Raises:
    ValueError: As for `scale_by_sophia_g`.
  """
  return descend(
    scale_by_sophia_g(**direction), learning_rate, weight_decay, mask
  )


def _average(nu: Any, estimate: Any | Callable[[], Any], decay: Any) -> Any:
  """Moves h by an estimate, where the estimate is finite."""
  new = estimate() if is_function(estimate) else estimate
  known, wanted = by_path(new), by_path(nu)
  for path, h in wanted.items():
    shape = jnp.shape(known[path]) if path in known else None
    if shape != h.shape:
      raise ValueError(
        f"estimate{path} has shape {shape}, but the gradient {h.shape}. An "
        "estimate is a tree like params (None: it has no such leaf), e.g. "
        "optim.gauss_newton_bartlett_diagonal(model_fn, params, batch, key)."
      )
  # A mask outside has taken leaves out of the gradients only.
  leaves = [jnp.asarray(known[path]) for path in wanted]
  new = jax.tree.unflatten(jax.tree.structure(nu), leaves)
  new = meshes.placed(like(new, nu), nu)
  return jax.tree.map(
    lambda h, x: jnp.where(jnp.isfinite(x), moments.average(h, x, decay), h),
    nu,
    new,
  )


def _unclipped(ratios: Any) -> jax.Array:
  """Share of the entries below the bound."""
  size = sum(r.size for r in jax.tree.leaves(ratios))
  inside = [jnp.sum(r < 1, dtype=jnp.float32) for r in jax.tree.leaves(ratios)]
  return sum(inside, jnp.zeros((), jnp.float32)) / max(size, 1)
