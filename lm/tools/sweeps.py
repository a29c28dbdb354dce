"""Sweeps: lists of configurations, and each of them run once.

A run is the program `lm.main`, started anew, in the folder ROOT/ID.
"""

import hashlib
import json
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections_configs import sweeps

from ..cli import children, flags, overrides, text
from ..config import errors, load
from ..config.errors import InputError
from ..config.schema import Config
from ..runs import lock, read
from ..step import build

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
      sys.executable, "-m", "lm.main",
      *overrides.arguments(self.config, self.overrides),
      f"--workdir={root / self.id}", *extra,
    ]  # fmt: skip


def load_sweep(sweep: str) -> list[dict[str, Any]]:
  """The runs of a sweep, as its author wrote them.

  Args:
    sweep: NAME of `ml_collections_configs.sweeps`, FILE.py:NAME, or FILE.json.

  Returns:
    Dictionaries with "config", "overrides" and maybe "name".

  Raises:
    InputError: If there is no such sweep, or it is not such a list.
  """
  if sweep.endswith(".json"):
    try:
      runs = json.loads(pathlib.Path(sweep).read_text())
    except (OSError, json.JSONDecodeError) as error:
      raise InputError(f"--sweep={sweep}: {error}") from error
  else:
    file, _, name = sweep.rpartition(":")
    runs = _sweeps_of(load.import_file(file) if file else sweeps, name, sweep)()
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
    InputError: With the problems of all runs, one a line.
  """
  jobs, problems = [], []
  for i, run in enumerate(runs):
    changes = dict(run.get("overrides", {}))
    try:
      resolved = resolve(run["config"], changes)
    except ValueError as error:
      problems.append(f"run {i}: {error}")
      continue
    name = run.get("name") or _name(run["config"], changes)
    text = json.dumps(load.told(resolved), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    jobs.append(Job(f"{safe_name(name)}-{digest}", run["config"], changes))
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


def resolve(path: str, changes: Mapping[str, Any]) -> Config:
  """The configuration that `--config=path --config.key=value ...` gives.

  Args:
    path: FILE.py, or FILE.py:ARGUMENT.
    changes: Dotted keys and their values.

  Raises:
    InputError: If the file or a key does not exist, or a value has the wrong
      type.
    ConfigError: If the configuration is not valid.
  """
  given = flags.parse(overrides.arguments(path, changes), None, (flags.CONFIG,))
  return load.from_config_dict(given.config, build.problems)


def run_sweep(
  jobs: Sequence[Job],
  root: pathlib.Path,
  *,
  parallel: int = 1,
  extra: Sequence[str] = (),
  line: Callable[[str], str] | None = None,
) -> dict[str, str]:
  """Runs the jobs that are not finished; returns what became of each.

  Args:
    jobs: From `expand`.
    root: Parent of their folders.
    parallel: Runs at a time. With several, the output of a run goes to
      ROOT/ID/log.txt instead of the terminal, and each run has cores of its
      own, if there are enough. The threads of a run wait for each other, and
      would lose most of their time to another run on the same cores.
    extra: Further arguments of every run.
    line: What is printed when the job of an id starts; None: its number.

  Returns:
    Job id -> "finished", "finished before", "stopped", "not started" or
    "failed (exit code N)", with who else has the run open.
  """
  outcomes = {job.id: "finished before" for job in jobs}
  todo = [job for job in jobs if not read.is_finished(root / job.id)]
  free = children.shares_of_cores(parallel)
  lent: dict[str, set[int]] = {}
  with children.Children() as running:

    def finish_one():
      id_, code = running.wait()
      free.append(lent.pop(id_))
      outcomes[id_] = _outcome(code, running.stopping)
      if code == errors.BAD_INPUT and lock.holder(root / id_):
        outcomes[id_] += f": open by {lock.describe(root / id_)}"

    for number, job in enumerate(todo):
      while len(running) >= parallel:
        finish_one()
      if running.stopping:
        outcomes[job.id] = "not started"
        continue
      log = root / job.id / "log.txt" if parallel > 1 else None
      counted = f"[{number + 1}/{len(todo)}] {job.id}"
      print(line(job.id) if line else counted, flush=True)
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


def _name(config: str, changes: Mapping[str, Any]) -> str:
  stem = pathlib.Path(config.partition(":")[0]).stem
  parts = [f"{key.rpartition('.')[2]}={v}" for key, v in changes.items()]
  return "_".join([stem, *parts])[:100]


def safe_name(name: str) -> str:
  """The name without characters that a folder's name should not have."""
  return re.sub(r"[^\w.,=+-]+", "-", name).strip("-")
