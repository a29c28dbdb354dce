"""Gauss-Newton steps beside gradients and the study's scheme.

    python -m benchmarks.gauss_newton_step [--size=S] [--rounds=7]
        [--remat=none,full] [--core=N]

Each side has a process of its own and they take turns (`timing.py`); ratios are
to the first side of a table. The tables:
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
import itertools
import os
import statistics
import time

from benchmarks import timing

INNER = (
  "gradient", "gradient, chunked", "quadratic", "quadratic, chunked",
  "prox-linear, chunked", "study's", "vjp and jvp apart",
)  # fmt: skip
PRODUCTS = ("product, by hand", "product")
SEARCH = ("gradient", "search, one batch")
OUTER = ("outer, study's", "outer", "outer, all data", "outer, chunked")


def _serve(args):
  """The process of one side."""
  from lm.cli import allocator

  allocator.settle()
  if args.core is not None:
    os.sched_setaffinity(0, {args.core})
  from benchmarks import gauss_newton_peers as peers

  problem = peers.Problem(args.size, args.remat)
  make = peers.outer_step if args.worker in OUTER else peers.inner_step
  start = time.perf_counter()
  call, compiled = make(problem, args.worker)
  facts = dict(compile=time.perf_counter() - start, memory=0)
  if compiled is not None:
    facts["memory"] = compiled.memory_analysis().temp_size_in_bytes
  call(0)
  counts = itertools.count()
  timing.serve(lambda: call(next(counts)), facts)


def _compare(title, names, remat, args, calls):
  """One table: sides take turns; the first is what others are divided by."""
  given = [f"--size={args.size}", f"--remat={remat}"]
  if args.core is not None:
    given.append(f"--core={args.core}")
  sides = [
    timing.Peer(
      name,
      [f"--worker={name}", *given],
      module="benchmarks.gauss_newton_step",
    )
    for name in names
  ]
  timing.take_turns(sides, args.rounds, calls)
  header = ["side", "median ms", "wall / first", "CPU / first", "memory MB"]
  rows = []
  for side in sides:
    ratios = [statistics.median(side.ratios(sides[0], i)) for i in (0, 1)]
    memory = side.facts["memory"]
    rows.append([
      side.name,
      f"{statistics.median(side.means(0)):.1f}",
      f"{ratios[0]:.2f}",
      f"{ratios[1]:.2f}",
      f"{memory / 1e6:.1f}" if memory else "-",
      f"{side.facts['compile']:.1f}",
    ])  # fmt: skip
    side.stop()
  print(f"{title}, remat {remat}, size {args.size}:")
  timing.print_table([*header, "compile s"], rows)


def _check():
  """Every side once; sides that claim the same numbers must have them."""
  import jax
  import numpy as np

  from benchmarks import gauss_newton_peers as peers

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
    _check()
    return
  for remat in args.remat.split(","):
    _compare("Inner gradients", INNER, remat, args, 5)
    _compare("Products with G", PRODUCTS, remat, args, 5)
  _compare("Line search", SEARCH, "none", args, 5)
  _compare("Outer steps of 8", OUTER, "none", args, 1)


if __name__ == "__main__":
  main()
