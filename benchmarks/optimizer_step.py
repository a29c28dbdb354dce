"""Whole optimiser steps, against peers: times, spikes, compilation, memory.

    python benchmarks/optimizer_step.py [--size=S] [--frequencies=1,10,100]
        [--rounds=3] [--torch-python=PATH] [--environments=settled,system]
        [--cores=2]

Each peer has a worker process of its own; they take turns, one computing at a
time, so that a busy machine slows all alike: compare ratios, which are taken
round by round. Update and application are one jitted call, state donated.

Environments: "settled" is `lm.cli.allocator.settle()` and one BLAS thread (XLA
already factorises the matrices of a stack in parallel), "system" is neither.
`--torch-python` names an interpreter with torch and pytorch_optimizer, whose
SOAP equals the authors' code. On a machine that others use, too, `--cores=1`
and the CPU columns are what to trust: threads of one process that wait for
each other burn CPU time when they are many and cores are few.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def _optax_peer(tx):
  import jax
  import optax

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return tx.init, jax.jit(step, donate_argnums=(0, 1))


def _jax_peer(name, frequency, params):
  """(init, step) of one of the JAX peers."""
  import functools

  import jax
  import optax
  import optimizer_peers as peers

  import optim

  common = dict(
    precondition_frequency=frequency, max_precond_dim=peers.MAX_PRECOND_DIM
  )
  if name == "loop":
    step = functools.partial(peers.loop_step, frequency=frequency)
    return peers.loop_init, jax.jit(step, donate_argnums=(0, 1))
  matrices = jax.tree.map(
    lambda p: optim.DimensionNumbers() if p.ndim == 2 else None, params
  )
  matrices["embed"] = None
  numbers = jax.tree.map(
    lambda p: optax.contrib.MuonDimensionNumbers() if p.ndim == 2 else None,
    params,
  )
  numbers["embed"] = None
  build = {
    "adamw": lambda: optax.adamw(1e-3),
    "soap": lambda: optim.soap(3e-3, **common),
    "soap, all at once": lambda: optim.soap(3e-3, stagger=False, **common),
    "soap, cholesky": lambda: optim.soap(3e-3, refresh="cholesky", **common),
    "shampoo": lambda: optim.shampoo(3e-3, **common),
    "muon": lambda: optim.muon(0.02, dimension_numbers=matrices),
    "optax muon": lambda: optax.contrib.muon(
      0.02, muon_weight_dimension_numbers=numbers
    ),
  }
  return _optax_peer(build[name]())


def _jax_worker(name, frequency, size):
  """Yields (milliseconds, CPU milliseconds) a step, after the facts."""
  import jax
  import jax.numpy as jnp
  import optimizer_peers as peers

  params = jax.tree.map(jnp.asarray, peers.tree(size, 0))
  batches = [jax.tree.map(jnp.asarray, peers.tree(size, i)) for i in (1, 2, 3)]
  init, step = _jax_peer(name, frequency, params)
  state = init(params)
  words = sum(x.size for x in jax.tree.leaves(state))
  start = time.perf_counter()
  step = step.lower(params, state, batches[0]).compile()
  yield dict(compile=time.perf_counter() - start, words=words)
  count = 0
  while True:
    before, cpu = time.perf_counter(), time.process_time()
    params, state = step(params, state, batches[count % 3])
    jax.block_until_ready((params, state))
    after = time.perf_counter() - before
    count += 1
    yield 1e3 * after, 1e3 * (time.process_time() - cpu)


def _torch_worker(frequency, size):
  """The same for pytorch_optimizer's SOAP."""
  import jax  # For the tree functions of the shared parameters only.
  import optimizer_peers as peers
  import torch
  from pytorch_optimizer import SOAP

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  leaves = [
    [torch.from_numpy(x.copy()) for x in jax.tree.leaves(peers.tree(size, i))]
    for i in range(4)
  ]
  params = [torch.nn.Parameter(x) for x in leaves[0]]
  tx = SOAP(
    params,
    lr=3e-3,
    precondition_frequency=frequency,
    max_precondition_dim=peers.MAX_PRECOND_DIM,
  )
  yield dict(compile=0.0, words=0)
  count = 0
  while True:
    for p, g in zip(params, leaves[1 + count % 3], strict=True):
      p.grad = g.clone()
    before, cpu = time.perf_counter(), time.process_time()
    tx.step()
    after = time.perf_counter() - before
    count += 1
    yield 1e3 * after, 1e3 * (time.process_time() - cpu)


def _serve(args):
  """Worker: answers each line "n" on stdin with n steps' times."""
  if args.environment == "settled":
    from lm.cli import allocator

    allocator.settle()
  if args.cores:
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: args.cores]))
  torch = args.worker == "torch"
  steps = (
    _torch_worker(args.frequency, args.size)
    if torch
    else _jax_worker(args.worker, args.frequency, args.size)
  )
  print("#" + json.dumps(next(steps)), flush=True)
  next(steps)  # The first call makes the first bases.
  for line in sys.stdin:
    times = [next(steps) for _ in range(int(line))]
    print("#" + json.dumps(times), flush=True)


