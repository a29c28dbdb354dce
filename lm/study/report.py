"""Writes what a study has found: NAME.json, NAME.md, pictures and times."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
from typing import Any

from . import budget, clock, plan, results, tables
from .session import Session

_PACKAGES = ("jax", "flax", "optax", "numpy")


def write(
  session: Session, given: str, out: pathlib.Path, time: bool = False
) -> list[pathlib.Path]:
  """Writes the results of the runs that have ended; returns the files.

  NAME.json is the same whenever and however often the runs were stopped. Times
  are in NAME.times.json: they are of a machine and a day.

  Args:
    session: It.
    given: NAME or FILE.py of the study, for its command.
    out: Folder.
    time: Whether updates are measured; if not, earlier times are kept.
  """
  s, name = session, session.study.name
  out.mkdir(parents=True, exist_ok=True)
  found = s.planned()
  runs = {run.id: s.find(run.id) for run in found.runs}
  result = {
    "study": name,
    "tier": s.study.tier,
    "made_by": {
      "command": f"python -m lm.study {given} --tier={s.study.tier}"
      + (f" --trainer={s.trainer}" if s.trainer else ""),
      "commit": _commit(),
      "versions": {p: importlib.metadata.version(p) for p in _PACKAGES},
      "devices": sorted({run.device for run in runs.values() if run}),
    },
    **results.results(s.study, found, s.find),
    "foreign": s.foreign(found),
  }
  times_file = out / f"{name}.times.json"
  times = json.loads(times_file.read_text()) if times_file.is_file() else {}
  times["run_seconds"] = sum(
    run.seconds for run in runs.values() if run and run.seconds == run.seconds
  )
  if not s.trainer:
    times["costs"] = _costs(s, found)
  if time:
    times |= _times(s, found)
  paths = [
    _write(out / f"{name}.json", json.dumps(result, indent=1) + "\n"),
    _write(times_file, json.dumps(times, indent=1) + "\n"),
    _write(out / f"{name}.md", tables.page(result, times)),
  ]
  from . import pictures  # It imports matplotlib, which is not always there.

  return paths + pictures.draw(result, times, out)


def _costs(s: Session, found: plan.Plan) -> dict[str, Any]:
  """Bytes, FLOP and depth of each arm and cell, exact."""
  return {
    f"{arm} in {cell}": results.plain(clock.cost(config)._asdict())
    for (arm, cell), config in _configs(s, found).items()
  }


def _times(s: Session, found: plan.Plan) -> dict[str, Any]:
  """Milliseconds of an update of each arm, all arms of a cell in turns."""
  configs, ms = _configs(s, found), {}
  for cell in s.study.cells:
    mine = {f"{a} in {c}": x for (a, c), x in configs.items() if c == cell}
    ms |= clock.time_updates(mine)
  day = f"{datetime.date.today()}"
  return {"update_ms": ms, "measured": day, "machine": machine()}


def machine() -> str:
  """Cores and processor of this machine."""
  info, model = pathlib.Path("/proc/cpuinfo"), platform.processor()
  if info.is_file():
    found = re.search(r"model name\s*: (.*)", info.read_text())
    model = found[1] if found else model
  return f"{os.cpu_count()} cores, {model or platform.machine()}"


def _configs(s: Session, found: plan.Plan) -> dict[tuple[str, str], Any]:
  """The configuration of one reporting run of each arm and cell."""
  return {
    (run.arm, run.cell): budget.config_of(run)
    for run in reversed(found.runs)
    if run.role == plan.REPORT and run.horizon == 1
  }


def _commit() -> str:
  command = ["git", "rev-parse", "--short=10", "HEAD"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return ""
  return done.stdout.strip()


def _write(path: pathlib.Path, content: str) -> pathlib.Path:
  draft = path.with_name(f".{path.name}.draft")
  draft.write_text(content)
  draft.rename(path)
  return path
