"""Tables and a figure of `ml_collections_configs/matrix_study.py`.

    python -m benchmarks.matrix_study runs/matrix_study [--out=FIGURE.png]

Reads what runs there are, finished or not. Seed 0 chooses the rates; the other
seeds report. Losses are validation losses of the averaged weights, at the end
on the whole split.
"""

import argparse
import math
import pathlib
import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.cli import text
from lm.runs import metrics, plots, read
from lm.study import statistics as verdicts

SET = "sotu"
MARGIN = 0.01  # Nats within which two refreshes are the same.
_NAME = re.compile(
  r"(?P<method>[a-z]+(_1)?)_rate=(?P<rate>[0-9.e-]+)_seed=(?P<seed>\d+)"
)


class Result(NamedTuple):
  """One finished run."""

  method: str
  rate: float
  seed: int
  average: str
  loss: float
  run: read.Run

  @property
  def curve(self) -> metrics.Column:
    """Updates and losses, on the same few rows at each point."""
    return self.run.columns[read.loss_key(SET, average=self.average)]

  def updates_to(self, loss: float) -> float:
    """Updates until the curve came down to a loss; infinite if it did not."""
    reached = read.steps_to_loss(self.run, SET, loss, self.average)
    return math.inf if reached is None else reached.steps


def load(folder: pathlib.Path) -> list[Result]:
  """The finished runs of a folder."""
  found = []
  for path in sorted(folder.iterdir()):
    name, _, _ = path.name.rpartition("-")
    match = _NAME.fullmatch(name)
    if match is None or not read.is_finished(path):
      continue
    run = read.load_run(path, name)
    (average,) = run.averages(SET)
    last = run.last(SET, average=average)
    found.append(
      Result(
        match["method"], float(match["rate"]), int(match["seed"]), average,
        math.nan if last is None else last[1], run,
      )
    )  # fmt: skip
  return found


def rates_table(results: Sequence[Result]) -> str:
  """Final loss by method and rate, seed 0; * marks the best."""
  losses = {(r.method, r.rate): r.loss for r in results if r.seed == 0}
  rates = sorted({rate for _, rate in losses})
  rows = []
  for method in sorted({name for name, _ in losses}):
    mine = {x: losses[method, x] for x in rates if (method, x) in losses}
    least = min(mine, key=mine.__getitem__)
    cells = [
      f"{mine[x]:.4f}{'*' * (x == least)}" if x in mine else "-" for x in rates
    ]
    rows.append([method, *cells])
  return text.format_table(["method", *map("{:g}".format, rates)], rows)


def seeds_table(results: Sequence[Result]) -> str:
  """Loss at the end, and updates to AdamW's, on the seeds that report."""
  fresh = [r for r in results if r.seed > 0]
  base = {r.seed: r for r in fresh if r.method == "adamw"}
  ends = [r.curve.values[-1] for r in base.values()]  # On the curve's rows.
  target = float(max(ends, default=math.nan))
  rows = []
  for method in sorted({r.method for r in fresh}):
    mine = [r for r in fresh if r.method == method]
    gaps = [r.loss - base[r.seed].loss for r in mine if r.seed in base]
    rows.append(
      [
        method, f"{mine[0].rate:g}", str(len(mine)),
        _mean([r.loss for r in mine], 4), _interval(gaps),
        _mean([r.updates_to(target) for r in mine], 1),
      ]
    )  # fmt: skip
  header = ["method", "rate", "seeds", "final loss", "above AdamW [90 %]"]
  return text.format_table([*header, f"updates to {target:.3f}"], rows)


def frequencies_table(results: Sequence[Result]) -> str:
  """Loss at f = 10 minus that at f = 1, seed by seed, and whether it is 0."""
  losses = {(r.method, r.seed): r.loss for r in results if r.seed > 0}
  rows = []
  for method in sorted({name for name, _ in losses if name.endswith("_1")}):
    ten = method.removesuffix("_1")
    pairs = [
      losses[ten, seed] - loss
      for (name, seed), loss in losses.items()
      if name == method and (ten, seed) in losses
    ]
    if pairs:
      found = verdicts.equal(pairs, MARGIN)
      rows.append([ten, str(len(pairs)), _interval(pairs), found.kind])
  header = ["method", "seeds", "f = 10 above f = 1 [90 %]"]
  return text.format_table([*header, f"equal to {MARGIN:g} nats"], rows)


def draw(results: Sequence[Result], out: pathlib.Path) -> None:
  """Loss by updates at the best rates, mean and range of the seeds."""
  import matplotlib.pyplot as plt

  figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
  fresh = [r for r in results if r.seed > 0]
  ends: dict[str, list[float]] = {}
  for r in fresh:
    ends.setdefault(r.method, []).append(r.loss)
  order = sorted(ends, key=lambda name: statistics.fmean(ends[name]))
  for i, method in enumerate(order):
    runs = [r for r in fresh if r.method == method]
    steps = runs[0].curve.steps
    y = np.array([r.curve.values for r in runs])
    look = plots.look(i, marked=True)
    label = method.replace("_1", ", f = 1")
    axis.plot(steps, y.mean(0), label=label, **look)
    band = {"color": look["color"], "alpha": 0.15, "lw": 0}
    axis.fill_between(steps, y.min(0), y.max(0), **band)
  axis.set(xlabel="updates", ylabel="validation loss (nats/token)")
  axis.legend(frameon=False, ncols=2)
  figure.savefig(out, dpi=150)


def _mean(values: Sequence[float], digits: int) -> str:
  """Mean and its standard error; "2 of 3" if only two of three are finite."""
  finite = [x for x in values if math.isfinite(x)]
  if len(finite) < len(values):
    return f"{len(finite)} of {len(values)}"
  mean = f"{statistics.fmean(values):.{digits}f}"
  if len(values) < 2:
    return mean
  error = statistics.stdev(values) / math.sqrt(len(values))
  return f"{mean} ± {error:.{digits}f}"


def _interval(values: Sequence[float]) -> str:
  """Mean of differences, and its interval."""
  if not values:
    return "-"
  found = verdicts.mean_interval(values)
  return f"{found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path, help="figure to write")
  args = parser.parse_args()
  results = load(args.folder)
  print(f"{len(results)} finished runs\n\n{rates_table(results)}\n")
  print(f"{seeds_table(results)}\n\n{frequencies_table(results)}")
  if args.out:
    draw(results, args.out)


if __name__ == "__main__":
  main()