class Worker:
  """A peer in a process of its own."""

  def __init__(self, name, frequency, args, environment):
    """Starts it and waits until it has compiled."""
    python = args.torch_python if name == "torch" else sys.executable
    self.name, self.frequency, self.rounds = name, frequency, []
    env = dict(os.environ)
    if environment == "settled":
      env["OPENBLAS_NUM_THREADS"] = "1"
    here = os.path.dirname(os.path.abspath(__file__))
    paths = [here, os.path.dirname(here), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    self._process = subprocess.Popen(
      [
        python,
        os.path.abspath(__file__),
        f"--worker={name}",
        f"--frequency={frequency}",
        f"--size={args.size}",
        f"--cores={args.cores}",
        f"--environment={environment}",
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=env,
      text=True,
    )
    self.facts = self._answer()

  def _answer(self):
    for line in self._process.stdout:
      if line.startswith("#"):
        return json.loads(line[1:])
    raise RuntimeError(f"The worker of {self.name} stopped; see above.")

  def run(self, steps):
    """One turn."""
    self._process.stdin.write(f"{steps}\n")
    self._process.stdin.flush()
    self.rounds.append(self._answer())

  def stop(self):
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()

  def figures(self, base):
    """Row of the table; ratios are medians over rounds of mean times."""
    times = [ms for turn in self.rounds for ms, _ in turn]
    median = statistics.median(times)
    spikes = [max(ms for ms, _ in turn) / median for turn in self.rounds]
    cpu = [c for turn in self.rounds for _, c in turn]
    ratios = [
      statistics.median(
        own / theirs
        for own, theirs in zip(self.means(i), base.means(i), strict=True)
      )
      for i in (0, 1)
    ]
    return [
      self.name,
      str(self.frequency) if self.frequency else "-",
      f"{median:.1f}",
      f"{max(times):.1f}",
      f"{statistics.median(spikes):.2f}",
      f"{statistics.mean(times):.1f}",
      f"{statistics.median(cpu):.1f}",
      f"{statistics.mean(cpu):.1f}",
      f"{self.facts['compile']:.1f}",
      f"{ratios[0]:.2f}",
      f"{ratios[1]:.2f}",
    ]

  def means(self, index):
    """Mean time (0) or CPU time (1) of each turn."""
    return [statistics.mean(t[index] for t in turn) for turn in self.rounds]


HEADER = [
  "optimiser", "f", "median ms", "largest", "largest/median", "mean",
  "CPU median", "CPU mean", "compile s", "mean / base", "CPU / base",
]  # fmt: skip


def _print_table(header, rows):
  widths = [
    max(len(str(r[i])) for r in [header, *rows]) for i in range(len(header))
  ]
  for row in [header, ["-" * w for w in widths], *rows]:
    cells = (str(c).ljust(w) for c, w in zip(row, widths, strict=True))
    print("| " + " | ".join(cells) + " |")
  print(flush=True)


def _compare(names, base, frequency, args, environment):
  """One table: workers take turns; `base` is what the others are divided by."""
  workers = {name: Worker(name, frequency, args, environment) for name in names}
  # A whole number of periods a turn, so that a mean is the amortised time.
  steps = max(frequency or 10, 5)
  for _ in range(args.rounds if steps < 100 else 1):
    for worker in workers.values():
      worker.run(steps)
  _print_table(HEADER, [w.figures(workers.get(base)) for w in workers.values()])
  for worker in workers.values():
    worker.stop()


def _memory():
  """State in float32 words a parameter, for the matrices of one block."""
  import jax
  import jax.numpy as jnp

  import optim

  d = 64
  block = {k: (d, d) for k in "qkvo"} | dict(w1=(d, 4 * d), w2=(4 * d, d))
  params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in block.items()}
  size = sum(p.size for p in params.values())
  methods = {
    "soap": (optim.scale_by_soap(), 9.0),
    "soap, one-sided": (optim.scale_by_soap(one_sided=True), 3.0),
    "soap, factorised": (optim.scale_by_soap(factorized=True), 8.0),
    "soap, both": (optim.scale_by_soap(one_sided=True, factorized=True), 2.0),
    "shampoo": (optim.scale_by_shampoo(), 9.0),
    "muon": (optim.scale_by_muon(), 1.0),
  }
  rows = []
  for name, (tx, wanted) in methods.items():
    state = jax.eval_shape(tx.init, params)
    words = sum(
      x.size for x in jax.tree.leaves(state) if x.dtype == jnp.float32
    )
    rows.append([name, f"{words / size:.2f}", f"{wanted:.1f}"])
  print("State, float32 words a parameter, block of 12 d^2 (d = 64):")
  _print_table(["optimiser", "measured", "formula"], rows)


def main():
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", default="S", choices=("S", "M"))
  parser.add_argument("--frequencies", default="1,10,100")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--environments", default="settled,system")
  parser.add_argument("--torch-python", default=None)
  parser.add_argument("--cores", type=int, default=0, help="0: all of them.")
  for name in ("--worker", "--environment"):
    parser.add_argument(name, default=None, help=argparse.SUPPRESS)
  parser.add_argument(
    "--frequency", type=int, default=0, help=argparse.SUPPRESS
  )
  args = parser.parse_args()
  if args.worker:
    _serve(args)
    return
  _memory()
  torch = ["torch"] if args.torch_python else []
  for environment in args.environments.split(","):
    print(f"Size {args.size}, {environment} allocator and BLAS threads.")
    print("Without factors; base optax.adamw, then optax.contrib.muon:")
    _compare(["adamw"], "adamw", 0, args, environment)
    _compare(["optax muon", "muon"], "optax muon", 0, args, environment)
    for frequency in map(int, args.frequencies.split(",")):
      names = [*torch, "loop", "soap, all at once", "soap", "shampoo"]
      base = names[0]
      print(f"Refreshed every {frequency} steps; base {base}:")
      _compare(names, base, frequency, args, environment)


if __name__ == "__main__":
  main()
