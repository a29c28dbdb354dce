r"""Trains a language model from a configuration; run it again to resume.

    python -m lm.main --config=ml_collections_configs/tiny.py --workdir=runs/a \
        --config.optim.learning_rate=2e-3

The same line runs on one CPU, on several devices and, with --distributed, on
several processes. Exit codes are in `lm/cli/program.py`.
"""

from .cli import allocator, program
from .config.errors import InputError

allocator.settle()  # Before jax allocates anything.
program.use_compilation_cache()

from absl import flags  # noqa: E402

from .config import load  # noqa: E402

_CONFIG = program.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run: checkpoints, metrics, figures."
)
_DISTRIBUTED = flags.DEFINE_enum(
  "distributed",
  "none",
  ["none", "auto", "explicit"],
  "none: one process; auto: a TPU pod, SLURM or MPI says who we are; "
  "explicit: the three flags below do.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes in all.")
_PROCESS = flags.DEFINE_integer("process_id", None, "This one, from 0.")


def main() -> int:
  """Runs the configuration of the flags; returns the exit code."""
  if _CONFIG.value is None or not _WORKDIR.value:
    raise InputError(
      "Give a configuration and a folder: --config=FILE.py --workdir=FOLDER."
    )
  from .processes import peers
  from .runs import checkpoint
  from .step import build
  from .train import loop

  config = load.from_config_dict(_CONFIG.value, build.problems)
  workdir = _WORKDIR.value
  with peers.joined(
    _DISTRIBUTED.value,
    _COORDINATOR.value,
    _PROCESSES.value,
    _PROCESS.value,
    tell=program.tell,
    goes_on_from=lambda: checkpoint.newest_text(workdir),
  ):
    return loop.train(config, _WORKDIR.value)


if __name__ == "__main__":
  program.run(main)
