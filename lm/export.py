"""Writes the weights of a run, without optimiser state, to one .npz file.

    python -m lm.export --workdir=RUN --out=weights.npz

The average of the weights is written if the run keeps one. The file is read by
`numpy.load`, and by `--config.train.init_from=weights.npz`.
"""

import argparse
import sys
from collections.abc import Sequence

from . import program


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m lm.export", description=(__doc__ or "").split("\n\n")[0]
  )
  parser.add_argument("--workdir", required=True, help="folder of a run")
  parser.add_argument("--out", required=True, help="file to write, .npz")
  args = parser.parse_args(argv)
  from .train import weights  # Costs seconds that --help need not.

  try:
    step = weights.export(args.workdir, args.out)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return program.BAD_INPUT
  print(f"Wrote the weights of step {step} to {args.out}.")
  return 0


if __name__ == "__main__":
  program.quiet()
  sys.exit(main())
