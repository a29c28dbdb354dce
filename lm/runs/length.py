"""A run made longer or shorter: may its past be that of the new length?

Rates, weights of averages and strengths may be shares of the run's length. The
updates already made then had other values than an unbroken run of the new
length. Such a change is refused unless `config.schedule.allow_new_length`.
"""

import numpy as np

from ..config import ramp
from ..config.errors import ConfigError
from ..config.schema import Config
from ..methods import newton, schedule
from ..step import methods

_RATE = "learning rate"


def check(then: Config, now: Config, step: int) -> str:
  """Compares what follows from the length of a run, before and after a change.

  Args:
    then: The configuration of the updates made.
    now: Of the updates to come; differs in keys that may differ.
    step: Updates made.

  Returns:
    What changes, in one line; "" if nothing does.

  Raises:
    ConfigError: If the updates made would have been others, unless the
      configuration allows it.
  """
  lengths, begin = (_length(then), _length(now)), now.train.branch_step
  if lengths[0] == lengths[1] or step == begin:
    return ""
  end = 1 + max(step, *(ramp.num_steps(config) for config in (then, now)))
  old, new = _curves(then, end), _curves(now, end)
  past = [k for k in old if not _same(old[k][begin:step], new[k][begin:step])]
  changed = [k for k in old if not _same(old[k][begin:], new[k][begin:])]
  if not changed:
    return ""
  name = (past or changed)[0]
  line = (
    f"{lengths[1]}, was {lengths[0]}: "
    f"{_jump(name, step, old[name][step - 1], new[name][step])}"
  )
  if not past or now.schedule.allow_new_length:
    return f"{line}."
  raise ConfigError(
    f"{line}, since the length of the run decides the "
    f"{' and the '.join(past)}; the {step} updates made would have been "
    f"others. Go on with {lengths[0]}. To accept the jump: "
    "--config.schedule.allow_new_length=True. To start a new schedule from "
    "these weights: another --workdir, with --config.train.init_from. "
    "Schedules that may be made longer have config.schedule.name 'constant' "
    "or 'inverse_sqrt' (or 'wsd' before its decay), and schedule.unit 'steps' "
    "or 'tokens'."
  )


def rates(then: Config, now: Config, step: int) -> str:
  """The learning rates before and after a branch, in one line.

  Args:
    then: The configuration of the `step` updates made.
    now: Of the updates to come.
    step: > 0.
  """
  before = _rates(then, np.array([step - 1]))
  after = _rates(now, np.array([step]))
  return f"{_jump(_RATE, step, before, after)}."


def _jump(name: str, step: int, before: np.ndarray, after: np.ndarray) -> str:
  return (
    f"the {name} of update {step - 1} was {_mean(before)}, that of update "
    f"{step} is now {_mean(after)}"
  )


def _length(config: Config) -> str:
  t = config.train
  name = "num_steps" if t.num_steps else "num_tokens"
  return f"config.train.{name}={getattr(t, name)}"


def _curves(config: Config, end: int) -> dict[str, np.ndarray]:
  """What depends on the length, at each of the updates 0, ..., end - 1."""
  steps = np.arange(end)
  found = {_RATE: _rates(config, steps)}
  q = config.quant
  if q.method == "lotion" and q.strength and q.warmup:
    rise = max(1, round(q.warmup * ramp.num_steps(config)))
    found["strength of the penalty"] = q.strength * np.minimum(steps / rise, 1)
  for name in config.optim.averages:
    if name.startswith("tail:"):
      found[f"number of weights in {name!r}"] = _tail(config, name, steps)
  return found


def _tail(config: Config, name: str, steps: np.ndarray) -> np.ndarray:
  """How many weights an average of the last share of a run has taken."""
  each = methods.of(config).updates_per_step(config)
  total = -(-ramp.num_steps(config) // each)
  taken = max(1, round(float(name.removeprefix("tail:")) * total))
  return np.maximum((steps + 1) // each - (total - taken), 0)


def _rates(config: Config, steps: np.ndarray) -> np.ndarray:
  """[updates], or [updates, inner steps] of Gauss-Newton."""
  if config.optim.name not in (newton.OUTER, newton.MICRO):
    return np.asarray(schedule.learning_rate(config)(steps))
  g, rate = config.gauss_newton, newton.learning_rate(config)
  count = g.inner_steps * g.steps_per_batch
  if config.optim.name == newton.OUTER:
    return np.broadcast_to(
      rate(steps[:, None], np.arange(count)), (len(steps), count)
    )
  outer, inner = np.divmod(steps, newton.updates_per_outer_step(config))
  return np.broadcast_to(rate(outer, np.minimum(inner, count - 1)), steps.shape)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
  return np.allclose(a, b, rtol=1e-6, atol=0)


def _mean(value: np.ndarray) -> str:
  return f"{np.mean(value):.2g}"
