"""What an update of a method costs: bytes, FLOP and time.

Bytes and FLOP are counted on shapes. Nothing is compiled for them, and no array
of the model's size is made.
"""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from ..config.schema import Config
from ..methods import newton, plain
from ..objectives import table as objectives
from ..step import build, methods
from ..step.parts import Parts
from ..step.update import Probing

_EVERY = "precondition_frequency"
_REFRESH = 10  # The default of the methods that take `_EVERY`.
# FLOP of an [m, n] matrix, the leading order (Golub and Van Loan, "Matrix
# computations", 4th ed., 5.2 and 8.3).
_FACTORISATIONS: dict[str, Callable[[int, int], float]] = {
  "cholesky": lambda m, n: n**3 / 3,
  "eigh": lambda m, n: 9 * n**3,
  "geqrf": lambda m, n: _reflections(m, n),
  "householder_product": lambda m, n: _reflections(m, n),
  "qr": lambda m, n: 2 * _reflections(m, n),
}


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
  total = flop(lambda s, b: update(s, b, shape[0])[0], now, buffer)
  if config.optim.name == newton.OUTER:
    return total
  step = parts.tx.update, now.params, now.opt_state, now.params
  seldom = flop(*step) - flop(*step, of=min)
  kwargs = [dict(one.kwargs) for one in plain.choices(config).values()]
  every = max([k[_EVERY] for k in kwargs if _EVERY in k], default=_REFRESH)
  return total - seldom * (1 - 1 / every)


def flop(function: Callable[..., Any], *args: Any, of: Any = max) -> float:
  """FLOP of the products and factorisations of a function, for shapes.

  A multiply and an add are two. Scans count each round, other loops one.

  Args:
    function: Of trees of arrays.
    *args: Arrays or shapes.
    of: Which branch of a condition counts: max, the dearest, or min.
  """
  closed = jax.make_jaxpr(function)(*args)
  every = [True] * len(closed.jaxpr.outvars)
  jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, every)
  return _count(jaxpr, of)


def _count(jaxpr: Any, of: Callable[..., float]) -> float:
  total = 0.0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    total += _products(eqn, name)
    inner = [
      _count(getattr(x, "jaxpr", x), of)
      for value in eqn.params.values()
      for x in (value if isinstance(value, tuple | list) else (value,))
      if hasattr(getattr(x, "jaxpr", x), "eqns")
    ]
    if inner:
      times = eqn.params["length"] if name == "scan" else 1
      total += times * (of(inner) if name == "cond" else sum(inner))
  return total


def _products(eqn: Any, name: str) -> float:
  """FLOP of a primitive itself."""
  if name == "dot_general":
    (summed, _), _ = eqn.params["dimension_numbers"]
    length = math.prod(eqn.invars[0].aval.shape[i] for i in summed)
    return 2.0 * length * math.prod(eqn.outvars[0].aval.shape)
  if name == "product":  # Of `lm/model/product.py`, an einsum.
    names = eqn.params["equation"].replace("->", ",").split(",")
    sizes: dict[str, int] = {}
    for letters, x in zip(names, [*eqn.invars, *eqn.outvars], strict=True):
      sizes |= zip(letters, x.aval.shape, strict=True)
    return 2.0 * math.prod(sizes.values())
  if name == "triangular_solve":
    rows = eqn.invars[0].aval.shape[-1]
    return 1.0 * rows * math.prod(eqn.invars[1].aval.shape)
  if name not in _FACTORISATIONS:
    return 0.0
  *stack, m, n = eqn.invars[0].aval.shape
  return math.prod(stack) * _FACTORISATIONS[name](m, n)


def _reflections(m: int, n: int) -> float:
  """FLOP of min(m, n) Householder reflections of an [m, n] matrix."""
  k = min(m, n)
  return 4 * m * n * k - 2 * (m + n) * k**2 + 4 / 3 * k**3


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
