r"""Loss on held-out rows, with its error, beside the corpus's n-gram floor.

    python -m lm.evaluate --workdir=RUN [--sets=sotu,stdlib] [--step=N]

The loss of a set is a ratio of sums over its targets (`lm/eval/score.py`), as
during a run. Of several processes (--distributed) the first prints. When one is
lost, the others end with exit code 76, as in training.
"""

import dataclasses
import types

from .cli import flags, program
from .cli.flags import Flag

_FLAGS = (
  flags.WORKDIR,
  flags.STEP,
  Flag("sets", list, "corpora; default config.eval.sets"),
  Flag("batches", int, "of a set; 0: the whole split", 0, least=0),
  Flag("average", str, "of config.optim.averages, to score"),
  *flags.GRID,
  *flags.DISTRIBUTED,
)


@program.takes(__doc__, _FLAGS)
def main(args: types.SimpleNamespace) -> None:
  """Prints the scores."""
  import jax

  from .processes import peers

  with peers.joined(args, program.tell):
    lines = _scores(args)
  if jax.process_index() == 0:
    print(lines)


def _scores(args: types.SimpleNamespace) -> str:
  """The tables to print."""
  import jax

  from .data import layout
  from .eval import evaluator, score
  from .eval import rounded as rounded_scores
  from .runs import weights

  parts, params = weights.open_run(
    args.workdir,
    args.step,
    average=args.average,
    grid=args.grid,
    block_size=args.block_size,
  )
  config = parts.config
  names = tuple(args.sets) if args.sets else config.eval.sets
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
  program.start(main)
