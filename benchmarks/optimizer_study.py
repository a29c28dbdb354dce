"""Tables and a figure of `ml_collections_configs/optimizer_study.py`.

    python -m benchmarks.optimizer_study runs/optimizer_study [--out=FIGURE.png]
    python -m benchmarks.optimizer_study --time [--rounds=3]

The first reads what runs there are, finished or not. Losses are validation
losses of the averaged weights. The second measures the milliseconds of an
update of each method, which take turns in one process; the seconds of the
tables are not those of the runs, which may have shared the machine.
"""

import argparse
import math
import pathlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lm.cli import text
from lm.runs import read
from lm.runs.read import Run
from ml_collections_configs import optimizer_study as definition

from . import study

SET = "sotu"
_NAME = re.compile(
  r"(?P<batch>large|small)_(?P<method>[a-z]+)_rate=(?P<rate>[0-9.e-]+)"
  r"_seed=(?P<seed>\d+)(_frequency=(?P<frequency>\d+))?(?P<one>_one_sided)?"
)
METHODS = ("adamw", "muon", "shampoo", "soap")


class Result(NamedTuple):
  """One finished run."""

  batch: str
  method: str
  rate: float
  seed: int
  frequency: int
  one_sided: bool
  average: str  # Of the weights; its name.
  loss: float  # At the end, on the whole split.
  run: Run  # Its curve is on the same few rows at each point.

  @property
  def curve(self) -> Any:
    """Updates and losses."""
    return self.run.columns[read.loss_key(SET, average=self.average)]

  def steps_to(self, loss: float) -> float:
    """Updates until the curve came down to a loss; infinite if it did not."""
    reached = read.steps_to_loss(self.run, SET, loss, self.average)
    return math.inf if reached is None else reached.steps


def load(folder: pathlib.Path) -> list[Result]:
  """The finished runs of a folder."""
  return [_result(named) for named in study.load(folder, _NAME)]


def _result(named: study.Named) -> Result:
  run, (average,) = named.run, named.run.averages(SET)
  key = read.loss_key(SET, average=average)
  final = named.final(SET, average=average)
  if read.loss_key(SET, "final_loss", average) not in run.columns:
    # Written when the last score, of other rows, was under the curve's key.
    curve = read.metrics.Column(*(part[:-1] for part in run.columns[key]))
    run = run._replace(columns=run.columns | {key: curve})
  return Result(
    named.fields["batch"],
    named.fields["method"],
    float(named.fields["rate"]),
    int(named.fields["seed"]),
    int(named.fields["frequency"] or 10),
    bool(named.fields["one"]),
    average,
    final,
    run,
  )


def tuned(results: Iterable[Result]) -> list[Result]:
  """The runs that choose a rate: seed 0, all else as it is by default."""
  return [
    r for r in results if (r.seed, r.frequency, r.one_sided) == (0, 10, False)
  ]


def rates_table(results: Iterable[Result]) -> str:
  """Final loss by method and rate, seed 0; * marks the best."""
  return study.choices_table(
    tuned(results),
    lambda r: (r.batch, r.method),
    lambda r: r.rate,
    ["batch", "method"],
  )


def best_rates(results: Iterable[Result]) -> dict[Any, float]:
  """The rate of least final loss on seed 0, by batch and method."""
  return study.best(
    tuned(results), lambda r: (r.batch, r.method), lambda r: r.rate
  )


def steps_table(results: Sequence[Result], step_ms: dict) -> str:
  """Updates to where AdamW's curves end, mean over seeds and its error.

  Args:
    results: All runs.
    step_ms: Milliseconds of an update by (batch, method); may be empty.
  """
  best, rows = best_rates(results), []
  for batch in sorted({r.batch for r in results}):
    seeds = _of(results, batch, "adamw", best)
    if not seeds:
      continue
    target = max(float(r.curve.values[-1]) for r in seeds)
    base = statistics.fmean(r.steps_to(target) for r in seeds)
    for method in METHODS:
      mine = _of(results, batch, method, best)
      if not mine:
        continue
      steps = [r.steps_to(target) for r in mine]
      mean = statistics.fmean(steps)
      ms = step_ms.get((batch, method))
      rows.append(
        [
          batch, method, f"{best[batch, method]:g}", str(len(mine)),
          study.mean_error([r.loss for r in mine], 4), f"{target:.3f}",
          study.mean_error(steps, 1), f"{mean / base:.2f}",
          "-" if ms is None else f"{mean * ms / 1e3:.1f}",
        ]
      )  # fmt: skip
  header = ["batch", "method", "rate", "seeds", "final loss", "target"]
  return text.format_table([*header, "updates", "of adamw's", "seconds"], rows)


