"""Whole optimiser steps, against peers: times, spikes, compilation, memory.

    python -m benchmarks.optimizer_step [--size=S] [--frequencies=1,10,100]
        [--rounds=3] [--torch-python=PATH] [--environments=settled,system]
        [--cores=2] [--family]

Each peer has a process of its own and they take turns (`timing.py`). Update and
application are one jitted call, state donated.

`--family` compares the relatives of Muon and of SOAP with the two, and each
method with its floor: the products and refreshes that it needs
(`optimizer_products.py`).

Environments: "settled" is `lm.cli.allocator.settle()` and one BLAS thread (XLA
already factorises the matrices of a stack in parallel), "system" is neither.
`--torch-python` names an interpreter with torch and pytorch_optimizer, whose
SOAP equals the authors' code. On a machine that others use, too, `--cores=1`
and the CPU columns are what to trust: threads of one process that wait for
each other burn CPU time when they are many and cores are few.
"""

import argparse
import itertools
import os
import statistics
import time

from benchmarks import timing


def _jax_peer(name, frequency, params):
  """(init, step) of one of the JAX peers."""
  import functools

  import jax
  import optax

  import optim
  from benchmarks import optimizer_peers as peers
  from benchmarks import optimizer_products as products

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
  if name.endswith(" floor"):
    method = name.removesuffix(" floor")
    return products.floor(
      method, params, frequency or 1, dimension_numbers=matrices
    )
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
    "normuon": lambda: optim.normuon(0.02, dimension_numbers=matrices),
    "muon, quintic": lambda: optim.muon(
      0.02, dimension_numbers=matrices, ns_coeffs="quintic"
    ),
    "muon, record": lambda: optim.muon(
      0.02, dimension_numbers=matrices, ns_coeffs="record"
    ),
  }
  # Of the matrices in the blocks, so that all of them have the same work.
  hidden = common | dict(dimension_numbers=matrices)
  build |= {
    "soap, hidden": lambda: optim.soap(3e-3, **hidden),
    "kl_soap": lambda: optim.kl_soap(3e-3, **hidden),
    "kl_shampoo": lambda: optim.kl_shampoo(3e-3, **hidden),
    "soap_muon": lambda: optim.soap_muon(0.02, **hidden),
    "moso": lambda: optim.moso(3e-3, **hidden),
    "optax muon": lambda: optax.contrib.muon(
      0.02, muon_weight_dimension_numbers=numbers
    ),
  }
  tx = build[name]()
  return tx.init, jax.jit(peers.step_of(tx), donate_argnums=(0, 1))


def _jax_worker(args):
  """(one step, facts) of a JAX peer."""
  import jax
  import jax.numpy as jnp

  from benchmarks import optimizer_peers as peers

  params = jax.tree.map(jnp.asarray, peers.tree(args.size, 0))
  batches = itertools.cycle(
    jax.tree.map(jnp.asarray, peers.tree(args.size, i)) for i in (1, 2, 3)
  )
  init, step = _jax_peer(args.worker, args.frequency, params)
  carry = params, init(params)
  start = time.perf_counter()
  compiled = step.lower(*carry, next(batches)).compile()

  def call():
    nonlocal carry
    carry = compiled(*carry, next(batches))
    jax.block_until_ready(carry)

  return call, dict(compile=time.perf_counter() - start)


def _torch_worker(args):
  """The same for pytorch_optimizer's SOAP."""
  import jax  # For the tree functions of the shared parameters only.
  import torch
  from pytorch_optimizer import SOAP

  from benchmarks import optimizer_peers as peers

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  leaves = [
    [torch.from_numpy(x.copy()) for x in jax.tree.leaves(tree)]
    for tree in (peers.tree(args.size, i) for i in range(4))
  ]
  params = [torch.nn.Parameter(x) for x in leaves[0]]
  batches = itertools.cycle(leaves[1:])
  tx = SOAP(
    params,
    lr=3e-3,
    precondition_frequency=args.frequency,
    max_precondition_dim=peers.MAX_PRECOND_DIM,
  )

  def call():
    for p, g in zip(params, next(batches), strict=True):
      p.grad = g.clone()
    tx.step()

  return call, dict(compile=0.0)


