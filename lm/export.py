"""Writes the weights of a run, without optimiser state, to one .npz file.

    python -m lm.export --workdir=RUN --out=weights.npz
    python -m lm.export --workdir=RUN --out=small.npz --quantize
    python -m lm.export --workdir=RUN --out=small.npz --grid=int8

The weights are the point at which the method is evaluated: for most methods the
parameters. --average=NAME writes an average of `config.optim.averages` instead.
With --quantize, or a grid, weights are rounded to nearest and stored as codes
and scales. `numpy.load` and `--config.train.init_from=weights.npz` read the
file.
"""

import types

from .cli import flags, program
from .cli.flags import Flag

_FLAGS = (
  flags.WORKDIR,
  Flag("out", str, "file to write, .npz", required=True),
  Flag("average", str, "of config.optim.averages, to write"),
  Flag("quantize", bool, "round as config.quant of the run says", False),
  *flags.GRID,
)


@program.takes(__doc__, _FLAGS)
def main(args: types.SimpleNamespace) -> None:
  """Writes the file."""
  from .runs import weights

  step = weights.export(
    args.workdir,
    args.out,
    average=args.average,
    quantize=args.quantize or args.grid is not None,
    grid=args.grid,
    block_size=args.block_size,
  )
  print(f"Wrote the weights of step {step} to {args.out}.")


if __name__ == "__main__":
  program.start(main)
