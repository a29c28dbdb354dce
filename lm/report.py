"""Curves and a comparison table from the folders of any runs.

    python -m lm.report RUN [RUN ...] [--out=DIR]
    python -m lm.report RUN [RUN ...] --to=3.5 --set=sotu

The first form prints two tables and draws loss.png, learning_rate.png and
norms.png against steps, tokens and seconds into DIR (default: the folder of
the run, or report/ for several). The second prints what each run needed to
bring a validation loss down to a target. Both work while a run is going on.
"""

import argparse
import sys
from collections.abc import Sequence

from .cli import text
from .runs import plots, read
from .runs.read import Run


def runs_table(runs: Sequence[Run]) -> str:
  """One line a run: size, length, time and train loss."""
  rows = []
  for run in runs:
    params = run.info.get("parameters", {}).get("total")
    tokens, seconds = run.columns["tokens"], run.columns["seconds"]
    rows.append(
      [
        run.name,
        run.info.get("status", "?"),
        "?" if params is None else text.human(params),
        str(tokens.steps[-1]),
        text.human(tokens.values[-1]),
        text.clock_text(seconds.values[-1]),
        f"{read.final_train_loss(run):.4f}",
      ]
    )
  header = "run status params steps tokens time train_loss".split()
  return text.format_table([h.replace("_", " ") for h in header], rows)


def eval_table(runs: Sequence[Run]) -> str:
  """One line a set and run: the last evaluation beside the n-gram floor."""
  sets = list(dict.fromkeys(name for run in runs for name in run.eval_sets()))
  rows = []
  for name in sets:
    for run in runs:
      if name in run.eval_sets():
        rows.append([name, run.name, *_eval_cells(run, name)])
  header = ["set", "run", "step", "loss ± stderr", "bits/byte"]
  return text.format_table([*header, "averages", "best n-gram"], rows)


def _eval_cells(run: Run, name: str) -> list[str]:
  step, loss = run.last(name) or (0, float("nan"))

  def cell(metric: str, average: str | None = None) -> str:
    found = run.last(name, metric, average)
    return f"{found[1]:.4f}" if found and found[0] == step else "-"

  stderr = cell("stderr")
  averages = [f"{a} {cell('loss', a)}" for a in run.averages(name)]
  floors = run.floors(name)
  best = min(floors, key=floors.__getitem__, default=None)
  return [
    str(step),
    f"{loss:.4f}" + ("" if stderr == "-" else f" ± {stderr}"),
    cell("bits_per_byte"),
    ", ".join(averages) or "-",
    "-" if best is None else f"{floors[best]:.4f} ({best})",
  ]


def reach_table(
  runs: Sequence[Run], name: str, loss: float, average: str | None = None
) -> str:
  """One line a run: what it took to reach the loss, see `steps_to_loss`."""
  rows = []
  for run in runs:
    reached = read.steps_to_loss(run, name, loss, average)
    cells = ["not reached", "-", "-"]
    if reached:
      cells = [
        f"{reached.steps:.0f}",
        text.human(reached.tokens),
        text.clock_text(reached.seconds),
      ]
    rows.append([run.name, *cells])
  return text.format_table(["run", "steps", "tokens", "time"], rows)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m lm.report", description=(__doc__ or "").split("\n\n")[0]
  )
  parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
  parser.add_argument("--out", metavar="DIR", help="folder of the PNGs")
  parser.add_argument(
    "--log_x", action="store_true", help="logarithmic axis of steps, ..."
  )
  parser.add_argument("--to", type=float, metavar="LOSS", help="target loss")
  parser.add_argument("--set", metavar="NAME", help="evaluation set of --to")
  parser.add_argument(
    "--average", metavar="NAME", help="of config.optim.averages, for --to"
  )
  args = parser.parse_args(argv)
  try:
    runs = read.load_runs(args.runs)
    if args.to is not None:
      name = args.set or (runs[0].eval_sets() or ["?"])[0]
      of = f" of {args.average}" if args.average else ""
      print(f"to {name} loss{of} <= {args.to:g} nats/token:\n")
      print(reach_table(runs, name, args.to, args.average))
      return 0
  except ValueError as error:
    print(f"lm.report: {error}", file=sys.stderr)
    return 2
  print(runs_table(runs))
  if any(run.eval_sets() for run in runs):
    print("\n" + eval_table(runs))
  default = args.runs[0] if len(runs) == 1 else "report"
  print()
  for path in plots.draw(runs, args.out or default, log_x=args.log_x):
    print(f"wrote {path}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
