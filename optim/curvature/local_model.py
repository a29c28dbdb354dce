"""Sums of a loss and of its local models over a batch, and their gradients.

With z_0 the outputs at the parameters theta_t, J their Jacobian there, and d a
displacement, the local models of the loss are

    quadratic     ell(z_0) + <g, u> + <u, H u> / 2,  u = J d
    prox_linear   ell(z_0 + u)
    nonlinear     ell(f(theta_t + d)), no model at all

with g and H the slope and the Hessian of ell at z_0. The gradient in d is J^T
ct with one cotangent ct, which is g + H u or the slope of ell at z_0 + u. The
cost is one pass forward that carries tangents along, and one pass back.

All results are sums over positions, so that parts of a batch add up. A mean is
the sum divided by the weight.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from ..common.meshes import zero_result
from ..common.tree import like, upcast
from . import losses
from .head import ChunkedHead

Mode = Literal["quadratic", "prox_linear", "nonlinear"]
MODES = get_args(Mode)

# (loss, z, u, targets) -> (values at each position, cotangent or None).
Rule = Callable[..., tuple[tuple[jax.Array, ...], Any]]


class Sums(NamedTuple):
  """Sums over a batch."""

  values: tuple[jax.Array, ...]  # Scalars; the rule says which.
  weight: jax.Array  # []
  grad: Any  # Like params, of the first value; None if not asked for.


def value_rule(loss, z, u, y):
  """The loss and its slope at z."""
  del u
  return (loss.value(z, y),), loss.slope(z, y)


def prox_linear_rule(loss, z, u, y):
  """The loss and its slope at z + u."""
  z = jax.tree.map(jnp.add, z, u)
  return (loss.value(z, y),), loss.slope(z, y)


def quadratic_rule(loss, z, u, y):
  """The Taylor model of the loss at z, for the displacement u."""
  slope, product = loss.slope(z, y), loss.curve(z, u, y)
  cotangent = jax.tree.map(jnp.add, slope, product)
  value = loss.value(z, y)
  shape = value.shape
  value = value + _inner(slope, u, shape) + _inner(product, u, shape) / 2
  return (value,), cotangent


def curvature_rule(loss, z, u, y):
  """<u, H u> / 2, whose gradient is J^T H J d."""
  product = loss.curve(z, u, y)
  shape = jax.eval_shape(loss.value, z, y).shape
  return (_inner(product, u, shape) / 2,), product


def taylor_rule(loss, z, u, y):
  """The terms of the Taylor model: value, <g, u>, <u, H u>."""
  value = loss.value(z, y)
  slope = _inner(loss.slope(z, y), u, value.shape)
  curve = _inner(loss.curve(z, u, y), u, value.shape)
  return (value, slope, curve), None


def change_rule(mode: Mode) -> Rule:
  """(loss at z, value of the local model at u)."""

  def rule(loss, z, u, y):
    (value,), _ = RULES[mode](loss, z, u, y)
    return (loss.value(z, y), value), None

  return rule


RULES = dict(
  quadratic=quadratic_rule, prox_linear=prox_linear_rule, nonlinear=value_rule
)


def sums(
  model_fn: Callable[[Any, Any], Any],
  loss_fn: Callable[[Any, Any], jax.Array],
  params: Any,
  tangents: Any | None,
  batch: Any,
  rule: Rule,
  *,
  grad: bool = True,
) -> Sums:
  """Sums of the rule's values, and the gradient: one pass forward, one back.

  Args:
    model_fn: (params, batch) -> outputs, or a `ChunkedHead`.
    loss_fn: A `MeanLoss` or a plain function.
    params: theta_t.
    tangents: d, like params; None for rules without u.
    batch: Any tree.
    rule: See `Rule`.
    grad: False leaves the pass back out; the gradient is then None.
  """
  body_fn, head = parts(model_fn)
  body = push(lambda p: body_fn(p, batch), params, tangents, pull=grad)
  values, weight, ct, ct_head = head_sums(
    model_fn, loss_fn, params, tangents, batch, body.z, body.u, rule, grad
  )
  if not grad:
    return Sums(values, weight, None)
  gradient = upcast(body.pull(ct)[0])
  if head is not None:
    gradient = head.add(gradient, ct_head)
  return Sums(values, weight, gradient)


def local_sums(
  model_fn: Callable[[Any, Any], Any],
  loss_fn: Callable[[Any, Any], jax.Array],
  params: Any,
  delta: Any,
  batch: Any,
  mode: Mode,
) -> Sums:
  """Value and gradient, at delta, of the local model of a mode."""
  if mode == "nonlinear":
    params, delta = displaced(params, delta), None
  return sums(model_fn, loss_fn, params, delta, batch, RULES[mode])


def displaced(params: Any, delta: Any) -> Any:
  """params + delta in the dtypes of params, added in float32 or wider."""
  return jax.tree.map(
    lambda p, d: (p.astype(jnp.promote_types(p.dtype, d.dtype)) + d).astype(
      p.dtype
    ),
    params,
    upcast(delta),
  )


class Pushed(NamedTuple):
  """Outputs, tangents (or None) and pull-back (or None) of a function."""

  z: Any
  u: Any
  pull: Any


def push(f, params: Any, tangents: Any | None, *, pull: bool) -> Pushed:
  """Runs f forward once, and keeps the pull-back.

  The tangent map runs inside the function that is reversed, and is not reversed
  itself. So with rematerialisation the forward pass is recomputed once for
  both, and not once for each.
  """

  def both(p):
    if tangents is None:
      return f(p), None
    z, u = jax.jvp(f, (p,), (like(tangents, p),))
    return z, jax.lax.stop_gradient(u)

  with explained_forward_mode():
    if not pull:
      return Pushed(*both(params), None)
    z, back, u = jax.vjp(both, params, has_aux=True)
  return Pushed(z, u, back)


def head_sums(
  model_fn,
  loss_fn,
  params,
  tangents,
  batch,
  hidden,
  hidden_dot,
  rule,
  grad,
  head_moves=True,
):
  """(values, weight, cotangent of hidden, cotangent of the head or None).

  Without a chunked head, `hidden` is the outputs. If `head_moves` is False, the
  head has no tangent, and its cotangent is not computed.
  """
  loss = losses.as_loss(loss_fn)
  targets, weights = loss.targets_fn(batch)
  _, head = parts(model_fn)
  if head is None:
    values, weight, ct = _loss_sums(
      loss, hidden, hidden_dot, targets, weights, rule
    )
    ct = like(ct, hidden) if grad else None
    return values, weight, ct, None
  _check_chunkable(loss_fn, hidden)
  if weights is None:
    weights = jnp.ones(hidden.shape[:2], jnp.float32)
  matrix = head.take(params)
  matrix_dot = None if tangents is None else head.take(tangents)

  def part(chunk):
    h, h_dot, y, w = chunk
    if head_moves:
      at = (matrix, h)
      dots = None if tangents is None else (matrix_dot, h_dot)
    else:
      at, dots = (h,), (h_dot,)
    pushed = push(
      lambda p: head.head_fn(p[0] if head_moves else matrix, p[-1]),
      at,
      dots,
      pull=grad,
    )
    values, weight, ct = _loss_sums(loss, pushed.z, pushed.u, y, w, rule)
    if not grad:
      return (values, weight, None), None
    (cts,) = pushed.pull(like(ct, pushed.z))
    ct_matrix = upcast(cts[0]) if head_moves else None
    return (values, weight, ct_matrix), cts[-1]

  def add(total, chunk):
    new, ct_h = part(chunk)
    return jax.tree.map(jnp.add, total, new), ct_h

  chunks = head.chunks((hidden, hidden_dot, targets, weights))
  first = jax.tree.map(lambda x: x[0], chunks)
  zeros = zero_result(lambda chunk: part(chunk)[0], first)
  (values, weight, ct_matrix), ct = jax.lax.scan(add, zeros, chunks)
  if grad:
    ct = head.joined(ct, hidden.shape[1])
  return values, weight, ct, ct_matrix


def parts(model_fn: Any) -> tuple[Callable[[Any, Any], Any], Any]:
  """(what makes outputs or hidden activations, the `ChunkedHead` or None)."""
  if isinstance(model_fn, ChunkedHead):
    return model_fn.body_fn, model_fn
  return model_fn, None


@contextlib.contextmanager
def explained_forward_mode():
  """Explains the error of an operation without a forward-mode derivative."""
  try:
    yield
  except (TypeError, NotImplementedError) as error:
    text = str(error)
    known = ("forward-mode", "custom_vjp", "Differentiation rule", "jvp")
    if not any(word in text for word in known):
      raise
    raise ValueError(
      "model_fn contains an operation without a forward-mode derivative: "
      f"{text.splitlines()[0]} Gauss-Newton needs Jacobian-vector products. "
      "Fused attention kernels and whatever else is defined by jax.custom_vjp "
      "has none: use a plain XLA form (in lm, config.model.attention='xla'), "
      "or define the operation by jax.custom_jvp."
    ) from error


def _loss_sums(loss, z, u, targets, weights, rule):
  """(weighted sums of the rule's values, weight, weighted cotangent)."""
  z, u = upcast(z), upcast(u)
  values, ct = rule(loss, z, u, targets)
  totals = [losses.weighted_sum(value, weights) for value in values]
  if ct is not None:
    ct = losses.weigh(ct, weights)
  return tuple(total for total, _ in totals), totals[0][1], ct


def _inner(x, y, shape):
  """<x, y> at each position: the sum over the axes that `shape` lacks."""
  products = jax.tree.map(
    lambda a, b: jnp.sum(a * b, axis=tuple(range(len(shape), a.ndim))), x, y
  )
  return jax.tree.reduce(jnp.add, products)


def _check_chunkable(loss_fn, hidden):
  if not isinstance(loss_fn, losses.MeanLoss):
    raise ValueError(
      "A chunked head sees a part of the outputs at a time, so loss_fn must be "
      "a mean over positions: optim.softmax_cross_entropy, optim.squared_error "
      f"or optim.mean_loss; got {loss_fn!r}."
    )
  if jnp.ndim(hidden) < 3:
    raise ValueError(
      "The body of a chunked head must return hidden activations [B, L, D]; "
      f"got shape {jnp.shape(hidden)}."
    )
