"""How far to go along a displacement: losses on data kept for the purpose.

All candidates see the same batches, so that the noise of the data cancels in
their comparison: a quarter of the batches that the displacement was solved on
chooses as well as all of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..common import checks
from ..common.meshes import zero_result
from ..curvature import groups, local_model
from ..curvature.losses import safe
from ..curvature.products import loss_sums


class LineSearch(NamedTuple):
  """The candidate alpha of least loss, of 1, r, r^2, ...

  Attributes:
    num: Candidates, >= 1. None is 5, or as many as it takes to reach 1 / K
      with a layerwise scope of K groups: groups that do the same work overshoot
      K times.
    ratio: r, in (0, 1).
    include_zero: Also alpha = 0, which rejects the displacement.
    num_batches: Batches it is given, >= 1; None is a quarter of the inner
      steps, at least 1.
  """

  num: int | None = None
  ratio: float = 2**-0.5
  include_zero: bool = False
  num_batches: int | None = None


class QuadraticLineSearch(NamedTuple):
  """The minimiser along the displacement of the quadratic model.

  alpha = -<g, d> / (<d, G d> + damping |d|^2), cut to [0, max_alpha]: one pass
  forward with tangents, 3 forward passes whatever the number of groups.

  Attributes:
    max_alpha: > 0.
    num_batches: As of `LineSearch`.
  """

  max_alpha: float = 1.0
  num_batches: int | None = None


AnyLineSearch = LineSearch | QuadraticLineSearch | None
DEFAULT = LineSearch()


def check(search: Any) -> AnyLineSearch:
  """The search meant by an argument: one of the two classes, or None."""
  if search == "quadratic":
    return QuadraticLineSearch()
  if isinstance(search, LineSearch):
    if search.num is not None:
      checks.count("line_search.num", search.num)
    if not 0 < search.ratio < 1:
      raise ValueError(
        f"line_search.ratio={search.ratio} must be in (0, 1), e.g. 2**-0.5."
      )
  elif isinstance(search, QuadraticLineSearch):
    checks.positive("line_search.max_alpha", search.max_alpha)
  elif search is not None:
    raise ValueError(
      f"line_search={search!r} is not known; take optim.LineSearch(), "
      "optim.QuadraticLineSearch(), 'quadratic' or None."
    )
  if search is not None and search.num_batches is not None:
    checks.count("line_search.num_batches", search.num_batches)
  return search


def num_batches(search: AnyLineSearch, inner_steps: int) -> int:
  """Batches that a search is given."""
  if search is None:
    return 0
  return search.num_batches or max(1, inner_steps // 4)


def candidates(search: AnyLineSearch, num_groups: int = 1) -> np.ndarray:
  """All alpha, [num]; of other searches, the one whose loss is reported.

  Raises:
    ValueError: If a given `num` does not reach 1 / num_groups.
  """
  if not isinstance(search, LineSearch):
    return np.ones(1, np.float32)
  # Nudged: 1 / 4 is reached by 2^(-4/2), whatever the logarithm rounds to.
  needed = 1 + int(np.ceil(np.log(num_groups) / -np.log(search.ratio) - 1e-6))
  num = search.num or max(5, needed)
  if num < needed:
    raise ValueError(
      f"line_search.num={num} ends at alpha={search.ratio ** (num - 1):.3f}, "
      f"but {num_groups} groups may overshoot {num_groups} times: take "
      f"num >= {needed}, or None."
    )
  alphas = search.ratio ** np.arange(num)
  if search.include_zero:
    alphas = np.append(alphas, 0.0)
  return alphas.astype(np.float32)


def losses_along(
  model_fn: Callable[[Any, Any], Any],
  loss_fn: Callable[[Any, Any], jax.Array],
  params: Any,
  delta: Any,
  alphas: Any,
  batches: Any,
) -> tuple[jax.Array, jax.Array]:
  """Mean losses at params + alpha delta for all alpha, one after the other.

  Args:
    model_fn: As for `ggn_vector_product`.
    loss_fn: As for `ggn_vector_product`.
    params: Where the line starts.
    delta: Its direction, like params.
    alphas: [num]
    batches: Batches along a leading axis.

  Returns:
    Losses [num], and the weight of the batches [].
  """

  def mean(alpha):
    step = jax.tree.map(lambda d: (alpha * d).astype(d.dtype), delta)
    moved = local_model.displaced(params, step)
    total, weight = over_batches(
      lambda b: loss_sums(model_fn, loss_fn, moved, b), batches
    )
    return total / safe(weight), weight

  values, weights = jax.lax.map(mean, jnp.asarray(alphas))
  return values, weights[0]


def line_search_losses(
  model_fn: Callable[[Any, Any], Any],
  loss_fn: Callable[[Any, Any], jax.Array],
  params: Any,
  delta: Any,
  batch: Any,
  line_search: LineSearch = DEFAULT,
  scope: groups.Scope = "full",
) -> tuple[jax.Array, jax.Array]:
  """What `gauss_newton_microsteps` wants of one batch of its line search.

  Args:
    model_fn: As for `ggn_vector_product`.
    loss_fn: As for `ggn_vector_product`.
    params: The parameters.
    delta: `state.delta`.
    batch: One batch.
    line_search: The same as the transform's.
    scope: The same as the transform's.

  Returns:
    `ls_losses`, mean losses at the candidates, and their weight `ls_weight`.
  """
  batches = jax.tree.map(lambda x: jnp.asarray(x)[None], batch)
  num_groups = groups.num_groups(scope, params)
  alphas = candidates(check(line_search), num_groups)
  return losses_along(model_fn, loss_fn, params, delta, alphas, batches)


def choose(alphas: Any, values: jax.Array) -> jax.Array:
  """The alpha of least loss; losses that are not finite do not count.

  0 if none is finite.
  """
  values = jnp.where(jnp.isfinite(values), values, jnp.inf)
  best = jnp.argmin(values)
  return jnp.where(
    jnp.isfinite(values[best]), jnp.asarray(alphas)[best], 0.0
  ).astype(jnp.float32)


def model_sums(
  model_fn, loss_fn, params, delta, batches, rule
) -> tuple[tuple[jax.Array, ...], jax.Array]:
  """(means of what a rule says at delta, weight): forward passes only."""

  def one(batch):
    total = local_model.sums(
      model_fn, loss_fn, params, delta, batch, rule, grad=False
    )
    return total.values, total.weight

  values, weight = over_batches(one, batches)
  return tuple(v / safe(weight) for v in values), weight


def over_batches(f: Callable[[Any], Any], batches: Any) -> Any:
  """The sum of f over the leading axis, one entry after the other."""
  first = jax.tree.map(lambda x: x[0], batches)
  if all(x.shape[0] == 1 for x in jax.tree.leaves(batches)):
    return f(first)

  def add(total, batch):
    return jax.tree.map(jnp.add, total, f(batch)), None

  return jax.lax.scan(add, zero_result(f, first), batches)[0]
