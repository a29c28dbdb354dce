"""Plan, tables and a figure of `ml_collections_configs/lotion_study.py`.

    python -m benchmarks.lotion_study --plan [--tokens_per_s=10000]
    python -m benchmarks.lotion_study runs/lotion_study [--out=FIGURE.png]

The first counts what the sweeps compute. The second reads what runs are
finished: losses at the end of training, of the weights as they are, rounded to
nearest and rounded at random, by method and grid. Strengths are chosen by the
loss under rounding at random, the loss that LOTION descends; --by=nearest
chooses by the other.
"""

import argparse
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm.cli import text
from lm.config.schema import Config
from ml_collections_configs import lotion_study as definition

from . import study

SET = "sotu"
GRIDS = ("int4", "fp4", "int8")
# (optimiser, method), in the order of the tables.
METHODS = (
  ("adamw", "ptq"),
  ("adamw", "qat"),
  ("adamw", "qat-s"),
  ("adamw", "rat"),
  ("adamw", "rat-s"),
  ("adamw", "lotion"),
  ("adamw", "lotion-sampled"),
  ("soap", "ptq"),
  ("soap", "lotion-factors"),
)
_SCORES = {
  "full": "loss",
  "nearest": "loss_nearest",
  "random": "loss_random",
}
_NAME = re.compile(
  r"(?P<grid>[a-z0-9]+)_(?P<optimizer>[a-z]+)_(?P<method>[a-z-]+)"
  r"_rate=(?P<rate>[0-9.e-]+)_seed=(?P<seed>\d+)"
  r"(_strength=(?P<strength>[0-9.e+-]+))?"
)


class Result(NamedTuple):
  """One finished run."""

  grid: str
  optimizer: str
  method: str
  rate: float
  seed: int
  strength: float  # 0 for all but LOTION.
  named: study.Named

  @property
  def loss(self) -> float:
    """Of the weights as they are, at the end."""
    return self.score("full")

  def score(self, name: str) -> float:
    """At the end; name is a key of `_SCORES`."""
    return self.named.final(SET, _SCORES[name])


Groups = Mapping[tuple[str, str, str], Sequence[Result]]


def load(folder: pathlib.Path) -> list[Result]:
  """The finished runs of a folder."""
  return [
    Result(
      named.fields["grid"],
      named.fields["optimizer"],
      named.fields["method"],
      float(named.fields["rate"]),
      int(named.fields["seed"]),
      float(named.fields["strength"] or 0),
      named,
    )
    for named in study.load(folder, _NAME)
  ]


def rates(results: Sequence[Result]) -> list[Result]:
  """The runs that choose a rate: not rounded in training, seed 0, one grid."""
  return [
    r for r in results if (r.grid, r.method, r.seed) == ("int4", "ptq", 0)
  ]


def strengths(results: Sequence[Result]) -> list[Result]:
  """The runs that choose a strength: LOTION's on seed 0, at the best rate."""
  best = study.best(rates(results), lambda r: r.optimizer, lambda r: r.rate)
  return [
    r
    for r in results
    if r.strength and r.seed == 0 and r.rate == best.get(r.optimizer)
  ]


def rates_table(results: Sequence[Result], by: str) -> str:
  """Loss of every method by learning rate: seed 0, one grid, best strength.

  Those that round in training, too, at the rates of those that do not.
  """
  strength = _best_strengths(results, by)
  return study.choices_table(
    [
      r
      for r in results
      if (r.grid, r.seed) == ("int4", 0)
      and r.strength == strength.get((r.grid, r.method), 0.0)
    ],
    lambda r: (r.optimizer, r.method),
    lambda r: r.rate,
    ["optimizer", f"loss, {by}"],
    lambda r: r.score(by),
  )


def at_best(results: Sequence[Result], by: str) -> Groups:
  """Runs at the best rate, and strength `by` a score, by grid and method."""
  rate = study.best(rates(results), lambda r: r.optimizer, lambda r: r.rate)
  strength = _best_strengths(results, by)
  found = {}
  for grid in GRIDS:
    for optimizer, method in METHODS:
      mine = [
        r
        for r in results
        if (r.grid, r.optimizer, r.method) == (grid, optimizer, method)
        and r.rate == rate.get(optimizer)
        and r.strength == strength.get((grid, method), 0.0)
      ]
      if mine:
        found[grid, optimizer, method] = mine
  return found


def _best_strengths(results: Sequence[Result], by: str) -> dict[Any, float]:
  return study.best(
    strengths(results),
    lambda r: (r.grid, r.method),
    lambda r: r.strength,
    lambda r: r.score(by),
  )


