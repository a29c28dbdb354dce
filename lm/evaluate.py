r"""Loss on held-out rows, with its error, beside the corpus's n-gram floor.

    python -m lm.evaluate --workdir=RUN [--sets=sotu,stdlib] [--step=N]

The loss of a set is a ratio of sums over its targets, so rows and batches of
any size count by their targets; the rows of padding that fill up a last batch
have none. `train/evaluation.py` scores the rows, during a run and here. Of
several processes (--distributed) the first prints; when one is lost, the others
end with exit code 76, as in training.
Dimension key: R rows of a set.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from .cli import allocator, program
from .config import errors

if __name__ == "__main__":
  allocator.settle()  # Before jax allocates anything.
  program.quiet()
  program.use_compilation_cache()

import jax

from .data import layout
from .eval import evaluator, score
from .eval import rounded as rounded_scores
from .processes import distributed, peers
from .runs import weights
from .weights import rounded


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m lm.evaluate", description=(__doc__ or "").split("\n\n")[0]
  )
  parser.add_argument("--workdir", required=True, help="folder of a run")
  parser.add_argument("--sets", help="corpora, by default config.eval.sets")
  parser.add_argument("--step", type=int, help="checkpoint; default the newest")
  distributed.add_arguments(parser)
  parser.add_argument(
    "--batches", type=int, default=0, help="per set; default whole splits"
  )
  parser.add_argument(
    "--average", metavar="NAME", help="of config.optim.averages, to score"
  )
  rounded.add_arguments(parser)
  args = parser.parse_args(argv)
  try:
    with peers.joined(
      args.distributed,
      args.coordinator,
      args.num_processes,
      args.process_id,
      tell=program.tell,
    ):
      lines = _evaluate_run(args)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return errors.BAD_INPUT
  if jax.process_index() == 0:
    print(lines)
  return 0


def _evaluate_run(args: argparse.Namespace) -> str:
  parts, params = weights.open_run(
    args.workdir,
    args.step,
    average=args.average,
    grid=args.grid,
    block_size=args.block_size,
  )
  config = parts.config
  names = tuple(args.sets.split(",")) if args.sets else config.eval.sets
  config = dataclasses.replace(
    config, eval=dataclasses.replace(config.eval, sets=names)
  )
  parts = parts._replace(config=config)
  data = {name: layout.find(config.data, name) for name in names}
  with jax.set_mesh(parts.mesh):
    scorer = evaluator.Evaluator(parts, data)
    lines = score.table(scorer.run(params, args.batches), data)
    if parts.quantizers is not None:
      rounder = rounded_scores.Rounder(parts)
      rounder.compile()
      scores = rounded_scores.score(
        scorer, rounder, params, args.batches, config.quant.draws
      )
      lines += "\n\n" + rounded_scores.table(scores, rounder.measure(params))
  return lines


if __name__ == "__main__":
  sys.exit(main())
