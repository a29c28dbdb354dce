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

from lm.cli import text
from lm.runs import read

from . import study

SET = "sotu"
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

  def updates_to(self, loss: float) -> float:
    """Updates until the curve came down to a loss; infinite if it did not."""
    reached = read.steps_to_loss(self.run, SET, loss, self.average)
    return math.inf if reached is None else reached.steps


def load(folder: pathlib.Path) -> list[Result]:
  """The finished runs of a folder."""
  found = []
  for named in study.load(folder, _NAME):
    (average,) = named.run.averages(SET)
    fields = named.fields
    found.append(
      Result(
        fields["method"],
        float(fields["rate"]),
        int(fields["seed"]),
        average,
        named.final(SET, average=average),
        named.run,
      )
    )
  return found


def rates_table(results: Sequence[Result]) -> str:
  """Final loss by method and rate, seed 0; * marks the best."""
  tuned = [r for r in results if r.seed == 0]
  return study.choices_table(
    tuned, lambda r: (r.method,), lambda r: r.rate, ["method"]
  )


def seeds_table(results: Sequence[Result]) -> str:
  """Loss at the end, and updates to AdamW's, on the seeds that report."""
  fresh = [r for r in results if r.seed > 0]
  base = [r for r in fresh if r.method == "adamw"]
  target = max((r.loss for r in base), default=math.nan)
  rows = []
  for method in sorted({r.method for r in fresh}):
    mine = [r for r in fresh if r.method == method]
    updates = [r.updates_to(target) for r in mine]
    rows.append(
      [
        method, f"{mine[0].rate:g}", str(len(mine)),
        study.mean_error([r.loss for r in mine], 4),
        study.mean_error(updates, 1),
      ]
    )  # fmt: skip
  header = ["method", "rate", "seeds", "final loss"]
  return text.format_table([*header, f"updates to {target:.3f}"], rows)


def frequencies_table(results: Sequence[Result]) -> str:
  """Loss at f = 1 minus that at f = 10, seed by seed."""
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
      rows.append([ten, str(len(pairs)), study.mean_error(pairs, 4)])
  return text.format_table(["method", "seeds", "f = 10 above f = 1"], rows)


def draw(results: Sequence[Result], out: pathlib.Path) -> None:
  """Loss by updates at the best rates, mean and range of the seeds."""
  import matplotlib.pyplot as plt

  figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
  fresh = [r for r in results if r.seed > 0]
  ends = {}
  for r in fresh:
    ends.setdefault(r.method, []).append(r.loss)
  order = sorted(ends, key=lambda name: statistics.fmean(ends[name]))
  for look, method in enumerate(order):
    runs = [r for r in fresh if r.method == method]
    curves = [
      r.run.columns[read.loss_key(SET, average=r.average)] for r in runs
    ]
    study.draw_band(
      axis, curves[0].steps, [c.values for c in curves], method, look
    )
  axis.set(xlabel="updates", ylabel="validation loss (nats/token)")
  axis.legend(frameon=False, ncols=2)
  figure.savefig(out, dpi=150)


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
