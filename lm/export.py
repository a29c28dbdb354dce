"""Writes the weights of a run, without optimiser state, to one .npz file.

    python -m lm.export --workdir=RUN --out=weights.npz
    python -m lm.export --workdir=RUN --out=small.npz --quantize
    python -m lm.export --workdir=RUN --out=small.npz --grid=int8

The weights are those that the method is evaluated at: the parameters of most
methods. --average=NAME writes an average of `config.optim.averages` instead.
With --quantize, or a grid, weights are rounded to nearest and stored as codes
and scales. The file is read by `numpy.load`, and by
`--config.train.init_from=weights.npz`.
"""

import argparse
import sys
from collections.abc import Sequence

from .cli import program
from .config import errors
from .runs import weights
from .weights import rounded


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m lm.export", description=(__doc__ or "").split("\n\n")[0]
  )
  parser.add_argument("--workdir", required=True, help="folder of a run")
  parser.add_argument("--out", required=True, help="file to write, .npz")
  parser.add_argument(
    "--average", metavar="NAME", help="of config.optim.averages, to write"
  )
  parser.add_argument(
    "--quantize", action="store_true", help="as config.quant of the run says"
  )
  rounded.add_arguments(parser)
  args = parser.parse_args(argv)
  try:
    step = weights.export(
      args.workdir,
      args.out,
      average=args.average,
      quantize=args.quantize or args.grid is not None,
      grid=args.grid,
      block_size=args.block_size,
    )
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return errors.BAD_INPUT
  print(f"Wrote the weights of step {step} to {args.out}.")
  return 0


if __name__ == "__main__":
  program.quiet()
  sys.exit(main())
