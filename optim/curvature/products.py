"""Curvature of a loss of a model, by products with vectors only.

A model is a function `model_fn(params, batch) -> outputs`. A loss is a function
`loss_fn(outputs, batch) -> scalar`: the mean over the batch, convex in the
outputs. params, outputs and batch are any trees. With J the Jacobian of the
outputs and H the Hessian of the loss in the outputs, the Gauss-Newton matrix
is G = J^T H J. No matrix is ever formed.

Outputs, tangents and cotangents of the loss are float32 or wider, whatever type
the model computes in. The results are float32 or wider as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..common import checks
from ..common.tree import dot, like, upcast
from . import groups, local_model, losses
from .groups import Scope
from .local_model import Mode

ModelFn = Callable[[Any, Any], Any]
LossFn = Callable[[Any, Any], jax.Array]


def ggn_vector_product(
  model_fn: ModelFn,
  loss_fn: LossFn,
  params: Any,
  batch: Any,
  v: Any,
  *,
  damping: float | jax.Array = 0.0,
) -> Any:
  """(G + damping I) v: the Gauss-Newton matrix G = J^T H J times a vector.

  One forward pass carries the tangents, and one pass goes back: 5 times the
  matrix products of a forward pass.

  Args:
    model_fn: (params, batch) -> outputs, or a `chunked_lm_head`.
    loss_fn: (outputs, batch) -> scalar; `softmax_cross_entropy` and
      `squared_error` have their product with H in closed form.
    params: The point at which G is taken.
    batch: Any tree.
    v: Tree like params.
    damping: Multiple of the identity that is added, >= 0.

  Returns:
    A tree like params, float32 or wider.

  Raises:
    ValueError: For a v unlike params, for a loss that is not a scalar, or for a
      model without a forward-mode derivative.

  References:
    Schraudolph, "Fast curvature matrix-vector products for second-order
    gradient descent", 2002.
  """
  checks.positive("damping", damping, zero_too=True)
  check_like_params("v", v, params)
  total = local_model.sums(
    model_fn, loss_fn, params, v, batch, local_model.curvature_rule
  )
  weight = losses.safe(total.weight)
  return jax.tree.map(
    lambda g, x: g / weight + damping * x, total.grad, upcast(v)
  )


def hvp(
  model_fn: ModelFn,
  loss_fn: LossFn,
  params: Any,
  batch: Any,
  v: Any,
  *,
  damping: float | jax.Array = 0.0,
) -> Any:
  """(Hessian + damping I) v: the derivative of the gradient along v.

  The Hessian of the loss in the parameters is G plus the curvature of the
  model, weighted by the slope of the loss. The Hessian may be indefinite.

  Args:
    model_fn: As for `ggn_vector_product`.
    loss_fn: As for `ggn_vector_product`.
    params: The point at which the Hessian is taken.
    batch: Any tree.
    v: Tree like params.
    damping: Multiple of the identity that is added, >= 0.

  Returns:
    A tree like params, float32 or wider.

  Raises:
    ValueError: As `ggn_vector_product`.
  """
  checks.positive("damping", damping, zero_too=True)
  check_like_params("v", v, params)

  def grad(p):
    total = local_model.sums(
      model_fn, loss_fn, p, None, batch, local_model.value_rule
    )
    weight = losses.safe(total.weight)
    return jax.tree.map(lambda g: g / weight, total.grad)

  with local_model.explained_forward_mode():
    _, product = jax.jvp(grad, (params,), (like(v, params),))
  return jax.tree.map(lambda h, x: h + damping * x, product, upcast(v))


def local_value_and_grad(
  model_fn: ModelFn,
  loss_fn: LossFn,
  params: Any,
  delta: Any,
  batch: Any,
  *,
  mode: Mode = "quadratic",
  scope: Scope = "full",
  group_axis: str | None = None,
  damping: float | jax.Array = 0.0,
  damping_at: Any | None = None,
) -> tuple[jax.Array, Any]:
  r"""Value and gradient, in delta, of a local model of the loss at params.

      quadratic     ell(z) + <g, u> + <u, H u> / 2       u = J delta
      prox_linear   ell(z + u)
      nonlinear     ell(f(params + delta)), the loss itself

  plus damping / 2 |delta - damping_at|^2, which is a sum and not a mean. At
  delta = 0 all three have the plain gradient. "quadratic" and "prox_linear"
  cost the matrix products of 5 forward passes. "nonlinear" costs 3, as a
  gradient.

  With a layerwise scope, each group of leaves has a model of its own, in which
  only the group's part of delta is displaced. The group's leaves get the
  gradient of this model. The value is the mean over the groups.

  Args:
    model_fn: As for `ggn_vector_product`.
    loss_fn: As for `ggn_vector_product`.
    params: The point at which the local model is made.
    delta: Displacement from params, a tree like params; float32 or wider stays.
    batch: Any tree.
    mode: "quadratic", "prox_linear" or "nonlinear", see above.
    scope: "full", or labels of groups, as for `gauss_newton`.
    group_axis: Mesh axis that shares the groups out, as for `gauss_newton`.
    damping: >= 0.
    damping_at: Centre of the damping, a displacement like delta; None is 0.

  Returns:
    The value [] and the gradient like params, float32 or wider.

  Raises:
    ValueError: As for `ggn_vector_product`. For an unknown mode, or for labels
      that are not a partition of the leaves.

  References:
    Abreu et al., "The potential of second-order optimization for LLMs: a study
    with full Gauss-Newton", 2025, https://arxiv.org/abs/2510.09378
  """
  checks.choice("mode", mode, local_model.MODES)
  checks.positive("damping", damping, zero_too=True)
  check_like_params("delta", delta, params)
  total = groups.scoped_sums(
    model_fn, loss_fn, params, delta, batch, mode, scope, group_axis
  )
  weight = losses.safe(total.weight)
  value, grad = total.values[0] / weight, total.grad
  grad = jax.tree.map(lambda g: g / weight, grad)
  return add_damping(value, grad, delta, damping, damping_at)


def loss_sums(
  model_fn: ModelFn, loss_fn: LossFn, params: Any, batch: Any
) -> tuple[jax.Array, jax.Array]:
  """Sum of the loss over a batch and its weight, forward only.

  A plain function has weight 1.

  Returns:
    Two scalars. The mean loss of several batches is the quotient of the sums.
  """
  total = local_model.sums(
    model_fn, loss_fn, params, None, batch, local_model.value_rule, grad=False
  )
  return total.values[0], total.weight


def add_damping(
  value: jax.Array,
  grad: Any,
  delta: Any,
  damping: float | jax.Array,
  damping_at: Any | None = None,
) -> tuple[jax.Array, Any]:
  """Adds damping / 2 |delta - damping_at|^2 and its gradient."""
  if isinstance(damping, (int, float)) and damping == 0:
    return value, grad
  away = upcast(delta)
  if damping_at is not None:
    away = jax.tree.map(jnp.subtract, away, upcast(damping_at))
  value = value + damping / 2 * dot(away, away)
  return value, jax.tree.map(lambda g, x: g + damping * x, grad, away)


class Linearized(NamedTuple):
  """The linear model of a network at its parameters; see `linearize_at`."""

  outputs: Any  # z; with a chunked head, the hidden activations [B, L, D].
  value: jax.Array  # [], the loss.
  grad: Any  # Like params: the gradient of the loss.
  ggn: Callable[[Any], Any]  # v -> G v.
  jvp: Callable[[Any], Any]  # v -> J v, J being the Jacobian of `outputs`.
  vjp: Callable[[Any], Any]  # ct -> J^T ct.


def linearize_at(
  model_fn: ModelFn, loss_fn: LossFn, params: Any, batch: Any
) -> Linearized:
  """Linearises the network once, for several products on one batch.

  K products cost 1 + 4 K forward passes instead of 5 K. The intermediate
  results that the backward pass needs stay in memory. With rematerialised
  layers each product recomputes the forward pass twice, and
  `ggn_vector_product` is cheaper.

  Args:
    model_fn: As for `ggn_vector_product`.
    loss_fn: As for `ggn_vector_product`.
    params: The point at which the network is linearised.
    batch: Any tree.

  Returns:
    See `Linearized`. Results are float32 or wider, except for `outputs` and
    `jvp`.

  Raises:
    ValueError: As for `ggn_vector_product`.
  """
  body_fn, head = local_model.parts(model_fn)
  with local_model.explained_forward_mode():
    outputs, push = jax.linearize(lambda p: body_fn(p, batch), params)
  transposed = jax.linear_transpose(push, params)

  def jvp(v):
    with local_model.explained_forward_mode():
      return push(like(v, params))

  def vjp(ct):
    return upcast(transposed(like(ct, outputs))[0])

  def mean(v, rule):
    u = None if v is None else jvp(v)
    values, weight, ct, ct_head = local_model.head_sums(
      model_fn, loss_fn, params, v, batch, outputs, u, rule, True
    )
    grad = vjp(ct) if head is None else head.add(vjp(ct), ct_head)
    weight = losses.safe(weight)
    return values[0] / weight, jax.tree.map(lambda g: g / weight, grad)

  def ggn(v):
    check_like_params("v", v, params)
    return mean(v, local_model.curvature_rule)[1]

  value, grad = mean(None, local_model.value_rule)
  return Linearized(outputs, value, grad, ggn, jvp, vjp)


def check_like_params(name: str, tree: Any, params: Any) -> None:
  """Raises unless a tree has the structure and the shapes of params."""
  want, have = jax.tree.structure(params), jax.tree.structure(tree)
  if want != have:
    raise ValueError(f"{name} must be a tree like params, {want}; got {have}.")
  for (path, p), x in zip(
    jax.tree_util.tree_leaves_with_path(params),
    jax.tree.leaves(tree),
    strict=True,
  ):
    if jnp.shape(x) != jnp.shape(p):
      raise ValueError(
        f"{name}{jax.tree_util.keystr(path)} has shape {jnp.shape(x)}; its "
        f"parameter has {jnp.shape(p)}."
      )
    if not jnp.issubdtype(p.dtype, jnp.floating):
      raise ValueError(
        f"params{jax.tree_util.keystr(path)} is {p.dtype}; only floating "
        "leaves have derivatives: put the others into the batch."
      )
