r"""Runs a list of configurations, here or as the tasks of an array job.

    python -m lm.sweep --sweep=tiny_learning_rate --root=runs/rates
    python -m lm.sweep --sweep=tiny_learning_rate --root=runs/rates --jobs=2
    python -m lm.sweep --sweep=tiny_learning_rate --root=runs/rates --list
    sbatch --array=0-8 --wrap="python -m lm.sweep --sweep=cbs_151m --root=DIR"

A sweep is a function of `ml_collections_configs/sweeps.py`, a function of
another file (FILE.py:NAME), or a JSON file with the list such a function
returns. With --jobs=N, N runs go on at a time, each on its share of the cores:
small models use one core better than two. A run is the program `lm.main` in a
process of its own. Its folder is ROOT/ID, where ID is the name of the run and a
hash of its resolved configuration. So the same command skips finished runs and
resumes the others; a changed configuration is another run.

Ctrl-C or SIGTERM is passed on to the runs, which save and stop. A second one
kills them. Arguments after a lone -- go to every run:

    python -m lm.sweep --sweep=cbs_151m --root=DIR -- --distributed=auto

Exit codes: 0 all runs finished, 1 one failed, 2 bad input, 75 stopped early;
with --index, that of the run.
"""

import os
import pathlib
import re
import types
from collections.abc import Mapping

from .cli import program
from .cli.flags import Flag
from .config import errors
from .config.errors import InputError

_FLAGS = (
  Flag("sweep", str, "NAME, FILE.py:NAME or FILE.json", required=True),
  Flag("root", str, "parent of the runs; default runs/SWEEP"),
  Flag("list", bool, "only print the runs", False),
  Flag("index", int, "run one; default SLURM_ARRAY_TASK_ID in an array job"),
  Flag("jobs", int, "how many at a time; default 1", least=1),
)
_FAILED = 1


@program.takes(__doc__, _FLAGS, rest=True)
def main(args: types.SimpleNamespace) -> int:
  """Runs the sweep, or lists its runs."""
  from .runs import read
  from .tools import sweeps

  root = args.root or f"runs/{sweeps.safe_name(args.sweep)}"
  program.check_local("--root", root)
  root = pathlib.Path(root)
  jobs = sweeps.expand(sweeps.load_sweep(args.sweep))
  index = _index(args, len(jobs))
  if args.list:
    for i, job in enumerate(jobs):
      done = " (finished)" if read.is_finished(root / job.id) else ""
      print(f"{i:3d} {job.id}{done}")
      print("   ", *[f"{k}={v}" for k, v in job.overrides.items()])
    return 0
  if index is not None:
    jobs = [jobs[index]]
  outcomes = sweeps.run_sweep(
    jobs, root, parallel=args.jobs or 1, extra=args.rest
  )
  print("\n" + sweeps.summary(jobs, root, outcomes))
  return _exit_code(outcomes, alone=index is not None)


def _index(args: types.SimpleNamespace, num_jobs: int) -> int | None:
  """Of the one run to make; None for all."""
  given = [
    f"--{name}"
    for name in ("list", "index", "jobs")
    if getattr(args, name) is not None and getattr(args, name) is not False
  ]
  if len(given) > 1:
    raise InputError(f"{' and '.join(given)} exclude each other; give one.")
  index, task = args.index, os.environ.get("SLURM_ARRAY_TASK_ID")
  if task and not given:
    index = int(task)
  if index is not None and not 0 <= index < num_jobs:
    raise InputError(
      f"index {index} is not one of the sweep's {num_jobs} runs; use 0 to "
      f"{num_jobs - 1}, e.g. sbatch --array=0-{num_jobs - 1}."
    )
  return index


def _exit_code(outcomes: Mapping[str, str], alone: bool) -> int:
  failed = [text for text in outcomes.values() if text.startswith("failed")]
  if failed and alone:
    return int(re.findall(r"-?\d+", failed[0])[0]) % 256
  if failed:
    return _FAILED
  stopped = {"stopped", "not started"} & set(outcomes.values())
  return errors.PREEMPTED if stopped else 0


if __name__ == "__main__":
  program.start(main)
