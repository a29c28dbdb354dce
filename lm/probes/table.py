"""The probes: what a run measures at some of its updates.

A run names its probes in `config.log.probes`, with their own keys. To add one,
write a file in this room and a line in `PROBES`. The update is compiled once
for each set of probes that is due together, before the first step. An update
at which none is due costs nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..config import options as option_keys
from ..config.schema import Config
from ..step import methods
from ..step.parts import Parts
from ..step.update import Context, Metrics, Probing
from . import leaf_statistics, microscaling, noise_scale

NEEDS = ("state", "rows", "grads", "updates", "micro", "parts")
Due = frozenset[str]


@dataclasses.dataclass(frozen=True)
class Every:
  """Keys of a probe that has no others.

  Attributes:
    every: Updates from one measurement to the next.
  """

  every: int = dataclasses.field(
    default=100, metadata={"least": 1, "unit": "updates"}
  )


class Probe(NamedTuple):
  """One probe, as plain functions.

  An entry with `options` of its own gets an instance of them as the keyword
  `options`, in `due` and `measure`.

  Attributes:
    due: (config, step) -> whether update `step`, counted from 1, is measured.
      None: every `every` updates, a key of the options.
    needs: Fields of `lm.step.update.Context` that it reads, out of `NEEDS`; the
      others are None. "rows" comes with `count`; "micro" is `micro_grad_sq`;
      "parts" are those of the run. Gauss-Newton offers state, rows, updates and
      parts.
    measure: Context -> scalars by the key under which they are logged.
    problems: config -> what is wrong with it for this probe.
    options: Frozen dataclass with the probe's own keys and their defaults.
  """

  due: Callable[..., bool] | None
  needs: tuple[str, ...]
  measure: Callable[..., Metrics]
  problems: Callable[[Config], Iterable[str]] = lambda config: ()
  options: type = Every


PROBES: dict[str, Probe] = {
  "leaf_statistics": Probe(
    due=None,
    needs=("state", "grads", "updates"),
    measure=leaf_statistics.measure,
  ),
  "noise_scale": Probe(
    due=None,
    needs=("micro",),
    measure=noise_scale.measure,
    problems=noise_scale.problems,
  ),
  "microscaling": Probe(
    due=None,
    needs=("state", "rows", "parts"),
    measure=microscaling.measure,
    options=microscaling.Options,
  ),
}


def named(config: Config) -> dict[str, dict[str, Any]]:
  """Own keys of each probe of a run; `log.details_every` is one of them."""
  found = {name: dict(keys) for name, keys in config.log.probes}
  if every := config.log.details_every:
    found.setdefault("leaf_statistics", {"every": every})
  return found


def schedule(config: Config) -> Callable[[int], Due]:
  """Update, counted from 1 -> the probes that are due at it."""
  checks = {
    name: _check(config, PROBES[name], keys)
    for name, keys in named(config).items()
  }
  return lambda step: frozenset(n for n, check in checks.items() if check(step))


def sets(config: Config, first: int, last: int) -> set[Due]:
  """All sets of probes that are due together in updates first, ..., last."""
  if not named(config):
    return {frozenset()}
  return set(map(schedule(config), range(first, last + 1)))


def probing(parts: Parts, names: Due) -> Probing:
  """What the update has to measure for some probes.

  Args:
    parts: Of the run.
    names: Out of those of `named`.
  """
  config = parts.config
  chosen = [(PROBES[n], named(config)[n]) for n in sorted(names)]
  needs = {need for probe, _ in chosen for need in probe.needs}

  def measure(context: Context) -> Metrics:
    found: Metrics = {}
    for probe, keys in chosen:
      shown = _only(context._replace(parts=parts), probe.needs)
      found |= probe.measure(shown, **_passed(probe, keys))
    return found

  return Probing(frozenset(needs), measure)


def problems(config: Config) -> list[str]:
  """What is wrong with `config.log.probes`."""
  found: list[str] = []
  if config.log.details_every and "leaf_statistics" in dict(config.log.probes):
    found.append(
      f"config.log.details_every={config.log.details_every} is short for the "
      "probe leaf_statistics, which config.log.probes has as well: set one."
    )
  for name, keys in named(config).items():
    if name not in PROBES:
      found += option_keys.unknown(name, PROBES, "a name in config.log.probes")
      continue
    probe, path = PROBES[name], f"config.log.probes.{name}"
    pairs = tuple(keys.items())
    found += option_keys.problems(probe.options, pairs, path)
    found += probe.problems(config)
    missing = {*probe.needs} - {*methods.of(config).shows, "parts"}
    if missing:
      found.append(
        f"{path} needs {', '.join(sorted(missing))}, which "
        f"{config.optim.name} does not have: leave it out."
      )
  return found


def _check(config: Config, probe: Probe, keys: Any) -> Callable[[int], bool]:
  if probe.due is not None:
    own = _passed(probe, keys)
    return functools.partial(probe.due, config, **own)
  every = option_keys.read(probe.options, tuple(keys.items())).every
  return lambda step: step % every == 0


def _passed(probe: Probe, keys: dict[str, Any]) -> dict[str, Any]:
  if probe.options is Every:
    return {}
  return option_keys.passed(
    option_keys.read(probe.options, tuple(keys.items()))
  )


def _only(context: Context, needs: Iterable[str]) -> Context:
  """The context without what a probe did not ask for."""
  fields = {
    "state": ("state",),
    "rows": ("rows", "count"),
    "grads": ("grads",),
    "updates": ("updates",),
    "micro": ("micro_grad_sq",),
    "parts": ("parts",),
  }
  names = [field for need in needs for field in fields[need]]
  return Context(**{name: getattr(context, name) for name in names})
