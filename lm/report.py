"""Curves and a comparison table from the folders of any runs.

    python -m lm.report RUN [RUN ...] [--out=DIR]
    python -m lm.report RUN [RUN ...] --to=3.5 --set=sotu

The first form prints two tables and draws loss.png, learning_rate.png and
norms.png against steps, tokens and seconds into DIR (default: the folder of
the run, or report/ for several). The second prints what each run needed to
bring a validation loss down to a target. Both work while a run is going on.
"""

import types

from .cli import program
from .cli.flags import Flag

_FLAGS = (
  Flag("out", str, "folder of the figures"),
  Flag("log_x", bool, "logarithmic axes of steps, tokens and seconds", False),
  Flag("to", float, "target loss, nats/token"),
  Flag("set", str, "evaluation set of --to; default the first"),
  Flag("average", str, "of config.optim.averages, for --to"),
)


@program.takes(__doc__, _FLAGS, positionals="RUN")
def main(args: types.SimpleNamespace) -> None:
  """Prints the tables and draws the figures."""
  from .runs import plots, read, tables

  runs = read.load_runs(args.positionals)
  if args.to is not None:
    name = args.set or (runs[0].eval_sets() or ["?"])[0]
    of = f" of {args.average}" if args.average else ""
    print(f"to {name} loss{of} <= {args.to:g} nats/token:\n")
    print(tables.reach_table(runs, name, args.to, args.average))
    return
  print(tables.runs_table(runs))
  if any(run.eval_sets() for run in runs):
    print("\n" + tables.eval_table(runs))
  default = args.positionals[0] if len(runs) == 1 else "report"
  print()
  for path in plots.draw(runs, args.out or default, log_x=args.log_x):
    print(f"wrote {path}")


if __name__ == "__main__":
  program.start(main)
