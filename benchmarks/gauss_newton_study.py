"""Plan, tables and figures of `ml_collections_configs/gauss_newton_study.py`.

    python -m benchmarks.gauss_newton_study --plan [--tokens_per_s=10000]
    python -m benchmarks.gauss_newton_study runs/gauss_newton_study
        [--time] [--rounds=3] [--out=FOLDER]

The first counts what the sweeps compute. The second reads what runs are
finished: the updates, tokens (those of line searches too), passes one after the
other and seconds that each method needs to the losses that AdamW, SOAP and
Gauss-Newton end with, and one figure for each of the four. Seconds are those of
updates that take turns in one process (--time), since runs may have shared the
machine; without it there are none.
"""

import argparse
import functools
import math
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.cli import text
from lm.config.schema import Config
from lm.methods import newton
from lm.runs import read
from ml_collections_configs import gauss_newton_study as definition
from optim.newton import line_search

from . import study

SET = "sotu"
METHODS = ("adamw", "muon", "soap", "gn", "prox", "layerwise", "nonlinear")
GOALS = ("adamw", "soap", "gn")  # Whose last losses the tables are about.
_NAME = re.compile(
  r"(?P<method>[a-z]+)_batches=(?P<batches>\d+)_rate=(?P<rate>[0-9.e-]+)"
  r"_seed=(?P<seed>\d+)"
)
_AXES = {
  "updates": "outer steps",
  "tokens": "tokens, line searches included",
  "depth": "passes one after the other",
  "seconds": "seconds on two cores",
}


class Result(NamedTuple):
  """One finished run."""

  method: str
  batches: int
  rate: float
  seed: int
  named: study.Named

  @property
  def loss(self) -> float:
    """At the end."""
    return self.named.final(SET)

  def curve(self) -> tuple[np.ndarray, np.ndarray]:
    """Updates and validation losses."""
    column = self.named.run.columns[f"eval/{SET}/loss"]
    return column.steps, column.values

  def updates_to(self, loss: float) -> float:
    """Infinite if the loss was not reached."""
    reached = read.steps_to_loss(self.named.run, SET, loss)
    return math.inf if reached is None else reached.steps

  def clock(self, axis: str, updates: Any, ms: float) -> Any:
    """What so many updates took on an axis.

    Args:
      axis: A key of `_AXES`.
      updates: Number or array.
      ms: Milliseconds of an update, or NaN.
    """
    columns = self.named.run.columns
    if axis == "tokens":
      column = columns["tokens"]
      return updates * column.values[-1] / column.steps[-1]
    if axis == "depth":
      return updates * depth(self.method, self.batches)
    if axis == "seconds":
      return updates * ms / 1e3
    return updates


def load(folder: pathlib.Path) -> list[Result]:
  """The finished runs of a folder."""
  return [
    Result(
      named.fields["method"],
      int(named.fields["batches"]),
      float(named.fields["rate"]),
      int(named.fields["seed"]),
      named,
    )
    for named in study.load(folder, _NAME)
  ]


