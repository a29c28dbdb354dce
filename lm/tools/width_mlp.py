"""The coordinate check of a small network: do its layers move alike?

A network 32 -> D -> D -> D -> 10 with tanh is trained for a few steps at
several widths D. For each layer, the root mean square of the change of what the
layer computes is a power of D. The exponent is 0 if the steps are scaled right.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim

BASE_WIDTH = 64  # Where the factors are 1.
LAYERS = ("input", "hidden 1", "hidden 2", "logits")
_INPUTS, _CLASSES, _ROWS = 32, 10, 64
_BLOCK = 64


class Case(NamedTuple):
  """A transform under the check.

  Attributes:
    make: () -> transform of gradients into a direction of ascent.
    rule: The name of its rule in `optim.multipliers`.
    rate: Learning rate at the base width.
    block_size: Longest side of a block; None: matrices are not cut.
    without: The case that stands for this one without its rule, where the rule
      is a part of the transform.
  """

  make: Callable[[], optax.GradientTransformation]
  rule: str
  rate: float
  block_size: int | None = None
  without: str | None = None


def _soap(**options: Any) -> optax.GradientTransformation:
  return optim.scale_by_soap(
    precondition_frequency=1, first_step="skip", **options
  )


def _shampoo(**options: Any) -> optax.GradientTransformation:
  return optim.scale_by_shampoo(precondition_frequency=1, **options)


CASES: dict[str, Case] = {
  "sgd": Case(optax.identity, "sgd", 0.1),
  "adam": Case(lambda: optax.scale_by_adam(0.9, 0.95), "adam", 0.003),
  "muon": Case(optim.scale_by_muon, "muon", 0.05),
  "muon_consistent_rms": Case(
    lambda: optim.scale_by_muon(consistent_rms=0.2),
    "muon_consistent_rms",
    0.05,
  ),
  "normuon": Case(
    lambda: optim.scale_by_muon(ns_coeffs="quintic", variance="rows"),
    "normuon",
    0.05,
  ),
  "soap": Case(_soap, "soap", 0.005),
  "soap_as_adam": Case(_soap, "adam", 0.005),
  "soap_blocks": Case(
    lambda: _soap(block_size=_BLOCK), "soap", 0.005, block_size=_BLOCK
  ),
  "soap_spectral": Case(
    lambda: optax.chain(_soap(), optim.normalize_spectral()),
    "normalize_spectral",
    0.05,
    without="soap",
  ),
  "kl_soap_blocks": Case(
    lambda: _soap(factors="kl", block_size=_BLOCK),
    "kl_soap",
    0.005,
    block_size=_BLOCK,
  ),
  "soap_muon": Case(optim.scale_by_soap_muon, "soap_muon", 0.05),
  "shampoo": Case(_shampoo, "shampoo", 0.005),
  "shampoo_traced": Case(
    lambda: _shampoo(exponent=0.25, grafting="none"), "shampoo_traced", 0.05
  ),
}


class Changes(NamedTuple):
  """What the check measures.

  Attributes:
    sizes: RMS change of each layer, float64 [widths, layers].
    slopes: Of log size against log width, by least squares, [layers].
  """

  sizes: np.ndarray
  slopes: np.ndarray


def check(
  case: Case,
  *,
  scaled: bool,
  widths: Sequence[int] = (64, 128, 256),
  seeds: int = 2,
  steps: int = 4,
) -> Changes:
  """Trains the network at each width and measures how its layers change.

  Args:
    case: The transform.
    scaled: Whether its rule is applied: to the rates, the initial values and
      nothing else.
    widths: D, at least two.
    seeds: Draws of weights and data, over which squares are averaged.
    steps: Updates, each on a fresh batch.
  """
  if case.without is not None and not scaled:
    case = CASES[case.without]
  sizes = [
    _changes(case, width, scaled, seeds=seeds, steps=steps) for width in widths
  ]
  logs = np.log(widths)
  return Changes(np.array(sizes), np.polyfit(logs, np.log(sizes), 1)[0])


def multipliers(case: Case, width: int) -> list[optim.Multipliers]:
  """The factors of the four layers at a width."""
  sizes, base = _sizes(width), _sizes(BASE_WIDTH)

  def cuts(sizes: tuple[int, int]) -> tuple[int, int]:
    cut_in, cut_out = (-(-n // (case.block_size or n)) for n in sizes)
    return cut_in, cut_out

  return [
    optim.multipliers(
      optim.LeafFacts(
        "head" if layer == "logits" else "hidden",
        *own, *start, blocks=cuts(own), base_blocks=cuts(start),
      ),
      case.rule,
    )
    for layer, own, start in zip(LAYERS, sizes, base, strict=True)
  ]  # fmt: skip


def _sizes(width: int) -> list[tuple[int, int]]:
  """(inputs, outputs) of each layer."""
  ends = (_INPUTS, width, width, width, _CLASSES)
  return list(zip(ends[:-1], ends[1:], strict=True))


def _changes(
  case: Case, width: int, scaled: bool, *, seeds: int, steps: int
) -> np.ndarray:
  """RMS changes of the four layers at one width, [layers]."""
  factors = [m.rate if scaled else 1.0 for m in multipliers(case, width)]
  # Arrays, not constants of the program: one program with the rule and without.
  rates = [jnp.float32(factor) for factor in factors]
  start, step, measure = _functions(case, width)
  squares = []
  for seed in range(seeds):
    key = jax.random.key(seed)
    before, teacher = start(key)
    params, state = before, case.make().init(before)
    for number in range(steps):
      own = jax.random.fold_in(key, number)
      params, state = step(params, state, rates, teacher, own)
    squares.append(measure(before, params, key))
  return np.sqrt(np.mean(np.asarray(squares, np.float64), axis=0))


@functools.cache
def _functions(case: Case, width: int) -> tuple[Callable[..., Any], ...]:
  """The start of a run, its update, and the measure, all jitted."""

  def start(key):
    *keys, last = jax.random.split(key, 5)
    params = [
      jax.random.normal(k, size) * size[0] ** -0.5
      for k, size in zip(keys, _sizes(width), strict=True)
    ]
    params[-1] = jnp.zeros_like(params[-1])  # The head.
    return params, jax.random.normal(last, (_INPUTS, _CLASSES))

  def step(params, state, rates, teacher, key):
    x = jax.random.normal(key, (_ROWS, _INPUTS))
    labels = jnp.argmax(x @ teacher, axis=-1)

    def loss(params):
      logits = _layers(params, x)[-1]
      return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      )

    tx = optim.rescaled(case.make(), rates)
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    updates = jax.tree.map(lambda u: -case.rate * u, updates)
    return optax.apply_updates(params, updates), state

  def measure(before, after, key):
    x = jax.random.normal(key, (_ROWS, _INPUTS))
    pairs = zip(_layers(before, x), _layers(after, x), strict=True)
    return jnp.stack([jnp.mean(jnp.square(b - a)) for a, b in pairs])

  return jax.jit(start), jax.jit(step), jax.jit(measure)


def _layers(params: Any, x: jax.Array) -> list[jax.Array]:
  """What each layer computes before its nonlinearity, [rows, outputs]."""
  found = []
  for w in params:
    found.append(x @ w)
    x = jnp.tanh(found[-1])
  return found
