"""The end of an optimiser: decoupled weight decay and the learning rate."""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from ..common import checks
from ..common.tree import is_function, work_dtype

Coupling = Literal["rate", "schedule", "none"]
Order = Literal["optax", "official"]


@dataclasses.dataclass(frozen=True, eq=False)
class Decay:
  r"""How weights decay: what `weight_decay` may be in place of a number.

      optim.soap(rate, weight_decay=optim.Decay(0.1, cautious=True))

  A call takes a share s of each weight w. With the learning rate eta_t:

      s = eta_t lambda           coupling="rate", as AdamW
      s = lambda eta_t / peak    coupling="schedule", independent decay
      s = lambda                 coupling="none", NVIDIA's independent decay

  Attributes:
    weight_decay: lambda. A number, a schedule of the count of calls, or with
      `labels` a dict {label: number or schedule}.
    labels: A tree of labels like params or a prefix of it, or a function of
      params that makes such a tree, e.g. one that calls `path_groups`. The
      label of a leaf says which lambda the leaf gets.
    coupling: See above. "schedule" and "none" take the learning rate of the
      matrices for all leaves.
    cautious: True decays an entry only where the step does not lengthen it:
      where u w >= 0, with u the direction of ascent. An entry without a step
      decays.
    normalized: A tree of bools like params or a prefix of it, or a function of
      params that makes such a tree. True multiplies s by eta_t / peak: the
      corrected decay of matrices that a norm follows. None: no leaf.
    peak: The largest learning rate. None: the learning rate, if that is a
      number.
  """

  weight_decay: Any
  _: dataclasses.KW_ONLY
  labels: Any | None = None
  coupling: Coupling = "rate"
  cautious: bool = False
  normalized: Any | None = None
  peak: float | None = None

  def __post_init__(self):
    """Raises for any argument out of range."""
    checks.choice("coupling", self.coupling, get_args(Coupling))
    named = isinstance(self.weight_decay, dict)
    if named != (self.labels is not None):
      raise ValueError(
        f"weight_decay={self.weight_decay!r} with labels={self.labels!r}: give "
        "a dict {label: number} together with labels, or a number without."
      )
    numbers = self.weight_decay if named else {"": self.weight_decay}
    for label, value in numbers.items():
      name = f"weight_decay[{label!r}]" if named else "weight_decay"
      checks.scalar_or_schedule(name, value)
    if self.peak is not None:
      checks.positive("peak", self.peak)

  @property
  def none(self) -> bool:
    """Whether nothing ever decays. A traced lambda is kept whatever it is."""
    return not (isinstance(self.weight_decay, jax.Array) or self.weight_decay)

  def check_peak(self, learning_rate: Any) -> None:
    """Raises if the peak is needed, and not known."""
    needed = self.coupling == "schedule" or self.normalized is not None
    varies = callable(learning_rate) or isinstance(learning_rate, jax.Array)
    if needed and varies and self.peak is None:
      raise ValueError(
        f"Decay(coupling={self.coupling!r}, normalized={self.normalized!r}) "
        "compares the learning rate with its peak, which is not known of a "
        "schedule or an array: give Decay(peak=...)."
      )


def as_decay(weight_decay: Any) -> Decay:
  """The `Decay` of an argument `weight_decay`."""
  if isinstance(weight_decay, Decay):
    return weight_decay
  return Decay(weight_decay)


class DecayState(NamedTuple):
  """State of `decay_weights`."""

  count: jax.Array  # int32 []: calls.


def decay_weights(
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: optax.ScalarOrSchedule | Decay,
  *,
  order: Order,
  skip_first: bool,
) -> optax.GradientTransformation:
  """Adds lambda w ("optax"), or lambda (w - eta u) ("official"), to u.

  The step -eta (.) follows. With "official" the whole update is then
  w <- (w - eta u)(1 - eta lambda): decay after the step, as in the authors'
  SOAP. If `decay.coupling` is not "rate", the step comes first, and the share
  of w, or of w - eta u, is subtracted from the step.

  Args:
    learning_rate: eta of the step; number or schedule.
    weight_decay: lambda; number, schedule of the count of calls, or `Decay`.
    order: "optax" or "official", see above.
    skip_first: True: the first call decays nothing.

  Returns:
    A transform whose `update` needs `params`.
  """
  decay = as_decay(weight_decay)
  after = decay.coupling != "rate"

  def init_fn(params):
    del params
    return DecayState(jnp.zeros((), jnp.int32))

  def update_fn(updates, state, params=None):
    if params is None:
      raise ValueError(
        f"weight_decay={decay.weight_decay} decays the parameters, so pass "
        "them: tx.update(grads, opt_state, params); or set weight_decay=0."
      )
    rate = at(learning_rate, state.count)

    def add(u, w, amount):
      if skip_first:
        amount = jnp.where(state.count == 0, 0.0, amount)
      work = work_dtype(u)
      u32, w32 = u.astype(work), w.astype(work)
      decaying = w32
      if order == "official":
        decaying = w32 + u32 if after else w32 - rate * u32
      lost = amount * decaying
      if decay.cautious:
        lost = cautious(lost, -u32 if after else u32, w32)
      return (u32 - lost if after else u32 + lost).astype(u.dtype)

    amounts = decay_amounts(decay, learning_rate, state.count, params)
    updates = jax.tree.map(add, updates, params, amounts)
    count: Any = optax.safe_increment(state.count)
    return updates, DecayState(count)

  return optax.GradientTransformation(init_fn, update_fn)