def tuned(results: Sequence[Result]) -> list[Result]:
  """Runs of the middle batch on seed 0, where the rates are chosen."""
  middle = sorted({r.batches for r in results})
  middle = middle[len(middle) // 2]
  return [r for r in results if (r.batches, r.seed) == (middle, 0)]


def at_best(results: Sequence[Result]) -> dict[tuple[int, str], list[Result]]:
  """Runs at their method's best rate by (batches, method), one a seed."""
  best = study.best(tuned(results), lambda r: r.method, lambda r: r.rate)
  found: dict[tuple[int, str], list[Result]] = {}
  for batches in sorted({r.batches for r in results}):
    for method in METHODS:
      mine = [
        r
        for r in results
        if (r.batches, r.method, r.rate) == (batches, method, best.get(method))
      ]
      if mine:
        found[batches, method] = mine
  return found


def reach_table(
  groups: Mapping[tuple[int, str], Sequence[Result]],
  step_ms: Mapping[Any, float],
  goal: str | float,
) -> str:
  """What it took to reach a loss; mean over seeds and its standard error.

  Args:
    groups: From `at_best`.
    step_ms: Milliseconds of an update by (batches, method); may be empty.
    goal: The loss, or a method: at each batch size the highest loss that it
      ends with on a seed, which all of its runs reach.
  """
  rows = []
  for (batches, method), mine in groups.items():
    loss = goal
    if isinstance(loss, str):
      loss = max((r.loss for r in groups.get((batches, loss), [])), default=0.0)
    updates = [r.updates_to(loss) for r in mine]
    solved = [r.updates_to(loss) for r in groups.get((batches, "gn"), [])]
    ratio = math.nan
    if solved and max(solved) < math.inf:
      ratio = statistics.fmean(updates) / statistics.fmean(solved)

    def cell(axis, digits, unit=1.0, mine=mine, updates=updates):
      ms = step_ms.get((mine[0].batches, mine[0].method), math.nan)
      clocks = [
        r.clock(axis, u, ms) / unit for r, u in zip(mine, updates, strict=True)
      ]
      return study.mean_error(clocks, digits)

    rows.append(
      [
        str(batches), method, f"{mine[0].rate:g}", str(len(mine)),
        study.mean_error([r.loss for r in mine], 3), f"{loss:.3f}",
        cell("updates", 1), study.mean_error([ratio], 2),
        cell("tokens", 0, 1e3), cell("depth", 0), cell("seconds", 1),
      ]
    )  # fmt: skip
  header = ["N", "method", "rate", "seeds", "final loss", "target", "updates"]
  return text.format_table(
    [*header, "of gn's", "ktokens", "depth", "seconds"], rows
  )


def draw(
  groups: Mapping[tuple[int, str], Sequence[Result]],
  step_ms: Mapping[Any, float],
  axis: str,
  path: pathlib.Path,
) -> None:
  """Loss against one axis, a panel for each batch size.

  Args:
    groups: From `at_best`.
    step_ms: Milliseconds of an update by (batches, method); for "seconds".
    axis: A key of `_AXES`.
    path: Of the figure.
  """
  from matplotlib import figure as mpl_figure
  from matplotlib import ticker

  sizes = sorted({batches for batches, _ in groups})
  figure = mpl_figure.Figure((4 * len(sizes), 3.6), layout="constrained")
  panels = figure.subplots(1, len(sizes), squeeze=False)[0]
  for panel, batches in zip(panels, sizes, strict=True):
    for look, method in enumerate(METHODS):
      mine = groups.get((batches, method))
      if mine:
        steps, _ = mine[0].curve()
        ms = step_ms.get((batches, method), math.nan)
        study.draw_band(
          panel, mine[0].clock(axis, steps, ms), [r.curve()[1] for r in mine],
          method, look,
        )  # fmt: skip
    panel.set(title=f"N = {batches}", xlabel=_AXES[axis], xscale="log")
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
    panel.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    panel.xaxis.set_minor_formatter(ticker.NullFormatter())
  panels[0].set_ylabel("validation loss (nats/token)")
  panels[-1].legend(frameon=False, fontsize="small")
  figure.savefig(path, dpi=150)


def passes(config: Config) -> float:
  """Forward passes that a token costs; of Gauss-Newton, a mean over tokens.

  A gradient is 3, a local model's 5 (`docs/gauss_newton.md`); that of the six
  groups of this study's model is 14.2, counted from its jaxpr.
  """
  if config.optim.name != newton.OUTER:
    return 3.0
  g: Any = config.gauss_newton
  solve = 3.0 if g.mode == "nonlinear" else 5.0
  if g.scope == "layerwise":
    solve = 14.2
  n, m = g.inner_steps, newton.num_search_batches(config)
  return (n * solve + m * num_candidates(config)) / (n + m)


def num_candidates(config: Config) -> int:
  """Steps that a line search tries."""
  layerwise = config.gauss_newton.scope == "layerwise"
  groups = config.model.N + 2 if layerwise else 1
  return len(line_search.candidates(newton.grid(config), groups))


@functools.cache
def depth(method: str, batches: int) -> int:
  """Passes of an update that wait for one another: `gn/depth` of its logs."""
  start = f"{method}_batches={batches}_"
  run = next(r for r in definition.seeds() if r["name"].startswith(start))
  config = study.resolve(run)
  if config.optim.name != newton.OUTER:
    return 1
  return config.gauss_newton.inner_steps + num_candidates(config)


def method_of(run: Mapping[str, Any]) -> str:
  """Its name in the tables."""
  return run["name"].partition("_")[0]


def time_methods(rounds: int) -> dict[Any, float]:
  """Milliseconds of an update by (batches, method), methods turn by turn.

  Updates are long and those of a method alike, but for SOAP's refreshes: one in
  a turn says enough.
  """
  found: dict[Any, float] = {}
  runs: dict[int, dict[Any, Any]] = {}
  for run in definition.seeds():
    fields = _NAME.fullmatch(run["name"])
    if fields and fields["seed"] == "0":
      batches = int(fields["batches"])
      runs.setdefault(batches, {})[batches, fields["method"]] = run
  for mine in runs.values():
    found |= study.time_updates(
      mine, rounds, lambda key: study.TURN if key[1] == "soap" else 1
    )
  return found


def main() -> None:
  """Prints the plan, or the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", nargs="?", type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path, help="folder of the figures")
  parser.add_argument(
    "--to", type=float, help=f"loss; default: the last of {', '.join(GOALS)}"
  )
  parser.add_argument("--time", action="store_true", help="measure updates")
  parser.add_argument("--rounds", type=int, default=3)
  study.add_plan_arguments(parser)
  args = parser.parse_args()
  if args.plan:
    sweeps = {"rates": definition.rates(), "seeds": definition.seeds()}
    print(study.plan_table(sweeps, method_of, passes, args))
  step_ms = time_methods(args.rounds) if args.time else {}
  for (batches, method), ms in step_ms.items():
    base = step_ms[batches, "adamw"]
    print(f"N={batches} {method}: {ms:.0f} ms, {ms / base:.2f} of adamw's")
  if args.folder is None:
    return
  results = load(args.folder)
  groups = at_best(results)
  rates = study.choices_table(
    tuned(results), lambda r: (r.method,), lambda r: r.rate, ["method"]
  )
  print(f"{len(results)} finished runs\n\n{rates}\n")
  for goal in GOALS if args.to is None else [args.to]:
    print(reach_table(groups, step_ms, goal), end="\n\n")
  if args.out:
    args.out.mkdir(parents=True, exist_ok=True)
    for axis in _AXES:
      if axis != "seconds" or step_ms:
        path = args.out / f"gauss_newton_{axis}.png"
        draw(groups, step_ms, axis, path)


if __name__ == "__main__":
  from lm.cli import allocator

  allocator.settle()
  main()
