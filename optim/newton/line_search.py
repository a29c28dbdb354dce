"""How far to go along a displacement: losses on separate data.

All candidates see the same batches, so the noise of the data cancels in their
comparison. Therefore a search on a quarter as many batches as the solve had
chooses as well as a search on equally many.
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
  """Takes the candidate alpha of least loss, among 1, r, r^2, ...

  Attributes:
    num: Number of candidates, >= 1. None is 5. With a layerwise scope of K
      groups, None is at least as many as reach 1 / K, because K groups that do
      the same work overshoot K times.
    ratio: r, in (0, 1).
    include_zero: True adds the candidate alpha = 0, which rejects the
      displacement.
    num_batches: Number of batches that the search gets, >= 1. None is a quarter
      of the inner steps, and at least 1.
  """

  num: int | None = None
  ratio: float = 2**-0.5
  include_zero: bool = False
  num_batches: int | None = None


class QuadraticLineSearch(NamedTuple):
  """Takes the minimiser of the quadratic model along the displacement.

  alpha = -<g, d> / (<d, G d> + damping |d|^2), cut to [0, max_alpha]. The cost
  is one pass forward with tangents, which has the products of 3 forward passes
  for any number of groups.

  Attributes:
    max_alpha: Largest alpha, > 0.
    num_batches: As for `LineSearch`.
  """

  max_alpha: float = 1.0
  num_batches: int | None = None


AnyLineSearch = LineSearch | QuadraticLineSearch | None
DEFAULT = LineSearch()


def check(search: Any) -> AnyLineSearch:
  """Returns the search that an argument means: an instance, or None."""
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
  """The number of batches that a search gets."""
  if search is None:
    return 0
  return search.num_batches or max(1, inner_steps // 4)


def candidates(search: AnyLineSearch, num_groups: int = 1) -> np.ndarray:
  """All alpha, [num]. Without a `LineSearch`: alpha = 1, for the report.

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
  """The losses of one batch that `gauss_newton_microsteps` needs to search.

  Args:
    model_fn: As for `ggn_vector_product`.
    loss_fn: As for `ggn_vector_product`.
    params: The parameters.
    delta: `state.delta`.
    batch: One batch.
    line_search: The same as the transform's.
    scope: The same as the transform's.

  Returns:
    `ls_losses`, the mean losses at the candidates, and `ls_weight`, their
    weight.
  """
  batches = jax.tree.map(lambda x: jnp.asarray(x)[None], batch)
  num_groups = groups.num_groups(scope, params)
  alphas = candidates(check(line_search), num_groups)
  return losses_along(model_fn, loss_fn, params, delta, alphas, batches)


def choose(alphas: Any, values: jax.Array) -> jax.Array:
  """The alpha of least loss, among the finite losses.

  If no loss is finite, alpha is 0.
  """
  values = jnp.where(jnp.isfinite(values), values, jnp.inf)
  best = jnp.argmin(values)
  return jnp.where(
    jnp.isfinite(values[best]), jnp.asarray(alphas)[best], 0.0
  ).astype(jnp.float32)


def model_sums(
  model_fn, loss_fn, params, delta, batches, rule
) -> tuple[tuple[jax.Array, ...], jax.Array]:
  """(means of the rule's values at delta, weight), by forward passes only."""

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