def variants_table(results: Sequence[Result]) -> str:
  """Refresh frequencies, and embeddings with a factor; large batch."""
  best, rows = best_rates(results), []
  keys = sorted(
    {
      (r.method, r.frequency, r.one_sided)
      for r in results
      if r.batch == "large" and r.method in ("soap", "shampoo")
    }
  )
  for method, frequency, one_sided in keys:
    mine = [
      r
      for r in results
      if (r.batch, r.method, r.frequency, r.one_sided)
      == ("large", method, frequency, one_sided)
      and r.rate == best.get(("large", method))
    ]
    if mine:
      place = "one-sided" if one_sided else "Adam"
      losses = study.mean_error([r.loss for r in mine], 4)
      rows.append([method, str(frequency), place, str(len(mine)), losses])
  header = ["method", "frequency", "embedding, head", "seeds", "final loss"]
  return text.format_table(header, rows)


def draw(results: Sequence[Result], out: pathlib.Path) -> None:
  """Loss by updates at the best rates, and at the end by rate and refresh."""
  import matplotlib.pyplot as plt

  best = best_rates(results)
  figure, axes = plt.subplots(
    2, 3, figsize=(13, 7), squeeze=False, layout="constrained"
  )
  sizes = {"large": "16,384 tokens an update", "small": "2,048 tokens"}
  for column, batch in enumerate(("large", "small")):
    curve, tuning = axes[0][column], axes[1][column]
    for look, method in enumerate(METHODS):
      runs = _of(results, batch, method, best)
      if runs:
        losses = [r.curve.values for r in runs]
        study.draw_band(curve, runs[0].curve.steps, losses, method, look)
      tried = sorted(
        (r.rate, r.loss)
        for r in tuned(results)
        if (r.batch, r.method) == (batch, method)
      )
      if tried:
        study.draw_band(
          tuning, [rate for rate, _ in tried], [[loss for _, loss in tried]],
          method, look,
        )  # fmt: skip
    curve.set(
      title=sizes[batch],
      xlabel="updates",
      ylabel="validation loss (nats/token)",
    )
    tried = sorted({r.rate for r in tuned(results) if r.batch == batch})
    _log_axis(tuning, tried, "learning rate")
    curve.legend(frameon=False)
  refresh = axes[0][2]
  for method in ("shampoo", "soap"):
    runs = [
      r
      for r in results
      if (r.batch, r.method, r.one_sided) == ("large", method, False)
      and r.rate == best.get(("large", method))
    ]
    shown = sorted({r.frequency for r in runs})
    losses = [[r.loss for r in runs if r.frequency == n] for n in shown]
    if shown and len({len(column) for column in losses}) == 1:
      study.draw_band(
        refresh,
        shown,
        list(zip(*losses, strict=True)),
        method,
        METHODS.index(method),
      )
  _log_axis(refresh, [1, 10, 50, 100], "updates between refreshes")
  refresh.set_title(sizes["large"])
  axes[1][2].axis("off")
  figure.savefig(out, dpi=150)


def _log_axis(axis, ticks, label) -> None:
  """Final loss against what was tried, ticks where that is."""
  axis.set(xscale="log", xlabel=label, ylabel="final loss (nats/token)")
  axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
  axis.minorticks_off()


def time_steps(rounds: int) -> dict[Any, float]:
  """Milliseconds of an update by (batch, method), turn by turn."""
  found: dict[Any, float] = {}
  for batch in ("large", "small"):
    runs: dict[Any, Mapping[str, Any]] = {}
    for run in definition.seeds():
      fields = _NAME.fullmatch(run["name"])
      if fields and (fields["batch"], fields["seed"]) == (batch, "0"):
        runs[batch, fields["method"]] = run
    found |= study.time_updates(runs, rounds)
  return found


def _of(results, batch, method, best) -> list[Result]:
  """Runs at the best rate with the defaults, one a seed."""
  return [
    r
    for r in results
    if (r.batch, r.method, r.frequency, r.one_sided)
    == (batch, method, 10, False)
    and r.rate == best.get((batch, method))
  ]


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folder", nargs="?", type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path, help="figure to write")
  parser.add_argument("--time", action="store_true", help="measure updates")
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  step_ms = time_steps(args.rounds) if args.time else {}
  for (batch, method), ms in step_ms.items():
    base = step_ms[batch, "adamw"]
    print(f"{batch} {method}: {ms:.1f} ms, {ms / base:.2f} of adamw's")
  if args.folder is None:
    return
  results = load(args.folder)
  print(f"{len(results)} finished runs\n\n{rates_table(results)}\n")
  print(f"{steps_table(results, step_ms)}\n\n{variants_table(results)}")
  if args.out:
    draw(results, args.out)


if __name__ == "__main__":
  from lm.cli import allocator

  allocator.settle()
  main()
