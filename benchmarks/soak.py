"""A run that is killed again and again, against one that is left alone.

    python -m benchmarks.soak [--minutes=30] [--every=60,180] [--seed=0]
        [--out=FOLDER] [--figure=docs/figures/soak.png]

A tiny run of two processes is disturbed at random moments: one process or both
get SIGKILL, SIGTERM, or SIGTERM and SIGKILL soon after, and the same command
starts it again. When the time is up it is told to stop. One process with two
devices then makes as many updates without any disturbance: the state must have
the same bits, and the metrics the same numbers. Resident memory and open files
of all processes are sampled (FOLDER/*.jsonl), which is all of Linux that this
needs. The same command with a FOLDER goes on with what is not done yet.

The slope of the memory is that within lives: b = sum x y / sum x^2 over times x
and sizes y, both less their mean within the life. Its standard error takes
minutes m as clusters: sqrt(sum_m (sum_{i in m} x_i e_i)^2) / sum x^2 for
residuals e. The first `_WARM_UP` seconds of a life, in which buffers are made,
are left out.
"""

import argparse
import collections
import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.disturb import (
  BOUND,
  Event,
  Run,
  Sample,
  Sampler,
  disturb,
  prepare,
)

_WARM_UP = 30.0  # Seconds.
_MIB = 2**20


class Slope(NamedTuple):
  """A change with time and its standard error, both per hour."""

  value: float
  stderr: float


class Soak(NamedTuple):
  """What was found; `same_...`: as without disturbances."""

  steps: int
  same_state: bool
  same_metrics: bool
  events: list[Event]
  samples: list[Sample]
  reference: list[Sample]


def soak(
  out: pathlib.Path,
  *,
  minutes: float = 30.0,
  every: tuple[float, float] = (60.0, 180.0),
  seed: int = 0,
) -> Soak:
  """Disturbs a run, repeats it undisturbed, and compares the two.

  Args:
    out: Folder, kept; what is in it already is not done again.
    minutes: How long to disturb.
    every: Least and greatest seconds from a life's first update to its end.
    seed: Of the disturbances.

  Raises:
    RuntimeError: If a process ended by itself, or with another exit code than
      it should.
    subprocess.TimeoutExpired: If one did not end in time.
  """
  flags = prepare(out)
  disturbed = Run(out / "disturbed", 2, 1, flags)
  done = out / "events.jsonl"
  if not done.exists():
    events = []
    for event in disturb(disturbed, 60 * minutes, every, seed):
      print(json.dumps(event._asdict()), flush=True)
      events.append(json.dumps(event._asdict()) + "\n")
    done.write_text("".join(events))
  steps = last_step(disturbed.folder)
  alone = Run(out / "undisturbed", 1, 2, flags)
  if not alone.folder.exists():
    alone.start(steps)
    Sampler(out / "undisturbed.jsonl").watch(alone, 0, float("inf"))
    if alone.wait() != (0,):
      raise RuntimeError(f"{alone.folder} failed; see its .log beside it.")
  folders = (disturbed.folder, alone.folder)
  return Soak(
    steps=steps,
    same_state=digest(folders[0]) == digest(folders[1]),
    same_metrics=metrics(folders[0], steps) == metrics(folders[1], steps),
    events=[Event(**line) for line in _read(done)],
    samples=[Sample(**line) for line in _read(out / "samples.jsonl")],
    reference=[Sample(**line) for line in _read(out / "undisturbed.jsonl")],
  )


def slope(samples: Sequence[Sample], process: int, key: str) -> Slope:
  """Change of `rss` or `files` of a process within its lives, per hour."""
  lives = collections.defaultdict(list)
  for s in samples:
    if s.process == process and s.age > _WARM_UP:
      lives[s.life].append((s.age, getattr(s, key)))
  rows = []  # Time and size, less their means, and which minute it is.
  for life, values in lives.items():
    x, y = np.array(values, np.float64).T
    minute = 1000 * life + x // 60
    rows.append(np.stack([x - x.mean(), y - y.mean(), minute]))
  if sum(r.shape[1] for r in rows) < 3:
    return Slope(float("nan"), float("nan"))
  x, y, minutes = np.concatenate(rows, axis=1)
  value = float(x @ y / (x @ x))
  score = x * (y - value * x)
  clusters = [score[minutes == m].sum() for m in np.unique(minutes)]
  stderr = float(np.linalg.norm(clusters) / (x @ x))
  return Slope(3600 * value, 3600 * stderr)


