r"""Trains a language model from a configuration; run it again to resume.

    python -m lm.main --config=ml_collections_configs/tiny.py --workdir=runs/a \
        --config.optim.learning_rate=2e-3

The same line runs on one CPU, on several devices and, with --distributed, on
several processes. Exit codes are in `lm/config/errors.py`.
"""

import types

from .cli import flags, program
from .config import load

_FLAGS = (flags.CONFIG, flags.WORKDIR, *flags.DISTRIBUTED)


@program.takes(__doc__, _FLAGS)
def main(args: types.SimpleNamespace) -> int:
  """Trains."""
  from .probes import table as probes
  from .processes import peers
  from .runs import checkpoint
  from .step import build
  from .train import loop

  config = load.from_config_dict(
    args.config, lambda c: [*build.problems(c), *probes.problems(c)]
  )
  newest = lambda: checkpoint.newest_text(args.workdir)  # noqa: E731
  with peers.joined(args, program.tell, newest):
    return loop.train(config, args.workdir)


if __name__ == "__main__":
  program.start(main)
