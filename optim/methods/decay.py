"""The end of an optimiser: decoupled weight decay and the learning rate."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.tree import work_dtype


class DecayState(NamedTuple):
  """State of `decay_weights`."""

  count: jax.Array  # int32 []: calls.


def decay_weights(
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: optax.ScalarOrSchedule,
  *,
  order: Literal["optax", "official"],
  skip_first: bool,
) -> optax.GradientTransformation:
  """Adds lambda w ("optax"), or lambda (w - eta u) ("official"), to u.

  The step -eta (.) follows. With "official" the whole update is then
  w <- (w - eta u)(1 - eta lambda): decay after the step, as in the authors'
  SOAP.

  Args:
    learning_rate: eta of the step that follows; number or schedule.
    weight_decay: lambda; number, or schedule of the count of calls.
    order: "optax" or "official", see above.
    skip_first: True: the first call decays nothing.

  Returns:
    A transform whose `update` needs `params`.
  """

  def init_fn(params):
    del params
    return DecayState(jnp.zeros((), jnp.int32))

  def update_fn(updates, state, params=None):
    if params is None:
      raise ValueError(
        f"weight_decay={weight_decay} decays the parameters, so pass them: "
        "tx.update(grads, opt_state, params); or set weight_decay=0."
      )
    rate, decay = learning_rate, weight_decay
    if callable(rate):
      rate = rate(state.count)
    if callable(decay):
      decay = decay(state.count)
    if skip_first:
      decay = jnp.where(state.count == 0, 0.0, decay)

    def add(u, w):
      work = work_dtype(u)
      u32, w32 = u.astype(work), w.astype(work)
      if order == "official":
        w32 = w32 - rate * u32
      return (u32 + decay * w32).astype(u.dtype)

    updates = jax.tree.map(add, updates, params)
    count: Any = optax.safe_increment(state.count)
    return updates, DecayState(count)

  return optax.GradientTransformation(init_fn, update_fn)


def descend(
  direction: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: optax.ScalarOrSchedule,
  mask: Any | None,
  *,
  order: Literal["optax", "official"] = "optax",
  skip_first: bool = False,
  step: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Chains a direction, `decay_weights` on the masked leaves and the step.

  Args:
    direction: Transform of gradients into a direction of ascent.
    learning_rate: Number, array or schedule.
    weight_decay: Number or schedule; 0 leaves the decay out.
    mask: A mask as `optax.masked` takes it: True decays the leaf.
    order: As for `decay_weights`.
    skip_first: As for `decay_weights`.
    step: A transform that replaces the multiplication by -learning_rate.

  Returns:
    The chain.
  """
  checks.scalar_or_schedule("learning_rate", learning_rate)
  checks.scalar_or_schedule("weight_decay", weight_decay)
  checks.choice("decay_order", order, ("optax", "official"))
  parts = [direction]
  # A traced decay is kept whatever its value.
  if isinstance(weight_decay, jax.Array) or weight_decay:
    decay = decay_weights(
      learning_rate, weight_decay, order=order, skip_first=skip_first
    )
    parts.append(decay if mask is None else optax.masked(decay, mask))
  if step is None:
    step = optax.scale_by_learning_rate(learning_rate)
  return optax.chain(*parts, step)
