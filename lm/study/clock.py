"""What an update of a method costs: bytes, FLOP and time.

Bytes and FLOP are counted on shapes. Nothing is compiled for them, and no array
of the model's size is made.
"""

import statistics
import time
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..config.schema import Config
from ..methods import newton, plain
from ..objectives import table as objectives
from ..step import build, methods, traced_flops
from ..step.parts import Parts
from ..step.update import Probing

_EVERY = "precondition_frequency"
_REFRESH = 10  # The default of the methods that take `_EVERY`.


class Cost(NamedTuple):
  """What an update of a method costs.

  Attributes:
    bytes_per_parameter: Bytes of the optimiser's state by the number of trained
      parameters: moments, factors, bases, counts. Averages of the weights, the
      parameters and their gradients are left out.
    flop_per_token: FLOP of a whole update (forward, backward, optimiser) by the
      tokens of the update: matrix products and factorisations. What is done
      once in f updates, such as a refresh, counts 1 / f.
    tokens_per_update: Targets, those of line searches included.
    parameters: Trained ones.
  """

  bytes_per_parameter: float
  flop_per_token: float
  tokens_per_update: int
  parameters: int


def cost(config: Config) -> Cost:
  """Counts the cost of an update on one device of this process.

  Args:
    config: Resolved.
  """
  parts = build.build(config, jax.devices()[:1])
  now = parts.abstract_state
  parameters = sum(x.size for x in jax.tree.leaves(now.params))
  kept = jax.tree.leaves(newton.own_state(now.opt_state))
  passes, rows, length = parts.buffer_shape
  tokens = passes * rows * (length - 1)
  with jax.set_mesh(parts.mesh):
    flop = _update_flop(parts)
  return Cost(
    sum(x.size * x.dtype.itemsize for x in kept) / parameters,
    flop / tokens,
    tokens,
    parameters,
  )


def _update_flop(parts: Parts) -> float:
  """Mean FLOP of an update."""
  config, now = parts.config, parts.abstract_state
  update: Any = methods.of(config).make_update(parts, Probing())
  shape = parts.buffer_shape
  buffer = objectives.Batch(
    jax.ShapeDtypeStruct(shape, jnp.int32),
    jax.ShapeDtypeStruct(shape[:2], jnp.int32),
  )
  # A number, so that the loop over the passes has a length.
  total = traced_flops.count(
    lambda s, b: update(s, b, shape[0])[0], now, buffer
  )
  if config.optim.name == newton.OUTER:
    return total
  step = parts.tx.update, now.params, now.opt_state, now.params
  seldom = traced_flops.count(*step) - traced_flops.count(*step, of=min)
  kwargs = [dict(one.kwargs) for one in plain.choices(config).values()]
  every = max([k[_EVERY] for k in kwargs if _EVERY in k], default=_REFRESH)
  return total - seldom * (1 - 1 / every)


def time_updates(
  configs: Mapping[Any, Config], rounds: int = 3, turn: int = 10
) -> dict[Hashable, float]:
  """Milliseconds of an update of each configuration, on one device.

  The seconds that runs log are those of a machine that others may use. Here
  the configurations take turns in one process, on rows of random tokens.

  Args:
    configs: Resolved ones by any key; the state of each is held.
    rounds: Turns of each.
    turn: Updates in a row that count, a period of refreshes. Gauss-Newton takes
      one, a whole outer step; its microsteps are rounded up to outer steps.
      One more, which another program precedes, does not count.

  Returns:
    Means: what is done at some updates only is a part of the cost.

  Raises:
    ValueError: If an update is not finite, since the ones after it do nothing.
  """
  for name, value in (("rounds", rounds), ("turn", turn)):
    if value < 1:
      raise ValueError(f"{name}={value} must be >= 1.")
  runs = {key: _start(config) for key, config in configs.items()}
  times: dict[Hashable, list[float]] = {key: [] for key in configs}
  for _ in range(rounds):
    for key, config in configs.items():
      state, update, buffer = runs.pop(key)
      for i in range(_turn(config, turn) + 1):
        started = time.perf_counter()
        state, metrics = update(state, buffer, np.int32(buffer.tokens.shape[0]))
        jax.block_until_ready((state, metrics))
        if i:
          times[key].append(time.perf_counter() - started)
      if state.halted:
        raise ValueError(f"{key}: a loss or a gradient was not finite.")
      runs[key] = state, update, buffer
  return {key: 1e3 * statistics.fmean(found) for key, found in times.items()}


def _turn(config: Config, turn: int) -> int:
  """Updates of a turn."""
  if config.optim.name == newton.OUTER:
    return 1
  each = methods.of(config).updates_per_step(config)
  return each * -(-turn // each)


def _start(config: Config) -> tuple[Any, Any, Any]:
  """State, compiled update and rows of a configuration."""
  parts = build.build(config, jax.devices()[:1])
  pieces, shape = config.model.real_V, parts.buffer_shape
  rows = np.random.default_rng(0).integers(pieces, size=shape)
  with jax.set_mesh(parts.mesh):
    state, update = build.init_state(parts), build.compile_step(parts)
    return state, update, build.put_buffer(parts, rows.astype(np.int32))
