"""Losses that are weighted means over positions, and their curvature.

    ell(z) = sum_i w_i l(z_i, y_i) / sum_i w_i

with z_i the outputs at a position (the last axis), y_i the target and w_i the
weight of the position, 0 for padding. Gauss-Newton needs the value, the slope
dl/dz, and the product H u of the Hessian of l with a vector. It needs sums in
place of means, so that parts of a batch add up for any weights.

Any function (outputs, batch) -> scalar is accepted in place of a `MeanLoss`.
JAX differentiates the function. Such a loss has weight 1, and it cannot be
computed in parts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..common import checks
from ..common.tree import upcast


class MeanLoss(NamedTuple):
  """A weighted mean over positions; call it as (outputs, batch) -> scalar.

  Attributes:
    value: (z [..., V], y) -> l, [...].
    slope: (z, y) -> dl/dz, like z.
    curve: (z, u, y) -> H u with H the Hessian of l in z, like z.
    targets_fn: batch -> (y, w), both with the leading axes of z. If w is None,
      all weights are 1.
  """

  value: Callable[[Any, Any], jax.Array]
  slope: Callable[[Any, Any], Any]
  curve: Callable[[Any, Any, Any], Any]
  targets_fn: Callable[[Any], tuple[Any, Any]]

  def __call__(self, outputs: Any, batch: Any) -> jax.Array:
    """The mean over the positions of a batch."""
    targets, weights = self.targets_fn(batch)
    values = self.value(upcast(outputs), targets)
    total, weight = weighted_sum(values, weights)
    return total / safe(weight)


def softmax_cross_entropy(
  targets_fn: Callable[[Any], tuple[Any, Any]] | None = None,
  *,
  z_loss: float = 0.0,
) -> MeanLoss:
  r"""Cross-entropy of a softmax with a label, in closed form.

      l = s - z_y,                      s = logsumexp(z),  p = softmax(z)
      dl/dz = p - onehot(y),            H u = p * u - p <p, u>

  With `z_loss` c > 0, the loss has the additional term c s^2, which keeps s
  near 0 in large models. The Hessian 2 c (p p^T + s H) of the term is positive
  semi-definite where s >= 0.

  Args:
    targets_fn: batch -> (labels [...], weights [...] or None). None reads
      batch["targets"], and batch["weights"] if the batch has weights.
    z_loss: c, >= 0.

  Returns:
    The loss. An output of -inf is a class that does not exist.

  Raises:
    ValueError: For a negative z_loss. When the loss is called: for labels whose
      shape is not the shape of the outputs without the last axis.

  References:
    Chowdhery et al., "PaLM", 2022, https://arxiv.org/abs/2204.02311 (z_loss)
  """
  checks.positive("z_loss", z_loss, zero_too=True)
  c = z_loss

  def is_label(z, y):
    if jnp.shape(y) != z.shape[:-1]:
      raise ValueError(
        f"targets have shape {jnp.shape(y)} and outputs {z.shape}: a label "
        f"belongs to each position, shape {z.shape[:-1]}, and the last axis of "
        "the outputs is the classes."
      )
    # Not a gather: its transpose would write all logits once more.
    return jnp.arange(z.shape[-1], dtype=y.dtype) == y[..., None]

  def value(z, y):
    s = jax.nn.logsumexp(z, axis=-1)
    return s - jnp.sum(jnp.where(is_label(z, y), z, 0), -1) + c * s**2

  def slope(z, y):
    p = jax.nn.softmax(z)
    if c:
      p = p * (1 + 2 * c * jax.nn.logsumexp(z, axis=-1, keepdims=True))
    return p - is_label(z, y)

  def curve(z, u, y):
    del y  # Neither depends on the label.
    p = jax.nn.softmax(z)
    mean = jnp.sum(p * u, axis=-1, keepdims=True)
    product = p * (u - mean)
    if c:
      s = jax.nn.logsumexp(z, axis=-1, keepdims=True)
      product = product + 2 * c * (p * mean + s * product)
    return product

  return MeanLoss(value, slope, curve, targets_fn or _read_targets)


def squared_error(
  targets_fn: Callable[[Any], tuple[Any, Any]] | None = None,
) -> MeanLoss:
  """Half the squared distance of outputs and targets, l = |z - y|^2 / 2.

  Args:
    targets_fn: batch -> (targets like the outputs, weights without the last
      axis or None). None reads batch["targets"], and batch["weights"] if the
      batch has weights.

  Returns:
    The loss: a mean over all axes but the last. For outputs [4, 1] it is a mean
    over 4 positions.

  Raises:
    ValueError: When the loss is called: for targets of another shape than the
      outputs, or for outputs of one axis, which have no axis for positions.
  """

  def slope(z, y):
    if jnp.shape(y) != z.shape or z.ndim < 2:
      raise ValueError(
        f"targets have shape {jnp.shape(y)} and outputs {z.shape}; both must "
        "be [..., V], positions and then the outputs of one position: e.g. "
        "z[:, None] and y[:, None] for one output of each example."
      )
    return z - y

  return MeanLoss(
    value=lambda z, y: 0.5 * jnp.sum(jnp.square(slope(z, y)), axis=-1),
    slope=slope,
    curve=lambda z, u, y: u,
    targets_fn=targets_fn or _read_targets,
  )


def mean_loss(
  value: Callable[[Any, Any], jax.Array],
  targets_fn: Callable[[Any], tuple[Any, Any]] | None = None,
) -> MeanLoss:
  """Makes a `MeanLoss` from any convex loss of a position.

  Args:
    value: (z [..., V], y) -> l [...], convex in z, for each position by itself.
      JAX differentiates the function.
    targets_fn: As for `softmax_cross_entropy`.

  Returns:
    The loss.

  Raises:
    ValueError: When the loss is called: if `value` does not return one number a
      position.
  """

  def checked(z, y):
    result = value(z, y)
    if jnp.shape(result) != z.shape[:-1]:
      raise ValueError(
        f"value(outputs, targets) has shape {jnp.shape(result)} for outputs "
        f"{z.shape} and targets {jax.tree.map(jnp.shape, y)}; it must be one "
        f"loss a position, shape {z.shape[:-1]}. Shapes that differ broadcast: "
        "compare those of outputs and targets."
      )
    return result

  return _differentiated(checked, targets_fn or _read_targets)


def _differentiated(value, targets_fn) -> MeanLoss:
  """A loss whose slope and curvature JAX makes from its value."""

  def slope(z, y):
    return jax.grad(lambda z: jnp.sum(value(z, y)))(z)

  def curve(z, u, y):
    return jax.jvp(lambda z: slope(z, y), (z,), (u,))[1]

  return MeanLoss(value, slope, curve, targets_fn)


def as_loss(loss_fn: Callable[[Any, Any], jax.Array]) -> MeanLoss:
  """Makes a `MeanLoss` of one position from (outputs, batch) -> scalar."""
  if isinstance(loss_fn, MeanLoss):
    return loss_fn

  def value(outputs, batch):
    result = loss_fn(outputs, batch)
    shape = jnp.shape(result)
    if shape:
      raise ValueError(
        f"loss_fn returned an array of shape {shape}; it must return a scalar, "
        "the mean over the batch. For a loss of each position use "
        "optim.mean_loss."
      )
    return result

  return _differentiated(value, lambda batch: (batch, None))


def safe(weight: jax.Array) -> jax.Array:
  """A divisor that is never 0: a batch without weight has a mean of 0."""
  return jnp.where(weight > 0, weight, jnp.ones_like(weight))


def weighted_sum(
  values: jax.Array, weights: Any | None
) -> tuple[jax.Array, jax.Array]:
  """(sum w l, sum w) over all positions."""
  if weights is None:
    return jnp.sum(values), jnp.asarray(values.size, values.dtype)
  if jnp.shape(weights) != values.shape:
    raise ValueError(
      f"weights have shape {jnp.shape(weights)} and losses {values.shape}: "
      "targets_fn must return one weight a position, or None."
    )
  weights = jnp.asarray(weights).astype(values.dtype)
  return jnp.sum(weights * values), jnp.sum(weights)


def weigh(cotangent: Any, weights: Any | None) -> Any:
  """Multiplies the cotangent of each position by the position's weight."""
  if weights is None:
    return cotangent
  return jax.tree.map(
    lambda ct: ct * jnp.asarray(weights).astype(ct.dtype)[..., None], cotangent
  )


def _read_targets(batch):
  try:
    return batch["targets"], batch.get("weights")
  except (TypeError, KeyError, AttributeError) as error:
    raise ValueError(
      f"The loss found no batch['targets'] in {jax.tree.structure(batch)}. "
      "Give targets_fn: batch -> (targets, weights or None)."
    ) from error
