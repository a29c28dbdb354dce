r"""Trains a language model from a configuration; run it again to resume.

    python -m lm.main --config=ml_collections_configs/tiny.py --workdir=runs/a \
        --config.optim.learning_rate=2e-3

The same line runs on one CPU, on several devices and, with --distributed, on
several processes. Exit codes are in `lm/config/errors.py`.
"""

import types
from collections.abc import Sequence

from .cli import flags, program
from .config import load

_FLAGS = (flags.CONFIG, flags.WORKDIR, *flags.DISTRIBUTED)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  return program.run(_train, argv, __doc__, _FLAGS)


def _train(args: types.SimpleNamespace) -> int:
  from .probes import table as probes
  from .processes import peers
  from .runs import checkpoint
  from .step import build
  from .train import loop

  config = load.from_config_dict(
    args.config, lambda c: [*build.problems(c), *probes.problems(c)]
  )
  with peers.joined(
    *flags.in_order(args, flags.DISTRIBUTED),
    tell=program.tell,
    goes_on_from=lambda: checkpoint.newest_text(args.workdir),
  ):
    return loop.train(config, args.workdir)


if __name__ == "__main__":
  program.start(main)
