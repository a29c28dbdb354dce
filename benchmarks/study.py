"""What the scripts that plan and read the runs of a study have in common."""

import argparse
import math
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.cli import text
from lm.config import load as config_load
from lm.config import ramp
from lm.config.schema import Config
from lm.runs import read
from lm.runs.read import Run
from lm.step import flops
from lm.tools import sweeps
from lm.tools.sweeps import expand

# Of the default corpus, where every study runs.
_DATA = {"vocab_size": 4096, "eos_id": 1, "pad_id": 0, "platform": "cpu"}
TURN = 10  # Updates that are timed in a row: a period of refreshes.
LOOKS = (
  ("#000000", "-", "o"),
  ("#0072B2", "--", "s"),
  ("#D55E00", "-.", "^"),
  ("#009E73", ":", "D"),
  ("#CC79A7", "-", "v"),
  ("#E69F00", "--", "P"),
  ("#56B4E9", "-.", "X"),
  ("#8C510A", ":", "p"),
  ("#7F7F7F", "-", "<"),
)


class Named(NamedTuple):
  """A run, and what its name says of it."""

  fields: dict[str, str]  # Groups of the pattern; "" for those absent.
  run: Run

  def final(
    self, name: str, metric: str = "loss", average: str | None = None
  ) -> float:
    """The score of a set at the end of the run, see `Run.last`."""
    found = self.run.last(name, metric, average)
    return math.nan if found is None else found[1]


def load(folder: pathlib.Path, pattern: re.Pattern[str]) -> list[Named]:
  """The finished runs of a folder; of several with one name, the newest.

  Args:
    folder: Where `lm.sweep` put them, as NAME-HASH.
    pattern: Of the whole NAME; others are left out.
  """
  found = {}
  for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime):
    name, _, _ = path.name.rpartition("-")
    match = pattern.fullmatch(name)
    if match is None or not read.is_finished(path):
      continue
    found[name] = Named(match.groupdict(""), read.load_run(path, name))
  return [found[name] for name in sorted(found)]


def best(
  results: Iterable[Any],
  group: Callable[[Any], Hashable],
  choice: Callable[[Any], Any],
  loss: Callable[[Any], float] = lambda result: result.loss,
) -> dict[Hashable, Any]:
  """The choice of least loss in each group."""
  found: dict[Hashable, Any] = {}
  for result in results:
    now = found.setdefault(group(result), result)
    if loss(result) < loss(now):
      found[group(result)] = result
  return {key: choice(result) for key, result in found.items()}


def choices_table(
  results: Sequence[Any],
  group: Callable[[Any], tuple[str, ...]],
  choice: Callable[[Any], float],
  header: Sequence[str],
  loss: Callable[[Any], float] = lambda result: result.loss,
) -> str:
  """Loss by group and choice, one result each; * marks the best.

  Args:
    results: Of one seed.
    group: Cells that name the row of a result.
    choice: The number that names its column.
    header: Titles of the group's cells.
    loss: What a cell shows.
  """
  columns = sorted({choice(r) for r in results})
  chosen, rows = best(results, group, choice, loss), []
  for name in sorted({group(r) for r in results}):
    losses = {choice(r): loss(r) for r in results if group(r) == name}
    cells = [
      f"{losses[x]:.4f}{'*' if x == chosen[name] else ''}"
      if x in losses
      else "-"
      for x in columns
    ]
    rows.append([*name, *cells])
  return text.format_table([*header, *map("{:g}".format, columns)], rows)


def mean_error(values: Sequence[float], digits: int) -> str:
  """Mean and its standard error; "2 of 3" if only two of three are finite."""
  finite = [x for x in values if math.isfinite(x)]
  if len(finite) < len(values):
    return f"{len(finite)} of {len(values)}" if finite else "-"
  mean = statistics.fmean(values)
  if len(values) < 2:
    return f"{mean:.{digits}f}"
  error = statistics.stdev(values) / math.sqrt(len(values))
  return f"{mean:.{digits}f} ± {error:.{digits}f}"


def draw_band(
  axis: Any, x: Any, curves: Sequence[Any], label: str, look: int
) -> None:
  """A line through the mean of curves, and the range that they span."""
  color, style, marker = LOOKS[look]
  y = np.array(curves)
  axis.plot(
    x, y.mean(0), color=color, ls=style, marker=marker, ms=4, label=label
  )
  axis.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.15, lw=0)


def resolve(run: Mapping[str, Any]) -> Config:
  """The configuration of a run of a sweep, on the default corpus."""
  config = sweeps.resolve(run["config"], run["overrides"])
  return config_load.resolve(config, **_DATA)