def last_step(folder: pathlib.Path) -> int:
  """Of the newest checkpoint."""
  from lm.runs import checkpoint

  return checkpoint.list_steps(folder)[-1]


def digest(folder: pathlib.Path) -> str:
  """Of the whole state in the newest checkpoint, on one device."""
  import jax

  from lm.runs import checkpoint, workdir
  from lm.step import build, state

  parts = build.build(workdir.read_config(folder), jax.devices()[:1])
  last = checkpoint.list_steps(folder)[-1]
  return state.digest(checkpoint.restore(folder, last, parts))


def metrics(folder: pathlib.Path, steps: int) -> dict[str, Any]:
  """Numbers of a run by key and step, without times.

  The scores at the last step are left out: only a run that ends there has them.
  """
  from lm.runs import metrics

  found = {}
  for key, column in metrics.read(folder).items():
    if not key.startswith("perf/") and key != "seconds":
      rows = zip(column.steps.tolist(), column.values.tolist(), strict=True)
      last = steps - key.startswith("eval/")
      found[key] = [row for row in rows if row[0] <= last]
  return {key: rows for key, rows in found.items() if rows}


def describe(result: Soak) -> str:
  """The findings, as lines of text."""
  took = collections.defaultdict(list)
  for event in result.events:
    took[event.signals].append(event.took)
  lines = [
    f"{result.steps} updates in {len(result.events)} lives",
    *(
      f"{len(seconds)} x {signals}: all processes ended within "
      f"{max(seconds):.1f} s (of {BOUND})"
      for signals, seconds in took.items()
    ),
    f"state {'equal' if result.same_state else 'DIFFERENT'}, metrics "
    f"{'equal' if result.same_metrics else 'DIFFERENT'} to undisturbed",
  ]
  for name, samples in _groups(result):
    process = samples[0].process
    rss, files = (
      slope(samples, process, "rss"),
      slope(samples, process, "files"),
    )
    lines.append(
      f"{name}: RSS {rss.value / _MIB:+.1f} ± {rss.stderr / _MIB:.1f} MiB/h, "
      f"open files {files.value:+.1f} ± {files.stderr:.1f} /h, at most "
      f"{max(s.files for s in samples)}"
    )
  return "\n".join(lines)


def draw(result: Soak, path: pathlib.Path) -> None:
  """Memory and open files against time, with the disturbances."""
  from matplotlib import figure as mpl_figure

  figure = mpl_figure.Figure(figsize=(8, 5), layout="constrained")
  axes = figure.subplots(2, 1, sharex=True)
  colors = ("#0072B2", "#D55E00", "#009E73")
  for color, (name, samples) in zip(colors, _groups(result), strict=True):
    for life in sorted({s.life for s in samples}):
      rows = [s for s in samples if s.life == life]
      minutes = [s.seconds / 60 for s in rows]
      label = name if life == 0 else None
      axes[0].plot(minutes, [s.rss / _MIB for s in rows], color=color)
      axes[1].plot(minutes, [s.files for s in rows], color=color, label=label)
  for event in result.events:
    style = "-" if "KILL" in event.signals else ":"
    for axis in axes:
      axis.axvline(event.seconds / 60, color="0.6", lw=0.8, ls=style, zorder=0)
  axes[0].set_ylabel("resident memory, MiB")
  axes[1].set_ylabel("open files")
  axes[1].set_xlabel("minutes (line: SIGKILL, dotted: SIGTERM alone)")
  for axis in axes:
    axis.set_ylim(bottom=0)
  axes[1].legend()
  figure.savefig(path, dpi=120)


def _groups(result: Soak) -> list[tuple[str, list[Sample]]]:
  """Samples of each process, by name."""
  return [
    ("process 0", [s for s in result.samples if s.process == 0]),
    ("process 1", [s for s in result.samples if s.process == 1]),
    ("undisturbed, both in one", result.reference),
  ]


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
  """Runs the soak of the flags and prints what it found."""
  from lm.cli import program

  program.quiet()
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--minutes", type=float, default=30.0)
  parser.add_argument("--every", default="60,180")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", type=pathlib.Path)
  parser.add_argument("--figure", type=pathlib.Path)
  args = parser.parse_args()
  least, greatest = (float(x) for x in args.every.split(","))
  out = args.out or pathlib.Path(tempfile.mkdtemp(prefix="soak-"))
  result = soak(
    out.absolute(),
    minutes=args.minutes,
    every=(least, greatest),
    seed=args.seed,
  )
  print(describe(result))
  if args.figure is not None:
    draw(result, args.figure)


if __name__ == "__main__":
  main()
