"""Tables and a figure of `ml_collections_configs/optimizer_study.py`.

    python -m benchmarks.optimizer_study runs/optimizer_study [--out=FIGURE.png]
    python -m benchmarks.optimizer_study --time [--rounds=20]

The first reads what runs there are, finished or not. Losses are validation
losses of the averaged weights. The second measures the milliseconds of an
update of each method, which take turns in one process; the seconds of the
tables are not those of the runs, which may have shared the machine.
"""

import argparse
import math
import pathlib
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lm import report, text

SET, METRIC = "sotu", "ema_loss"
_NAME = re.compile(
  r"(?P<batch>large|small)_(?P<method>[a-z]+)_rate=(?P<rate>[0-9.e-]+)"
  r"_seed=(?P<seed>\d+)(_frequency=(?P<frequency>\d+))?(?P<one>_one_sided)?"
)


class Result(NamedTuple):
  """One finished run."""

  batch: str
  method: str
  rate: float
  seed: int
  frequency: int
  one_sided: bool
  run: report.Run

  @property
  def loss(self) -> float:
    """At the end."""
    return float(self.run.columns[f"eval/{SET}/{METRIC}"].values[-1])

  def steps_to(self, loss: float) -> float:
    """Updates until the loss was reached; infinite if it was not."""
    reached = report.steps_to_loss(self.run, SET, loss, METRIC)
    return math.inf if reached is None else reached.steps


def load(folder: pathlib.Path) -> list[Result]:
  """The finished runs of a folder."""
  found = []
  for path in sorted(folder.iterdir()):
    fields = _NAME.match(path.name)
    if fields is None:
      continue
    try:
      run = report.load_run(path)
    except ValueError:
      continue
    if run.info.get("status") == "finished":
      found.append(
        Result(
          fields["batch"],
          fields["method"],
          float(fields["rate"]),
          int(fields["seed"]),
          int(fields["frequency"] or 10),
          bool(fields["one"]),
          run,
        )
      )
  return found


def rates_table(results: Iterable[Result]) -> str:
  """Final loss by method and rate, seed 0; * marks the best."""
  plain = [
    r for r in results if r.seed == 0 and r.frequency == 10 and not r.one_sided
  ]
  rates = sorted({r.rate for r in plain})
  rows = []
  for batch, method in sorted({(r.batch, r.method) for r in plain}):
    losses = {
      r.rate: r.loss for r in plain if (r.batch, r.method) == (batch, method)
    }
    best = min(losses.values())
    cells = [
      f"{losses[x]:.4f}{'*' if losses[x] == best else ''}"
      if x in losses
      else "-"
      for x in rates
    ]
    rows.append([batch, method, *cells])
  return text.format_table(
    ["batch", "method", *map("{:g}".format, rates)], rows
  )


def best_rates(results: Sequence[Result]) -> dict[tuple[str, str], float]:
  """The rate of least final loss on seed 0, by batch and method."""
  found = {}
  for batch, method in {(r.batch, r.method) for r in results}:
    mine = [
      r
      for r in results
      if (r.batch, r.method, r.seed) == (batch, method, 0)
      and r.frequency == 10
      and not r.one_sided
    ]
    if mine:
      found[batch, method] = min(mine, key=lambda r: r.loss).rate
  return found


def steps_table(results: Sequence[Result], step_ms: dict) -> str:
  """Updates to the loss that AdamW ends with, mean over seeds and its error.

  Args:
    results: All runs.
    step_ms: Milliseconds of an update by (batch, method); may be empty.
  """
  best, rows = best_rates(results), []
  for batch in sorted({r.batch for r in results}):
    seeds = _of(results, batch, "adamw", best)
    if not seeds:
      continue
    target = max(r.loss for r in seeds)
    base = statistics.fmean(r.steps_to(target) for r in seeds)
    for method in ("adamw", "muon", "shampoo", "soap"):
      mine = _of(results, batch, method, best)
      if not mine:
        continue
      steps = [r.steps_to(target) for r in mine]
      mean = statistics.fmean(steps)
      ms = step_ms.get((batch, method))
      rows.append(
        [
          batch, method, f"{best[batch, method]:g}", str(len(mine)),
          _pm([r.loss for r in mine], 4), f"{target:.3f}", _pm(steps, 1),
          f"{mean / base:.2f}",
          "-" if ms is None else f"{mean * ms / 1e3:.1f}",
        ]
      )  # fmt: skip
  header = ["batch", "method", "rate", "seeds", "final loss", "target"]
  return text.format_table([*header, "updates", "of adamw's", "seconds"], rows)


def variants_table(results: Sequence[Result]) -> str:
  """Refresh frequencies, and embeddings with a factor; large batch."""
  best, rows = best_rates(results), []
  keys = sorted(
    {
      (r.method, r.frequency, r.one_sided)
      for r in results
      if r.batch == "large" and r.method in ("soap", "shampoo")
    }
  )
  for method, frequency, one_sided in keys:
    mine = [
      r
      for r in results
      if (r.batch, r.method, r.frequency, r.one_sided)
      == ("large", method, frequency, one_sided)
      and r.rate == best.get(("large", method))
    ]
    if mine:
      place = "one-sided" if one_sided else "Adam"
      losses = _pm([r.loss for r in mine], 4)
      rows.append([method, str(frequency), place, str(len(mine)), losses])
  header = ["method", "frequency", "embedding, head", "seeds", "final loss"]
  return text.format_table(header, rows)