def time_updates(
  runs: Mapping[Hashable, Mapping[str, Any]],
  rounds: int,
  turn: Callable[[Any], int] = lambda key: TURN,
) -> dict[Hashable, float]:
  """Milliseconds of an update of each run, turn by turn in one process.

  The seconds that runs log are those of a machine that others may use.

  Args:
    runs: Runs of a sweep, by any name.
    rounds: Turns; the first update of each, which another program's precedes,
      does not count.
    turn: Updates in a row by name; `TURN` for all by default.
  """
  import jax

  from lm.step import build

  updates: dict[Hashable, list[Any]] = {}
  for key, run in runs.items():
    parts = build.build(resolve(run), jax.devices()[:1])
    jax.set_mesh(parts.mesh)
    state, update = build.init_state(parts), build.compile_step(parts)
    rows = np.random.default_rng(0).integers(
      2, _DATA["vocab_size"], parts.buffer_shape
    )
    buffer = build.put_buffer(parts, rows.astype(np.int32))
    updates[key] = [state, update, buffer, []]
  for _ in range(rounds):
    for key, entry in updates.items():
      state, update, buffer, times = entry
      for i in range(turn(key) + 1):
        started = time.perf_counter()
        state, metrics = update(state, buffer, np.int32(buffer.shape[0]))
        jax.block_until_ready((state, metrics))
        if i:
          times.append(time.perf_counter() - started)
      entry[0] = state
  # Whatever is done at some updates only is part of the cost: the mean.
  return {
    key: 1e3 * statistics.fmean(times)
    for key, (_, _, _, times) in updates.items()
  }


class Work(NamedTuple):
  """What a run computes, in forward passes of a token through its model."""

  tokens: float  # Fresh ones that are trained on, line searches included.
  train: float
  score: float
  pass_flops: float


def work(config: Config, passes: float) -> Work:
  """The work of a run, its optimiser's own left out.

  Args:
    config: Resolved; it says how much of the validation split is scored last.
    passes: Forward passes that a token of training costs.
  """
  e, q, length = config.eval, config.quant, config.data.seq_length
  if not e.final_batches:
    raise ValueError(
      "config.eval.final_batches=0 scores the whole split, whatever its size; "
      "give a number to plan with."
    )
  tokens = ramp.num_steps(config) * config.data.batch_size * length
  rounded = q.method != "none"
  points = -(-ramp.num_steps(config) // e.every) if e.every else 0
  weights = 1 + len(config.optim.averages)
  scored = points * e.batches * (weights + rounded)
  scored += e.final_batches * (weights + rounded * (1 + q.draws))
  return Work(
    tokens,
    passes * tokens,
    scored * e.batch_size * length,
    flops.forward_flops_per_token(config.model),
  )


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --plan and what it takes the machine to be."""
  parser.add_argument(
    "--plan", action="store_true", help="count what the sweeps compute"
  )
  parser.add_argument(
    "--tokens_per_s",
    type=float,
    default=10_000,
    help="that AdamW trains on; others are taken to make the same FLOP/s",
  )
  parser.add_argument(
    "--start_seconds",
    type=float,
    default=15,
    help="of each run: imports, cached compilations, the last checkpoint",
  )


def plan_table(
  sweeps: Mapping[str, Sequence[Mapping[str, Any]]],
  method: Callable[[Mapping[str, Any]], str],
  passes: Callable[[Config], float],
  args: argparse.Namespace,
) -> str:
  """Tokens, arithmetic and hours of all sweeps, by method.

  Args:
    sweeps: Their runs by name; a run of two of them counts once.
    method: Name of a run's row.
    passes: As in `work`.
    args: Parsed `add_plan_arguments`.
  """
  found: dict[tuple[str, str], list[Work]] = {}
  seen = set()
  for name, runs in sweeps.items():
    for job, run in zip(expand(runs), runs, strict=True):
      if job.id not in seen:
        seen.add(job.id)
        config = resolve(run)
        found.setdefault((name, method(run)), []).append(
          work(config, passes(config))
        )

  def row(cells: tuple[str, str], works: Sequence[Work]) -> list[str]:
    tokens = sum(w.tokens for w in works)
    done = sum((w.train + w.score) * w.pass_flops for w in works)
    rate = 3 * args.tokens_per_s  # Forward passes a second.
    seconds = sum((w.train + w.score) / rate for w in works)
    hours = (seconds + args.start_seconds * len(works)) / 3600
    return [
      *cells, str(len(works)), text.human(tokens),
      text.human(sum(w.score for w in works)), f"{done / 1e12:.0f}",
      f"{hours:.2f}",
    ]  # fmt: skip

  rows = [row(cells, works) for cells, works in found.items()]
  rows.append(row(("all", ""), [w for works in found.values() for w in works]))
  header = ["sweep", "method", "runs", "tokens", "scored", "TFLOP", "hours"]
  return text.format_table(header, rows)