def decay_amounts(
  decay: Decay, learning_rate: Any, count: jax.Array, params: Any
) -> Any:
  """What each leaf of params is multiplied by.

  Returns:
    A tree like params: s / eta_t with coupling "rate", else s.
  """
  share = 1.0  # eta_t / peak.
  if decay.peak is not None:
    share = at(learning_rate, count) / decay.peak
  if decay.labels is None:
    amount = at(decay.weight_decay, count)
    amounts = jax.tree.map(lambda _: amount, params)
  else:
    known = {k: at(x, count) for k, x in decay.weight_decay.items()}
    labels = of_params(decay.labels, params)
    amounts = _pairs(lambda label, _: _of_label(label, known), labels, params)
  if decay.coupling == "schedule":
    amounts = jax.tree.map(lambda x: x * share, amounts)
  if decay.normalized is not None:
    chosen = of_params(decay.normalized, params)
    amounts = _pairs(lambda yes, x: x * share if yes else x, chosen, amounts)
  return amounts


def masked_amounts(mask: Any | None, params: Any, amounts: Any) -> Any:
  """The amounts, 0 where a mask says False."""
  if mask is None:
    return amounts
  chosen = of_params(mask, params)
  return _pairs(lambda yes, x: x if yes else 0.0, chosen, amounts)


def cautious(lost: jax.Array, u: jax.Array, w: jax.Array) -> jax.Array:
  """What decays, and 0 where the step -u would lengthen w."""
  return jnp.where(u * w >= 0, lost, 0)


def at(value: Any, count: jax.Array) -> Any:
  """A number, or a schedule's number at a count of calls."""
  return value(count) if callable(value) else value


def descend(
  direction: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: optax.ScalarOrSchedule | Decay = 0.0,
  mask: Any | None = None,
  *,
  order: Order = "optax",
  skip_first: bool = False,
  step: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Chains a direction, decay of the masked leaves and the step.

  Args:
    direction: Transform of gradients into a direction of ascent.
    learning_rate: Number, array or schedule.
    weight_decay: Number, schedule or `Decay`; 0 leaves the decay out.
    mask: A mask as `optax.masked` takes it: True decays the leaf. None: every
      leaf decays.
    order: "optax", w - eta (u + lambda w); "official", (w - eta u)
      (1 - eta lambda).
    skip_first: True: the first call decays nothing.
    step: A transform that replaces the multiplication by -learning_rate.

  Returns:
    A transform; its `update` needs `params` unless `weight_decay` is 0.

  Raises:
    ValueError: For an argument out of range.
  """
  checks.scalar_or_schedule("learning_rate", learning_rate)
  checks.choice("decay_order", order, get_args(Order))
  decay = as_decay(weight_decay)
  if step is None:
    step = optax.scale_by_learning_rate(learning_rate)
  if decay.none:
    return optax.chain(direction, step)
  decay.check_peak(learning_rate)
  erode = decay_weights(
    learning_rate, decay, order=order, skip_first=skip_first
  )
  erode = erode if mask is None else optax.masked(erode, mask)
  if decay.coupling == "rate":
    return optax.chain(direction, erode, step)
  return optax.chain(direction, step, erode)


def of_params(tree: Any, params: Any) -> Any:
  """A tree, or the result of a function of params."""
  return tree(params) if is_function(tree) else tree


def _pairs(function, prefix, tree):
  """function(x, y) for each leaf y of a tree; x is what stands in a prefix."""
  return jax.tree.map(
    lambda x, part: jax.tree.map(lambda y: function(x, y), part), prefix, tree
  )


def _of_label(label, known):
  if label not in known:
    raise ValueError(
      f"labels of Decay has the label {label!r}, but weight_decay only "
      f"{', '.join(map(repr, known))}. Give a number for each label, e.g. 0.0."
    )
  return known[label]