def _serve(args):
  """The process of one peer."""
  if args.environment == "settled":
    from lm.cli import allocator

    allocator.settle()
  if args.cores:
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: args.cores]))
  make = _torch_worker if args.worker == "torch" else _jax_worker
  call, facts = make(args)
  call()  # The first call makes the first bases.
  timing.serve(call, facts)


def _figures(peer, frequency, base):
  """Row of the table; ratios are medians over rounds of mean times."""
  calls = [call for turn in peer.turns for call in turn]
  times, cpu = ([call[i] for call in calls] for i in (0, 1))
  median = statistics.median(times)
  spikes = [max(ms for ms, *_ in turn) / median for turn in peer.turns]
  numbers = [
    median, max(times), statistics.median(spikes), statistics.mean(times),
    statistics.median(cpu), statistics.mean(cpu), peer.facts["compile"],
    *(statistics.median(peer.ratios(base, i)) for i in (0, 1)),
  ]  # fmt: skip
  digits = (1, 1, 2, 1, 1, 1, 1, 2, 2)
  cells = [f"{x:.{n}f}" for x, n in zip(numbers, digits, strict=True)]
  return [peer.name, frequency or "-", *cells]


HEADER = [
  "optimiser", "f", "median ms", "largest", "largest/median", "mean",
  "CPU median", "CPU mean", "compile s", "mean / base", "CPU / base",
]  # fmt: skip


def _compare(names, base, frequency, args, environment):
  """One table: peers take turns; `base` is what the others are divided by."""
  given = [
    f"--frequency={frequency}", f"--size={args.size}", f"--cores={args.cores}",
    f"--environment={environment}",
  ]  # fmt: skip
  threads = {"OPENBLAS_NUM_THREADS": "1"} if environment == "settled" else {}
  peers = {
    name: timing.Peer(
      name,
      [f"--worker={name}", *given],
      module="benchmarks.optimizer_step",
      python=args.torch_python if name == "torch" else "",
      env=threads,
    )
    for name in names
  }
  # A whole number of periods a turn, so that a mean is the amortised time.
  steps = max(frequency or 10, 5)
  rounds = args.rounds if steps < 100 else 1
  timing.take_turns(list(peers.values()), rounds, steps)
  rows = [_figures(peer, frequency, peers[base]) for peer in peers.values()]
  timing.print_table(HEADER, rows)
  for peer in peers.values():
    peer.stop()


def _family(args):
  """The relatives of Muon and of SOAP, beside their floors."""
  for environment in args.environments.split(","):
    print(f"Size {args.size}, {environment} allocator and BLAS threads.")
    print("Without factors; base optax.contrib.muon:")
    names = ["optax muon", "muon", "muon floor", "muon, quintic", "normuon"]
    _compare([*names, "normuon floor"], "optax muon", 0, args, environment)
    for frequency in map(int, args.frequencies.split(",")):
      print(f"Refreshed every {frequency} steps; base soap:")
      own = ["kl_soap", "kl_shampoo", "soap_muon"]
      floors = [f"{name} floor" for name in ("soap", *own)]
      names = ["soap, hidden", *own, "moso", "muon", "muon, record", *floors]
      _compare(names, "soap, hidden", frequency, args, environment)


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
  timing.print_table(["optimiser", "measured", "formula"], rows)


def main():
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", default="S", choices=("S", "M"))
  parser.add_argument("--frequencies", default="1,10,100")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--environments", default="settled,system")
  parser.add_argument("--torch-python", default=None)
  parser.add_argument("--family", action="store_true")
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
  if args.family:
    _family(args)
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