def draw(results: Sequence[Result], out: pathlib.Path) -> None:
  """Loss against updates at the best rates, and final loss against rate."""
  import matplotlib.pyplot as plt

  best = best_rates(results)
  looks = {
    "adamw": ("#000000", "-", "o"),
    "muon": ("#0072B2", "--", "s"),
    "shampoo": ("#D55E00", "-.", "^"),
    "soap": ("#009E73", ":", "D"),
  }
  figure, axes = plt.subplots(
    2, 2, figsize=(9, 7), squeeze=False, layout="constrained"
  )
  sizes = {"large": "16,384 tokens an update", "small": "2,048 tokens"}
  for column, batch in enumerate(("large", "small")):
    curve, tuning = axes[0][column], axes[1][column]
    for method, (color, style, marker) in looks.items():
      runs = _of(results, batch, method, best)
      if runs:
        key = f"eval/{SET}/{METRIC}"
        steps = runs[0].run.columns[key].steps
        losses = np.array([r.run.columns[key].values for r in runs])
        curve.plot(
          steps, losses.mean(0), color=color, ls=style, marker=marker, ms=4,
          label=method,
        )  # fmt: skip
        curve.fill_between(
          steps, losses.min(0), losses.max(0), color=color, alpha=0.15
        )
      tuned = sorted(
        (r.rate, r.loss)
        for r in results
        if (r.batch, r.method, r.seed, r.frequency) == (batch, method, 0, 10)
        and not r.one_sided
      )
      if tuned:
        tuning.plot(
          *zip(*tuned, strict=True), color=color, ls=style, marker=marker,
          label=method,
        )  # fmt: skip
    curve.set(
      title=sizes[batch],
      xlabel="updates",
      ylabel="validation loss (nats/token)",
    )
    tuning.set(
      xscale="log", xlabel="learning rate", ylabel="final loss (nats/token)"
    )
    curve.legend(frameon=False)
  figure.savefig(out, dpi=150)


def time_steps(rounds: int) -> dict[tuple[str, str], float]:
  """Milliseconds of an update by (batch, method), turn by turn."""
  import jax

  from lm import config as configs
  from lm.sweep import resolve
  from lm.train import setup
  from ml_collections_configs import optimizer_study

  found = {}
  for batch in ("large", "small"):
    updates = {}
    for run in optimizer_study.seeds()[:8]:
      if not run["name"].startswith(batch):
        continue
      config = configs.resolve(
        resolve(run["config"], run["overrides"]),
        vocab_size=4096, eos_id=1, pad_id=0, platform="cpu",
      )  # fmt: skip
      parts = setup.build(config, jax.devices()[:1])
      jax.set_mesh(parts.mesh)
      state, update = setup.init_state(parts), setup.compile_step(parts)
      rows = np.random.default_rng(0).integers(2, 4096, parts.buffer_shape)
      buffer = setup.put_buffer(parts, rows.astype(np.int32))
      updates[config.optim.name] = [state, update, buffer, []]
    for _ in range(rounds):
      for entry in updates.values():
        state, update, buffer, times = entry
        started = time.perf_counter()
        state, metrics = update(state, buffer, np.int32(buffer.shape[0]))
        metrics["train/loss"].block_until_ready()
        times.append(time.perf_counter() - started)
        entry[0] = state
    for method, (_, _, _, times) in updates.items():
      # Refreshes are part of the cost: the mean, without the first round.
      found[batch, method] = 1e3 * statistics.fmean(times[1:])
  return found


def _of(results, batch, method, best) -> list[Result]:
  """Runs at the best rate with the defaults, one a seed."""
  return [
    r
    for r in results
    if (r.batch, r.method, r.frequency, r.one_sided)
    == (batch, method, 10, False)
    and r.rate == best.get((batch, method))
  ]


def _pm(values: Sequence[float], digits: int) -> str:
  """Mean and its standard error."""
  mean = statistics.fmean(values)
  if len(values) < 2:
    return f"{mean:.{digits}f}"
  error = statistics.stdev(values) / math.sqrt(len(values))
  return f"{mean:.{digits}f} ± {error:.{digits}f}"


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folder", nargs="?", type=pathlib.Path)
  parser.add_argument("--out", type=pathlib.Path, help="figure to write")
  parser.add_argument("--time", action="store_true", help="measure updates")
  parser.add_argument("--rounds", type=int, default=20)
  args = parser.parse_args()
  step_ms = time_steps(args.rounds) if args.time else {}
  for (batch, method), ms in step_ms.items():
    base = step_ms[batch, "adamw"]
    print(f"{batch} {method}: {ms:.1f} ms, {ms / base:.2f} of adamw's")
  if args.folder is None:
    return
  results = load(args.folder)
  print(f"{len(results)} finished runs\n\n{rates_table(results)}\n")
  print(f"{steps_table(results, step_ms)}\n\n{variants_table(results)}")
  if args.out:
    draw(results, args.out)


if __name__ == "__main__":
  from lm import allocator

  allocator.settle()
  main()
