r"""Runs a study until nothing is missing, and says what came out.

    python -m lm.study leaderboard --plan
    python -m lm.study leaderboard --jobs=2
    python -m lm.study leaderboard --report --out=docs/results

NAME is a file of `ml_collections_configs/studies`, or FILE.py. Without a flag
the program chooses the next runs from the losses of those that have ended,
makes these runs, and goes on until every method has its trials and every seed
its report. Kill the program and start it again: the command is the same, and so
is the result, ROOT/NAME.json. On a cluster, --list prints the runs that can go
now and keeps the list; an array job makes them; then --list again:

    python -m lm.study leaderboard --tier=full --list
    sbatch --array=0-23 --wrap="python -m lm.study leaderboard --tier=full"

A trainer of your own takes the place of `lm.main` by --trainer=FILE.py:NAME, a
function (method, settings, horizon, batch, seed) -> [points, 2] of tokens and
averaged loss; the last row is final. The horizon is in tokens, the batch in
rows.

Exit codes: 0 nothing is missing, or what was asked for is printed; 1 a run
failed; 2 bad input; 75 stopped early.
"""

import json
import os
import pathlib
import re
import shutil
import time
import types

from ..cli import program
from ..cli.flags import Flag
from ..config import errors
from ..config.errors import InputError

_FLAGS = (
  Flag("root", str, "parent of the runs; default runs/NAME/TIER"),
  Flag("tier", str, "of the declaration: small, full or pod", "small"),
  Flag("plan", bool, "only print what the study costs on this machine", False),
  Flag("list", bool, "only print the runs that can go now", False),
  Flag("index", int, "run one of them; default SLURM_ARRAY_TASK_ID", least=0),
  Flag("jobs", int, "how many at a time", 1, least=1),
  Flag("report", bool, "make no runs; read those that have ended", False),
  Flag("time", bool, "measure milliseconds of updates, turn by turn", False),
  Flag("out", str, "folder that gets NAME.json, NAME.md and the pictures"),
  Flag("trainer", str, "FILE.py:NAME in place of lm.main"),
)
_ALONE = ("plan", "list", "index", "report")
_WAVE = "wave.json"
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}")  # Of a planted run that was killed.
_PATIENCE = 5.0  # Seconds until a run that is open elsewhere is looked at.


@program.takes(__doc__, _FLAGS, positionals="NAME")
def main(args: types.SimpleNamespace) -> int:
  """Runs the study, or one part of it."""
  from . import budget, declare, records, report
  from .session import Session

  index = _index(args)
  if len(args.positionals) != 1:
    raise InputError(f"Give one NAME, not {args.positionals}.")
  study = declare.load(args.positionals[0], args.tier)
  for flag in ("root", "out"):
    program.check_local(f"--{flag}", getattr(args, flag) or "")
  root = pathlib.Path(args.root or f"runs/{study.name}/{study.tier}")
  trainer = args.trainer or ""
  if args.report and not trainer:
    trainer = records.trainer_of(root)
  s = Session(study, root, trainer)
  if args.plan:
    print(budget.table(s, args.jobs))
    return 0
  if args.list:
    return _list(s)
  if index is not None:
    return _run_one(s, index)
  code = 0 if args.report else _until_done(s, args.jobs)
  out, name = pathlib.Path(args.out or root), args.positionals[0]
  for path in report.write(s, name, out, args.time):
    print(f"wrote {path}")
  return code


def _until_done(s, jobs: int) -> int:
  """Makes wave after wave; returns an exit code."""
  from . import budget

  for draft in s.root.glob(".*"):
    if _DRAFT.fullmatch(draft.name):
      shutil.rmtree(draft, ignore_errors=True)
  progress = budget.Progress(s, jobs)
  while wave := s.planned().missing(s.find):
    outcomes = s.make(wave, jobs, progress.line)
    failed = {
      id_: text
      for id_, text in outcomes.items()
      if text.startswith("failed") and s.find(id_) is None
    }
    elsewhere = [id_ for id_, text in failed.items() if "open by" in text]
    if len(failed) > len(elsewhere):
      for id_, text in failed.items():
        print(f"{id_}: {text}; see {s.root / id_}/log.txt")
      return 1
    if {"stopped", "not started"} & set(outcomes.values()):
      return errors.PREEMPTED
    if elsewhere:  # E.g. of a command that was killed: its runs went on.
      print(f"{len(elsewhere)} runs are open in another process; waiting.")
      time.sleep(_PATIENCE)
  return 0


def _list(s) -> int:
  """Prints the present wave, and keeps it for --index."""
  found = s.planned()
  wave = found.missing(s.find)
  for i, run in enumerate(wave):
    print(f"{i:3d} {run.role:6s} {run.arm} in {run.cell}: {run.id}")
  print(f"{len(wave)} runs can go now; about {found.waiting} follow from them.")
  s.root.mkdir(parents=True, exist_ok=True)
  draft = s.root / f"{_WAVE}.draft"
  draft.write_text(json.dumps([run.id for run in wave]) + "\n")
  draft.rename(s.root / _WAVE)
  return 0


def _run_one(s, index: int) -> int:
  """Makes one run of the wave that --list kept."""
  path = s.root / _WAVE
  if not path.is_file():
    raise InputError(f"--index={index}: there is no {path}; give --list first.")
  ids = json.loads(path.read_text())
  if index >= len(ids):
    raise InputError(f"--index={index}: {path} has {len(ids)} runs, from 0.")
  asked = [run for run in s.planned().runs if run.id == ids[index]]
  if not asked:
    raise InputError(f"{path} is of another study; give --list again.")
  outcome = s.make(asked[:1], 1)[ids[index]]
  print(f"{ids[index]}: {outcome}")
  if outcome.startswith("failed") and s.find(ids[index]) is None:
    return 1
  return errors.PREEMPTED if outcome == "stopped" else 0


def _index(args: types.SimpleNamespace) -> int | None:
  given = [
    f"--{name}"
    for name in _ALONE
    if getattr(args, name) is not None and getattr(args, name) is not False
  ]
  if len(given) > 1:
    raise InputError(f"{' and '.join(given)} exclude each other; give one.")
  task = os.environ.get("SLURM_ARRAY_TASK_ID")
  return int(task) if task and not given else args.index


if __name__ == "__main__":
  program.start(main)
