"""Averages of the weights, without bias and on the clock of the updates."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ..common import checks, evaluation
from ..common.tree import upcast


class Average(NamedTuple):
  """One average of the weights; its value is sum / weight."""

  sum: Any  # s, like params, float32.
  weight: jax.Array  # float32 []: what s is of ones in place of weights.


class AverageState(NamedTuple):
  """State of `average_weights`."""

  count: jax.Array  # int32 []: updates averaged.
  averages: dict[str, Average]  # By name.
  inner: Any  # Of the wrapped transform.

  @property
  def average(self) -> Any:
    """The sum of the only average; an error if there are several."""
    (only,) = self.averages.values()
    return only.sum


def average_weights(
  inner: optax.GradientTransformation,
  decay: float | jax.Array | None = None,
  *,
  names: Sequence[str] = (),
  num_steps: int | None = None,
  has_updated: Callable[[Any], jax.Array] | None = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Wraps any optimiser and averages the weights that its updates lead to.

  Let w_n be the weights after update n = 1, 2, ..., N. The averages are

      "ema:d"    s <- d s + (1 - d) w_n, from s = 0, over 1 - d^n
      "age:k"    s <- 2^(-k / n) s + (1 - 2^(-k / n)) w_n, from s = w_0:
                 the half-life is a share of the run so far, n / k
      "tail:p"   the mean of the last p N weights, for the share p of N updates

  `eval_params(opt_state, params, "ema:0.99")` reads an average by its name. The
  initial weights have no part in "ema:d" and "tail:p". One update counts once,
  whatever the optimiser does inside the update, so averages of different
  optimisers can be compared. Each average keeps a float32 copy of the weights.

  Args:
    inner: The optimiser.
    decay: d of one average "ema:d", in [0, 1). None leaves this average out. If
      d is an array, as under `optax.inject_hyperparams`, the name is "ema".
    names: More averages, e.g. ("age:25", "tail:0.5").
    num_steps: N, the updates of the run, for "tail:p". Updates after N are
      averaged as well.
    has_updated: (state of `inner`) -> whether `inner` made an update at this
      call. An optimiser that accumulates needs it, e.g. `optim.has_updated`.
      None: every call is an update.

  Returns:
    A transform with the updates of `inner`. Its `update` needs `params`.

  Raises:
    ValueError: For a decay or a name out of range, for no average at all, for a
      tail without `num_steps`, or for an `update` without `params`.

  References:
    "age:k" is the anytime average of "Anytime training": the half-life is the
    share 1 / k of n. See `theory.theta_halflife_fraction`.
  """
  keeps = _make_rules(decay, names, num_steps)
  inner = optax.with_extra_args_support(inner)

  def init_fn(params):
    work = upcast(params)
    zeros = optax.tree.zeros_like(work)
    averages = {
      # A copy: the params themselves may be donated.
      name: Average(jax.tree.map(jnp.copy, work), jnp.ones((), jnp.float32))
      if name.startswith("age")
      else Average(jax.tree.map(jnp.copy, zeros), jnp.zeros((), jnp.float32))
      for name in keeps
    }
    return AverageState(jnp.zeros((), jnp.int32), averages, inner.init(params))

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(
        "average_weights averages the parameters, so pass them: "
        "tx.update(grads, opt_state, params)."
      )
    updates, inner_state = inner.update(
      updates, state.inner, params, **extra_args
    )
    counted = jnp.asarray(True)
    if has_updated is not None:
      counted = has_updated(inner_state)
    count = state.count + counted.astype(jnp.int32)

    def blend(s, new, keep):
      new = keep * s + (1 - keep) * new
      return jnp.where(counted, new, s).astype(s.dtype)

    def move(average, keep):
      total = jax.tree.map(
        lambda s, w, u: blend(s, w.astype(s.dtype) + u.astype(s.dtype), keep),
        average.sum,
        params,
        updates,
      )
      return Average(total, blend(average.weight, 1.0, keep))

    averages = {
      name: move(state.averages[name], keep(jnp.maximum(count, 1)))
      for name, keep in keeps.items()
    }
    return updates, AverageState(count, averages, inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def averaged_params(
  state: AverageState, params: Any, name: str | None = None
) -> Any:
  """Returns an average without bias, in the dtypes of params.

  Args:
    state: The state of `average_weights` itself. `optim.eval_params` finds this
      state inside the state of any optimiser.
    params: The current parameters.
    name: The name of the average. None is allowed if there is only one average.

  Returns:
    A tree like params. Before the first update it is params.

  Raises:
    ValueError: For an unknown name, or for None if there are several averages.
  """
  if name is None and len(state.averages) == 1:
    (name,) = state.averages
  if name not in state.averages:
    raise ValueError(
      f"name={name!r} must be one of {', '.join(map(repr, state.averages))}."
    )
  return _mean(state.averages[name], params)


def _mean(average: Average, params: Any) -> Any:
  begun = average.weight > 0

  def read(s, p):
    mean = s / jnp.where(begun, average.weight, 1.0).astype(s.dtype)
    return jnp.where(begun, mean, p.astype(s.dtype)).astype(p.dtype)

  return jax.tree.map(read, average.sum, params)


def _read(state: AverageState, name: str | None):
  if name not in state.averages:
    return None
  return lambda params: _mean(state.averages[name], params)


evaluation.register(
  AverageState,
  evaluation.Reader(
    names=lambda state: tuple(state.averages),
    read=_read,
    tree=lambda state: next(iter(state.averages.values())).sum,
  ),
)


def _make_rules(decay, names, num_steps) -> dict[str, Callable[[Any], Any]]:
  """{name: update count -> share of the old average that is kept}."""
  rules: dict[str, Callable[[Any], Any]] = {}
  if decay is not None:
    checks.decay("decay", decay)
    array = isinstance(decay, jax.Array)
    rules["ema" if array else f"ema:{float(decay)!r}"] = lambda n: decay
  if isinstance(names, str):
    names = (names,)
  for name in names:
    if name in rules:
      raise ValueError(f"names={tuple(names)} has {name!r} twice.")
    rules[name] = _rule(name, num_steps)
  if not rules:
    raise ValueError(
      "decay=None and names=() keep no average; give decay=0.99, or names "
      "such as ('age:25', 'tail:0.5')."
    )
  return rules


def _rule(name: str, num_steps: int | None) -> Callable[[Any], Any]:
  kind, _, text = str(name).partition(":")
  try:
    number = float(text)
  except ValueError:
    number = float("nan")
  fits = dict(
    ema=0 <= number < 1, age=0 < number < jnp.inf, tail=0 < number <= 1
  )
  if not fits.get(kind, False):
    raise ValueError(
      f"names has {name!r}; a name is 'ema:d' with d in [0, 1), 'age:k' with "
      "k > 0, or 'tail:p' with p in (0, 1], e.g. 'ema:0.99'."
    )
  if kind == "ema":
    return lambda n: number
  if kind == "age":
    return lambda n: jnp.exp2(-number / n)
  if num_steps is None:
    raise ValueError(
      f"num_steps=None, but {name!r} averages a share of the run; give the "
      "number of its updates."
    )
  checks.count("num_steps", num_steps)
  start = num_steps - max(1, round(number * num_steps))

  def tail(n):
    taken = jnp.maximum(n - start, 1)
    return jnp.where(n > start, (taken - 1) / taken, 1.0)

  return tail
