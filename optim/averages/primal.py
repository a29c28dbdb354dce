"""Primal averaging: gradients between an iterate and its average.

Schedule-Free, generalised primal averaging (GPA) and EMA-Nesterov are settings
of one wrapper around any direction. Differs from `optax.contrib.schedule_free`:
the parameters y and m = x - z are kept, in float32, in place of z, so nothing
is divided by the interpolation; the sums of weights are float32 whatever the
parameters' type; and warm-up counts as the authors' code counts.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from ..common import checks, evaluation
from ..common.options import takes
from ..common.tree import like, upcast, zeros
from ..common.warmups import at
from ..common.wide import scalar_dtype
from ..methods.decay import decay_weights

DecayAt = Literal["y", "z"]


class PrimalAveragingState(NamedTuple):
  """State of `primal_averaging`. Numbers are float32, or float64."""

  count: jax.Array  # int32 []: updates made.
  weight_sum: jax.Array  # []: sum of the weights of the average.
  max_rate: jax.Array  # []: largest rate so far.
  shift: jax.Array  # []: the point to evaluate is y + shift m.
  momentum: Any  # m = x - z, like params, float32.
  decay: Any  # Of the weight decay.
  base: Any  # Of the direction.


@dataclasses.dataclass(frozen=True, eq=False)
class PrimalAveragingOptions:
  """Options of `primal_averaging`.

  Attributes:
    base: The direction d, a transform such as `optim.scale_by_soap()`. It
      should keep no momentum of its own if the interpolation replaces momentum,
      as in Schedule-Free: take `optax.scale_by_rms`, or b1=0.
    learning_rate: eta of the direction; number, array, or schedule of the count
      of updates. Schedule-Free wants a constant, 1 to 10 times Adam's best for
      a run with a schedule, and 10 to 50 times SGD's.
    train_interp: b, in [0, 1], number or schedule: gradients are taken at
      y = (1 - b) z + b x. 0.9 is Schedule-Free's default, 0.95 to 0.98 for long
      runs; 0.7 is GPA's.
    eval_interp: None: x is Schedule-Free's average of all z. A number in
      [0, 1), or schedule: the share of the old x that is kept, 0.9967 in GPA.
    lookahead: None, or l >= 0 of EMA-Nesterov, number or schedule, e.g. 0.5.
      Replaces `train_interp` and needs `eval_interp` > 0, e.g. 0.99.
    warmup_steps: W >= 0: the rate is eta min(1, (k + 1) / W) at update k = 0,
      1, ... 0: no warm-up.
    r: Power of k + 1 in the weight of z in x; without `eval_interp` only.
    weight_lr_power: Power p of the largest rate so far in the weight of z in x;
      without `eval_interp` only.
    weight_decay: lambda, number or schedule: lambda y is added to d.
    mask: Tree of bools like params, or a function of params that makes such a
      tree: True decays the leaf. None: every leaf decays.
    decay_at: "y", or "z": lambda z is added to d.
  """

  base: optax.GradientTransformation
  learning_rate: optax.ScalarOrSchedule
  _: dataclasses.KW_ONLY
  train_interp: optax.ScalarOrSchedule = 0.9
  eval_interp: optax.ScalarOrSchedule | None = None
  lookahead: optax.ScalarOrSchedule | None = None
  warmup_steps: int = 0
  r: float = 0.0
  weight_lr_power: float = 2.0
  weight_decay: optax.ScalarOrSchedule = 0.0
  mask: Any | None = None
  decay_at: DecayAt = "y"

  def __post_init__(self):
    """Raises for any argument out of range."""
    for name in ("learning_rate", "weight_decay"):
      checks.scalar_or_schedule(name, getattr(self, name))
    for name in ("warmup_steps", "r", "weight_lr_power"):
      checks.positive(name, getattr(self, name), zero_too=True)
    checks.choice("decay_at", self.decay_at, get_args(DecayAt))
    if not callable(self.train_interp):
      _check_share(self.train_interp)
    if self.eval_interp is not None and not callable(self.eval_interp):
      checks.decay("eval_interp", self.eval_interp)
    if self.lookahead is not None:
      checks.scalar_or_schedule("lookahead", self.lookahead)
      if self.eval_interp is None:
        raise ValueError(
          f"lookahead={self.lookahead} looks ahead of an average of constant "
          "length, so set eval_interp too, e.g. eval_interp=0.99."
        )
      if not callable(self.eval_interp):
        checks.positive("eval_interp", self.eval_interp)

  def rate(self, count: jax.Array, dtype: Any) -> jax.Array:
    """gamma_k, warm-up included."""
    rate = jnp.asarray(at(self.learning_rate, count), dtype)
    begun = (count + 1).astype(dtype) / jnp.maximum(self.warmup_steps, 1)
    return rate * jnp.minimum(1, begun)

  def interpolation(self, count: jax.Array, dtype: Any) -> jax.Array:
    """b of y = z + b m; negative if y looks ahead."""
    if self.lookahead is None:
      return jnp.asarray(at(self.train_interp, count), dtype)
    kept = jnp.asarray(at(self.eval_interp, count), dtype)
    return -at(self.lookahead, count) * (1 - kept) / kept

  def other(self, number: jax.Array) -> jax.Array:
    """b of y = z + b m -> `shift` of the point to evaluate, and back."""
    return 1 - number if self.lookahead is None else -number

  def share(
    self, state: PrimalAveragingState, max_rate: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """c, the share of the new z in x, and the new sum of weights."""
    if self.eval_interp is not None:
      return 1 - at(self.eval_interp, state.count), state.weight_sum
    step = (state.count + 1).astype(max_rate.dtype)
    weight = step**self.r * max_rate**self.weight_lr_power
    total = state.weight_sum + weight
    some = total > 0
    return jnp.where(some, weight / jnp.where(some, total, 1), 0), total


@takes(PrimalAveragingOptions)
def primal_averaging(
  o: PrimalAveragingOptions,
) -> optax.GradientTransformationExtraArgs:
  r"""Steps with one point, averages it in another, and trains between both.

  The parameters are y. From x = y = z, update k = 0, 1, ... with the gradient
  at y, its direction d and the rate gamma_k is

      z <- z - gamma_k (d + lambda y)
      x <- (1 - c) x + c z                     evaluated: `optim.eval_params`
      y <- (1 - b) z + b x                     trained: the parameters

  with b = `train_interp` and c by one of two settings:

      Schedule-Free   c = w_k / sum_{j <= k} w_j,
                      w_k = (k + 1)^r (max_{j <= k} gamma_j)^p
      GPA             c = 1 - eval_interp

  EMA-Nesterov is a third setting, `lookahead` = l and `eval_interp` = h. The
  step then starts from y, y is ahead of z, and z is evaluated:

      z' = y - gamma_k (d + lambda y),    u <- h u + (1 - h) (z' - z)
      z <- z',    y <- z + l u

  In all settings m = x - z is kept, and not z or x: with D = -gamma_k d (plus
  b m with lookahead), m <- (1 - c) (m - D) and y <- y + D + b' m' - b m. Where
  something else than this transform changes the parameters between two updates,
  x and z move with y.

  Returns:
    A transform with the steps of y; its `update` needs `params`.
    `optim.eval_params` reads x, or z with `lookahead`, anywhere in a state.

  Raises:
    ValueError: For an argument out of range, for `lookahead` without
      `eval_interp`, or for an `update` without `params`.

  References:
    Defazio et al., "The road less scheduled", 2024,
    https://arxiv.org/abs/2405.15682
    Defazio et al., "Smoothing DiLoCo with primal averaging for faster training
    of LLMs", 2025, https://arxiv.org/abs/2512.17131 (GPA)
    "EMA-Nesterov: stabilizing Nesterov's lookahead for accelerated deep
    learning optimization", 2026, https://arxiv.org/abs/2605.25395
  """
  base = optax.with_extra_args_support(o.base)
  decay = _decay(o)

  def init_fn(params):
    dtype, wide = scalar_dtype(params), upcast(params)
    count = jnp.zeros((), jnp.int32)
    return PrimalAveragingState(
      count=count,
      weight_sum=jnp.zeros((), dtype),
      max_rate=jnp.zeros((), dtype),
      shift=o.other(o.interpolation(count, dtype)),
      momentum=zeros(params),
      decay=decay.init(wide),
      base=base.init(wide),
    )

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(
        "primal_averaging decays and averages the parameters, so pass them: "
        "tx.update(grads, opt_state, params)."
      )
    y, m = upcast(params), state.momentum
    b = o.other(state.shift)
    direction, base_state = base.update(
      upcast(updates), state.base, y, **extra_args
    )
    point = y
    if o.decay_at == "z":
      point = jax.tree.map(lambda y, m: y - b * m, y, m)
    direction, decay_state = decay.update(direction, state.decay, point)
    gamma = o.rate(state.count, b.dtype)
    max_rate = jnp.maximum(state.max_rate, gamma)
    c, total = o.share(state, max_rate)
    new_b = o.interpolation(state.count + 1, b.dtype)
    ahead = 0.0 if o.lookahead is None else b

    steps = jax.tree.map(lambda d, m: ahead * m - gamma * d, direction, m)
    new_m = jax.tree.map(lambda m, step: (1 - c) * (m - step), m, steps)
    moved = jax.tree.map(
      lambda step, new, old: step + new_b * new - b * old, steps, new_m, m
    )
    count: Any = optax.safe_increment(state.count)
    return like(moved, params), PrimalAveragingState(
      count=count,
      weight_sum=total,
      max_rate=max_rate,
      shift=o.other(new_b),
      momentum=like(new_m, m),
      decay=decay_state,
      base=base_state,
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _decay(o: PrimalAveragingOptions) -> optax.GradientTransformation:
  """Adds lambda times the point to the direction, on the masked leaves."""
  # A traced decay is kept whatever its value.
  if not isinstance(o.weight_decay, jax.Array) and not o.weight_decay:
    return optax.identity()
  decay = decay_weights(
    o.learning_rate, o.weight_decay, order="optax", skip_first=False
  )
  return decay if o.mask is None else optax.masked(decay, o.mask)


def _check_share(value: Any) -> None:
  if not isinstance(value, jax.core.Tracer) and not 0 <= float(value) <= 1:
    raise ValueError(
      f"train_interp={value} must be in [0, 1]: it is the share of x in the "
      "point where gradients are taken, e.g. 0.9."
    )


def _read(state: PrimalAveragingState, name: str | None):
  if name is not None:
    return None

  def read(params):
    def point(y, m):
      return (y.astype(m.dtype) + state.shift * m).astype(y.dtype)

    return jax.tree.map(point, params, state.momentum)

  return read


evaluation.register(
  PrimalAveragingState,
  evaluation.Reader(
    names=lambda state: (), read=_read, tree=lambda state: state.momentum
  ),
)
