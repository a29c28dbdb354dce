"""Gauss-Newton steps beside gradients and the study's scheme.

    python benchmarks/gauss_newton_step.py [--size=S] [--rounds=7]
        [--remat=none,full] [--core=N]

Each side has a process of its own; they take turns, one computing at a time,
and ratios to the first side of a table are taken round by round. The tables:
one inner gradient beside the model's own gradient (matrix products 5 : 3), the
product with G beside the hand-written one, a line search of five candidates on
one batch; then whole outer steps of eight inner steps: ours with a quarter of
the data in the line search, ours with all of it, and the study's loop, in which
Python calls every inner step and every candidate on every batch.

"memory" is what the compiled program allocates beside arguments and results
(XLA on a CPU does not rematerialise for memory; trust its ratios without).
Sides of one table agree on their numbers before they are timed: see `--check`,
which runs everything once at the smallest size and prints no times.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

INNER = (
  "gradient", "gradient, chunked", "quadratic", "quadratic, chunked",
  "prox-linear, chunked", "study's", "vjp and jvp apart",
)  # fmt: skip
PRODUCTS = ("product, by hand", "product")
SEARCH = ("gradient", "search, one batch")
OUTER = ("outer, study's", "outer", "outer, all data", "outer, chunked")


def _serve(args):
  """Worker: answers each line "n" on stdin with n calls' times."""
  from lm.cli import allocator

  allocator.settle()
  if args.core is not None:
    os.sched_setaffinity(0, {args.core})
  import gauss_newton_peers as peers

  problem = peers.Problem(args.size, args.remat)
  make = peers.outer_step if args.worker in OUTER else peers.inner_step
  start = time.perf_counter()
  call, compiled = make(problem, args.worker)
  facts = dict(compile=time.perf_counter() - start, memory=0)
  if compiled is not None:
    facts["memory"] = compiled.memory_analysis().temp_size_in_bytes
  print("#" + json.dumps(facts), flush=True)
  call(0)
  count = 0
  for line in sys.stdin:
    times = []
    for _ in range(int(line)):
      before, cpu = time.perf_counter(), time.process_time()
      call(count)
      times.append((time.perf_counter() - before, time.process_time() - cpu))
      count += 1
    print("#" + json.dumps(times), flush=True)


class Worker:
  """A side in a process of its own."""

  def __init__(self, name, remat, args):
    """Starts it and waits until it has compiled."""
    self.name, self.turns = name, []
    here = os.path.dirname(os.path.abspath(__file__))
    paths = [here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")]
    command = [
      sys.executable, os.path.abspath(__file__), f"--worker={name}",
      f"--size={args.size}", f"--remat={remat}",
    ]  # fmt: skip
    if args.core is not None:
      command.append(f"--core={args.core}")
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
      text=True,
    )
    self.facts = self._answer()

  def _answer(self):
    for line in self._process.stdout:
      if line.startswith("#"):
        return json.loads(line[1:])
    raise RuntimeError(f"The worker of {self.name} stopped; see above.")

  def run(self, calls):
    """One turn."""
    self._process.stdin.write(f"{calls}\n")
    self._process.stdin.flush()
    self.turns.append(self._answer())

  def stop(self):
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()

  def means(self, index):
    """Mean wall time (0) or CPU time (1) of each turn."""
    return [statistics.mean(t[index] for t in turn) for turn in self.turns]


def _compare(title, names, remat, args, calls):
  """One table: workers take turns; the first is what others are divided by."""
  workers = [Worker(name, remat, args) for name in names]
  for _ in range(args.rounds):
    for worker in workers:
      worker.run(calls)
  base = workers[0]
  rows = [
    ["side", "median ms", "wall / first", "CPU / first", "memory MB",
     "compile s"],
  ]  # fmt: skip
  for worker in workers:
    ratios = [
      statistics.median(
        own / first
        for own, first in zip(worker.means(i), base.means(i), strict=True)
      )
      for i in (0, 1)
    ]
    memory = worker.facts["memory"]
    rows.append([
      worker.name,
      f"{1e3 * statistics.median(worker.means(0)):.1f}",
      f"{ratios[0]:.2f}",
      f"{ratios[1]:.2f}",
      f"{memory / 1e6:.1f}" if memory else "-",
      f"{worker.facts['compile']:.1f}",
    ])  # fmt: skip
    worker.stop()
  print(f"{title}, remat {remat}, size {args.size}:")
  _print_table(rows)


def _print_table(rows):
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  for row in [rows[0], ["-" * w for w in widths], *rows[1:]]:
    cells = (cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    print("| " + " | ".join(cells) + " |")
  print(flush=True)


def _check():
  """Every side once; sides that claim the same numbers must have them."""
  import gauss_newton_peers as peers
  import jax
  import numpy as np

  problem = peers.Problem("T")
  sides = peers.inner_sides(problem)
  results = {
    name: jax.jit(side)(problem.params, problem.delta, problem.tokens[0])
    for name, side in sides.items()
  }
  grads = {
    name: result[1] if isinstance(result, tuple) else result
    for name, result in results.items()
  }
  for name, other in (
    ("quadratic", "study's"),
    ("quadratic, chunked", "study's"),
    ("vjp and jvp apart", "study's"),
    ("product", "product, by hand"),
  ):
    for a, b in zip(
      jax.tree.leaves(grads[name]), jax.tree.leaves(grads[other]), strict=True
    ):
      scale = max(float(np.abs(b).max()), 1e-12)
      gap = float(np.abs(np.asarray(a) - np.asarray(b)).max()) / scale
      if gap > 1e-3:
        raise SystemExit(f"{name} and {other} differ by {gap:.1e}.")
  for name in OUTER:
    peers.outer_step(problem, name)[0](0)
  print("All sides run; those of one method agree to 1e-3.")


def main():
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", default="S", choices=("T", "S", "W"))
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--remat", default="none,full")
  parser.add_argument("--core", type=int, default=None, help="Pin to it.")
  parser.add_argument("--check", action="store_true", help="No times.")
  parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    _serve(args)
    return
  if args.check:
    sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)) or ".")
    _check()
    return
  for remat in args.remat.split(","):
    _compare("Inner gradients", INNER, remat, args, 5)
    _compare("Products with G", PRODUCTS, remat, args, 5)
  _compare("Line search", SEARCH, "none", args, 5)
  _compare("Outer steps of 8", OUTER, "none", args, 1)


if __name__ == "__main__":
  main()
