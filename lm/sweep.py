r"""Runs a list of configurations, here or as the tasks of an array job.

    python -m lm.sweep --sweep=tiny_learning_rate --root=runs/rates
    python -m lm.sweep --sweep=tiny_learning_rate --root=runs/rates --jobs=2
    python -m lm.sweep --sweep=tiny_learning_rate --root=runs/rates --list
    sbatch --array=0-8 --wrap="python -m lm.sweep --sweep=cbs_151m --root=DIR"

A sweep is a function of `ml_collections_configs/sweeps.py`, a function of
another file (FILE.py:NAME), or a JSON file with the list such a function
returns. With --jobs, so many run at a time, each on its share of the cores:
small models use one core better than two. Each run has the folder ROOT/ID,
where ID is its name and a hash of its resolved configuration, and is the
program `lm.main`, started anew. So the same command skips what is finished and
resumes what is not; a changed configuration is another run.

Ctrl-C or SIGTERM is passed on to the runs, which save and stop; a second one
kills them. Arguments after a lone -- go to every run:

    python -m lm.sweep --sweep=cbs_151m --root=DIR -- --distributed=auto

Exit codes: 0 all runs finished, 1 one failed, 2 bad input, 75 stopped early;
with --index, that of the run.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import ml_collections

from ml_collections_configs import sweeps

from .cli import children, program, text
from .config import errors, load, names
from .config.errors import InputError
from .config.schema import Config
from .runs import read
from .step import build

_FAILED = 1
# Exit codes of a run that a signal ended before it could save.
_KILLED = {128 + number for number in (signal.SIGTERM, signal.SIGKILL)}


class Job(NamedTuple):
  """One run of a sweep."""

  id: str  # Name of its folder below the root.
  config: str  # Path of the configuration file.
  overrides: dict[str, Any]  # Dotted keys.

  def command(self, root: pathlib.Path, extra: Sequence[str]) -> list[str]:
    """The command line that starts or resumes the run."""
    return [
      sys.executable, "-m", "lm.main", f"--config={self.config}",
      *[f"--config.{key}={v}" for key, v in self.overrides.items()],
      f"--workdir={root / self.id}", *extra,
    ]  # fmt: skip


def load_sweep(sweep: str) -> list[dict[str, Any]]:
  """The runs of a sweep, as its author wrote them.

  Args:
    sweep: NAME of `ml_collections_configs.sweeps`, FILE.py:NAME, or FILE.json.

  Returns:
    Dictionaries with "config", "overrides" and maybe "name".

  Raises:
    program.InputError: If there is no such sweep, or it is not such a list.
  """
  if sweep.endswith(".json"):
    try:
      runs = json.loads(pathlib.Path(sweep).read_text())
    except (OSError, json.JSONDecodeError) as error:
      raise InputError(f"--sweep={sweep}: {error}") from error
  else:
    file, _, name = sweep.rpartition(":")
    runs = _sweeps_of(_import(file) if file else sweeps, name, sweep)()
  keys = {"config", "overrides", "name"}
  for i, run in enumerate(runs):
    if not {"config"} <= set(run) <= keys:
      raise InputError(
        f"--sweep={sweep}: run {i} has the keys {sorted(run)}; it needs "
        '"config", and may have "overrides" and "name".'
      )
  if not runs:
    raise InputError(f"--sweep={sweep} has no runs.")
  return list(runs)


def expand(runs: Sequence[Mapping[str, Any]]) -> list[Job]:
  """Checks every run before one is started, and names its folder.

  Args:
    runs: From `load_sweep`.

  Returns:
    The jobs, in the same order.

  Raises:
    program.InputError: With the problems of all runs, one a line.
  """
  jobs, problems = [], []
  for i, run in enumerate(runs):
    overrides = dict(run.get("overrides", {}))
    try:
      resolved = resolve(run["config"], overrides)
    except ValueError as error:
      problems.append(f"run {i}: {error}")
      continue
    name = run.get("name") or _name(run["config"], overrides)
    plain = json.dumps(load.to_dict(resolved), sort_keys=True)
    digest = hashlib.sha256(plain.encode()).hexdigest()[:8]
    jobs.append(Job(f"{_safe(name)}-{digest}", run["config"], overrides))
  ids = [job.id for job in jobs]
  problems += [
    f"{id_} occurs {ids.count(id_)} times: runs with the same name and "
    "configuration; give them different seeds or names."
    for id_ in dict.fromkeys(ids)
    if ids.count(id_) > 1
  ]
  if problems:
    raise InputError("\n".join(problems))
  return jobs


def resolve(path: str, overrides: Mapping[str, Any]) -> Config:
  """The configuration that `--config=path --config.key=value ...` gives.

  Args:
    path: FILE.py, or FILE.py:ARGUMENT.
    overrides: Dotted keys and their values.

  Returns:
    The validated configuration.

  Raises:
    program.InputError: If the file or a key does not exist, or a value has
      the wrong type.
    configs.ConfigError: If the configuration is not valid.
  """
  file, _, argument = path.partition(":")
  get_config = getattr(_import(file), "get_config", None)
  if get_config is None:
    raise InputError(f"{file} has no function get_config.")
  config = get_config(argument) if argument else get_config()
  for key, value in overrides.items():
    _override(config, key, value)
  return load.from_config_dict(config, build.problems)


def is_finished(folder: pathlib.Path) -> bool:
  """Whether the run of a folder says it is finished."""
  try:
    info = json.loads((folder / "run.json").read_text())
  except (OSError, json.JSONDecodeError):
    return False
  return info.get("status") == "finished"


def run_sweep(
  jobs: Sequence[Job],
  root: pathlib.Path,
  *,
  parallel: int = 1,
  extra: Sequence[str] = (),
) -> dict[str, str]:
  """Runs the jobs that are not finished; returns what became of each.

  Args:
    jobs: From `expand`.
    root: Parent of their folders.
    parallel: Runs at a time. With several, the output of each goes to
      ROOT/ID/log.txt instead of the terminal, and each has cores of its own,
      if there are enough: threads of one run that wait for each other lose
      most of their time to another run's on the same cores.
    extra: Further arguments of every run.

  Returns:
    Job id -> "finished", "finished before", "stopped", "not started" or
    "failed (exit code N)".
  """
  outcomes = {job.id: "finished before" for job in jobs}
  todo = [job for job in jobs if not is_finished(root / job.id)]
  free = children.shares_of_cores(parallel)
  lent: dict[str, set[int]] = {}
  with children.Children() as running:

    def finish_one():
      id_, code = running.wait()
      free.append(lent.pop(id_))
      outcomes[id_] = _outcome(code, running.stopping)

    for number, job in enumerate(todo):
      while len(running) >= parallel:
        finish_one()
      if running.stopping:
        outcomes[job.id] = "not started"
        continue
      log = root / job.id / "log.txt" if parallel > 1 else None
      print(f"[{number + 1}/{len(todo)}] {job.id}", flush=True)
      lent[job.id] = free.pop()
      running.start(job.id, job.command(root, extra), log, lent[job.id])
    while len(running):
      finish_one()
  return outcomes


def summary(
  jobs: Sequence[Job], root: pathlib.Path, outcomes: Mapping[str, str]
) -> str:
  """A table of the jobs: what became of them, and their last losses."""
  rows = []
  for i, job in enumerate(jobs):
    cells = ["-", "-", "-"]
    try:
      run = read.load_run(root / job.id)
    except (ValueError, OSError):
      pass  # Nothing logged yet.
    else:
      sets = run.eval_sets()
      last = run.last(sets[0]) if sets else None
      cells = [
        str(run.columns["tokens"].steps[-1]),
        f"{read.final_train_loss(run):.4f}",
        "-" if last is None else f"{last[1]:.4f} ({sets[0]})",
      ]
    rows.append([job.id, str(i), outcomes.get(job.id, "-"), *cells])
  header = ["run", "index", "outcome", "step", "train loss", "eval loss"]
  return text.format_table(header, rows)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  args, extra = _parse(sys.argv[1:] if argv is None else list(argv))
  root = args.root or f"runs/{_safe(args.sweep)}"
  program.check_local("--root", root)
  root = pathlib.Path(root)
  try:
    jobs = expand(load_sweep(args.sweep))
    index = _index(args, len(jobs))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return errors.BAD_INPUT
  if args.list:
    for i, job in enumerate(jobs):
      done = " (finished)" if is_finished(root / job.id) else ""
      print(f"{i:3d} {job.id}{done}")
      print("   ", *[f"{k}={v}" for k, v in job.overrides.items()])
    return 0
  if index is not None:
    jobs = [jobs[index]]
  outcomes = run_sweep(jobs, root, parallel=args.jobs or 1, extra=extra)
  print("\n" + summary(jobs, root, outcomes))
  return _exit_code(outcomes, alone=index is not None)


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  extra: list[str] = []
  if "--" in argv:
    at = argv.index("--")
    argv, extra = argv[:at], argv[at + 1 :]
  parser = argparse.ArgumentParser(
    prog="python -m lm.sweep",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--sweep", required=True, help="NAME, FILE.py:NAME, ...")
  parser.add_argument("--root", help="parent of the runs; default runs/SWEEP")
  how = parser.add_mutually_exclusive_group()
  how.add_argument("--list", action="store_true", help="only print the runs")
  how.add_argument(
    "--index",
    type=int,
    help="run one of them; in an array job, its SLURM_ARRAY_TASK_ID",
  )
  how.add_argument("--jobs", type=int, help="how many at a time; default 1")
  return parser.parse_args(argv), extra


def _index(args: argparse.Namespace, num_jobs: int) -> int | None:
  index = args.index
  task = os.environ.get("SLURM_ARRAY_TASK_ID")
  if index is None and task and not args.list and not args.jobs:
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


def _outcome(code: int, stopping: bool) -> str:
  if code == 0:
    return "finished"
  if code == errors.PREEMPTED or (stopping and code in _KILLED):
    return "stopped"
  return f"failed (exit code {code})"


def _sweeps_of(module: ModuleType, name: str, sweep: str) -> Any:
  """The function of that name, or an error that lists what there is."""
  known = [
    key
    for key, value in vars(module).items()
    if callable(value)
    and getattr(value, "__module__", None) == module.__name__
    and not key.startswith("_")
    and key != "product"
  ]
  if name not in known:
    raise InputError(
      f"--sweep={sweep}: no sweep of that name; there are {known}. Or give "
      "FILE.py:NAME or FILE.json."
    )
  return getattr(module, name)


def _import(file: str) -> ModuleType:
  if not os.path.isfile(file):
    raise InputError(
      f"There is no file {file}; paths are relative to {os.getcwd()}."
    )
  name = re.sub(r"\W", "_", os.path.abspath(file))
  found = importlib.util.spec_from_file_location(name, file)
  if found is None or found.loader is None:
    raise InputError(f"{file} is not a Python file.")
  module = importlib.util.module_from_spec(found)
  found.loader.exec_module(module)
  return module


def _override(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
  *path, last = key.split(".")
  section: Any = config
  for name in [*path, last]:
    if not isinstance(section, ml_collections.ConfigDict) or (
      name not in section
    ):
      hint = names.nearest(name, getattr(section, "keys", list)())
      raise InputError(f"config.{key} is not a key.{hint}")
    parent, section = section, section[name]
  if isinstance(value, Mapping):  # optim.kwargs: replaced, as by the flag.
    value = ml_collections.ConfigDict(dict(value))
  try:
    parent[last] = tuple(value) if isinstance(value, list) else value
  except TypeError as error:
    raise InputError(f"config.{key}={value!r}: {error}") from error


def _name(config: str, overrides: Mapping[str, Any]) -> str:
  stem = pathlib.Path(config.partition(":")[0]).stem
  parts = [f"{key.rpartition('.')[2]}={v}" for key, v in overrides.items()]
  return "_".join([stem, *parts])[:100]


def _safe(name: str) -> str:
  return re.sub(r"[^\w.,=+-]+", "-", name).strip("-")


if __name__ == "__main__":
  sys.exit(main())