def strengths_table(results: Sequence[Result], by: str) -> str:
  """Loss under one rounding by curvature, grid and strength."""
  return study.choices_table(
    strengths(results),
    lambda r: (r.grid, r.method),
    lambda r: r.strength,
    ["grid", f"loss, {by}"],
    lambda r: r.score(by),
  )


def scores_table(groups: Groups) -> str:
  """Three losses by grid and method: mean over seeds and standard error.

  Next to those of rounded weights, how far they are below the same optimiser's
  without rounding in training (ptq), seed by seed: seeds differ by more than
  methods do, and alike in all methods.
  """
  rows = []
  for (grid, optimizer, method), mine in groups.items():
    plain = {r.seed: r for r in groups.get((grid, optimizer, "ptq"), [])}
    cells = [study.mean_error([r.loss for r in mine], 4)]
    for name in ("nearest", "random"):
      cells.append(study.mean_error([r.score(name) for r in mine], 4))
      gained = [
        plain[r.seed].score(name) - r.score(name)
        for r in mine
        if r.seed in plain
      ]
      hidden = method == "ptq" or not gained
      cells.append("-" if hidden else study.mean_error(gained, 4))
    cells.append(
      study.mean_error([r.named.last("quant/on_grid_share") for r in mine], 2)
    )
    strength = f"{mine[0].strength:g}" if mine[0].strength else "-"
    seeds = str(len(mine))
    rows.append(
      [grid, optimizer, method, f"{mine[0].rate:g}", strength, seeds, *cells]
    )
  header = ["grid", "optimizer", "method", "rate", "strength", "seeds", "full"]
  return text.format_table(
    [*header, "nearest", "below ptq", "random", "below ptq", "on grid"], rows
  )


def draw(groups: Groups, path: pathlib.Path) -> None:
  """What rounding costs each method, a panel for each grid.

  Bars are mean losses of rounded weights above what the same optimiser reaches
  without rounding on the same seed; whiskers span the seeds.
  """
  from matplotlib import figure as mpl_figure

  figure = mpl_figure.Figure((4 * len(GRIDS), 3.8), layout="constrained")
  panels = figure.subplots(1, len(GRIDS), sharey=True, squeeze=False)[0]
  for panel, grid in zip(panels, GRIDS, strict=True):
    for y, (optimizer, method) in enumerate(METHODS):
      mine = groups.get((grid, optimizer, method))
      plain = groups.get((grid, optimizer, "ptq"))
      if mine is None or plain is None:
        continue
      base = {r.seed: r.loss for r in plain}
      for look, score in enumerate(("nearest", "random"), start=1):
        costs = [r.score(score) - base[r.seed] for r in mine if r.seed in base]
        mean = statistics.fmean(costs)
        panel.barh(
          y + 0.4 * (look - 1.5), mean, 0.38, color=study.LOOKS[look][0],
          xerr=[[mean - min(costs)], [max(costs) - mean]],
          label=f"rounded, {score}" if y == 0 else None,
        )  # fmt: skip
    panel.set(title=grid, xlabel="loss above the optimiser's (nats)")
  panels[0].set_yticks(range(len(METHODS)), [" ".join(x) for x in METHODS])
  panels[0].invert_yaxis()
  figure.legend(
    *panels[0].get_legend_handles_labels(), loc="outside lower center",
    ncols=2, frameon=False,
  )  # fmt: skip
  figure.savefig(path, dpi=150)


def passes(config: Config) -> float:
  """Forward passes that a token of training costs.

  A gradient is 3. Drawn labels take another, example by example, on their
  rows; rounding is no matrix product.
  """
  q = config.quant
  rows = q.fisher_rows if q.curvature == "sampled" else 0
  return 3.0 * (1 + rows / config.data.batch_size)


def method_of(run: Mapping[str, Any]) -> str:
  """Optimiser and method of a run."""
  fields = _NAME.fullmatch(run["name"])
  return f"{fields['optimizer']} {fields['method']}" if fields else "?"


def main() -> None:
  """Prints the plan, or the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", nargs="?", type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path, help="figure to write")
  parser.add_argument("--by", default="random", choices=list(_SCORES))
  study.add_plan_arguments(parser)
  args = parser.parse_args()
  if args.plan:
    sweeps = {
      "rates": definition.rates(),
      "strengths": definition.strengths(),
      "method_rates": definition.method_rates(),
      "seeds": definition.seeds(),
    }
    print(study.plan_table(sweeps, method_of, passes, args))
  if args.folder is None:
    return
  results = load(args.folder)
  groups = at_best(results, args.by)
  print(f"{len(results)} finished runs\n\n{rates_table(results, args.by)}\n")
  print(f"{strengths_table(results, args.by)}\n\n{scores_table(groups)}")
  if args.out:
    draw(groups, args.out)


if __name__ == "__main__":
  from lm.cli import allocator

  allocator.settle()
  main()
