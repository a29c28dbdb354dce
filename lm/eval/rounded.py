"""Scores of rounded weights, beside those of the weights themselves."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import optim

from ..cli import text
from ..step.parts import Parts


class Rounder:
  """Rounds the weights that the model of a run sees, where they lie."""

  def __init__(self, parts: Parts):
    """Compiles nothing yet.

    Args:
      parts: Of a run whose `config.quant` has a method.
    """
    self._parts = parts
    self._key = jax.random.key(parts.config.seed)
    self._nearest: Any = None
    self._random: Any = None
    self._measure: Any = None

  @property
  def can_draw(self) -> bool:
    """Whether rounding at random is unbiased, and therefore offered."""
    return self._parts.config.quant.scale in ("absmax", "pow2_ceil")

  def compile(self) -> None:
    """Compiles all of it; may run in a thread beside other compilations."""
    parts, chosen = self._parts, self._parts.quantizers
    lies, params = parts.weight_shardings, parts.abstract_weights
    replicated = NamedSharding(parts.mesh, PartitionSpec())

    def measure(params):
      return {
        "quant/mean_step_size": optim.mean_step_size(params, chosen),
        "quant/on_grid_share": optim.on_grid_share(params, chosen),
      }

    def near(params):
      return optim.quantize_params(params, chosen)

    def draw(params, key):
      return optim.quantize_params(params, chosen, key=key)

    with jax.set_mesh(
      parts.mesh
    ):  # The mesh of this thread, which may be a helper.
      jitted = jax.jit(near, in_shardings=(lies,), out_shardings=lies)
      self._nearest = jitted.lower(params).compile()
      jitted = jax.jit(measure, in_shardings=(lies,), out_shardings=replicated)
      self._measure = jitted.lower(params).compile()
      if self.can_draw:
        both = (lies, replicated)
        jitted = jax.jit(draw, in_shardings=both, out_shardings=lies)
        self._random = jitted.lower(params, self._key).compile()

  def nearest(self, params: Any) -> Any:
    """Weights rounded to nearest."""
    return self._nearest(params)

  def random(self, params: Any, draw: int) -> Any:
    """Weights rounded at random; the same for the same run and draw."""
    return self._random(params, jax.random.fold_in(self._key, draw))

  def measure(self, params: Any) -> dict[str, float]:
    """Mean step size, and the share of weights close to the grid."""
    return {key: float(x) for key, x in self._measure(params).items()}


class RoundedScore(NamedTuple):
  """Loss of rounded weights on one set, nats per token."""

  nearest: float
  random: float | None  # Mean over draws; None: none were made.
  stderr: float | None  # Of that mean, over draws.

  def scalars(self) -> dict[str, float]:
    """By the key below `eval/<set>/`."""
    found = {
      "loss_nearest": self.nearest,
      "loss_random": self.random,
      "loss_random_stderr": self.stderr,
    }
    return {key: value for key, value in found.items() if value is not None}

  def __str__(self) -> str:
    """For the log."""
    line = f"rounded to nearest {self.nearest:.4f}"
    if self.random is None:
      return line
    return f"{line}, at random {self.random:.4f} ± {self.stderr:.4f}"


def score(
  evaluator: Any, rounder: Rounder, params: Any, max_batches: int, draws: int
) -> dict[str, RoundedScore]:
  """Scores the rounded weights on every set.

  Args:
    evaluator: Of the run.
    rounder: Of the run.
    params: The weights.
    max_batches: Per set; 0 for whole splits.
    draws: Roundings at random, 0 or >= 2; none if they would be biased.

  Returns:
    Score by the name of the set.
  """
  draws = draws if rounder.can_draw else 0
  near = evaluator.run(rounder.nearest(params), max_batches)
  drawn = [
    evaluator.run(rounder.random(params, draw), max_batches)
    for draw in range(draws)
  ]
  found = {}
  for name, result in near.items():
    losses = np.array([results[name].loss for results in drawn])
    found[name] = RoundedScore(
      nearest=result.loss,
      random=float(losses.mean()) if draws else None,
      stderr=float(losses.std(ddof=1) / draws**0.5) if draws else None,
    )
  return found


def table(
  scores: Mapping[str, RoundedScore], measured: Mapping[str, float]
) -> str:
  """One line a set: loss of weights rounded to nearest and at random."""
  rows = []
  for name, score in scores.items():
    drawn = "-"
    if score.random is not None:
      drawn = f"{score.random:.4f} ± {score.stderr:.4f}"
    rows.append([name, f"{score.nearest:.4f}", drawn])
  lines = text.format_table(["set", "rounded to nearest", "at random"], rows)
  return (
    f"{lines}\nmean step size {measured['quant/mean_step_size']:.3g}, "
    f"{measured['quant/on_grid_share']:.1%} of the weights within 5% of a gap "
    "of the grid"
  )
