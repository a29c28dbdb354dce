"""How long one update takes to compile, beside `optax.contrib.muon`.

    python -m benchmarks.optimizer_compile [--repeats=3] [--methods=soap,muon]

Traces, lowers and compiles the update of five matrices of five shapes, without
any cache, on the CPU. Methods take turns in one process. Times are CPU seconds
of all threads of the process, so that another job on the machine changes
little; ratios are medians over the repeats.
"""

import argparse
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import optax

import optim
from benchmarks import timing

SHAPES = ((256, 256), (256, 512), (512, 256), (512, 512), (256, 1024))
BASE = "optax muon"
METHODS = {
  BASE: lambda: optax.contrib.muon(0.02),
  "muon": lambda: optim.muon(0.02),
  "normuon": lambda: optim.normuon(0.02),
  "shampoo": lambda: optim.shampoo(3e-3),
  "moso": lambda: optim.moso(3e-3),
  "soap": lambda: optim.soap(3e-3),
  "soap_muon": lambda: optim.soap_muon(0.02),
  "kl_shampoo": lambda: optim.kl_shampoo(3e-3),
  "kl_soap": lambda: optim.kl_soap(3e-3),
}
HEADER = ["method", "trace s", "lower s", "compile s", "sum s", "sum / base"]


def cpu_seconds(name: str) -> list[float]:
  """CPU seconds to trace, to lower and to compile one update, and their sum."""
  tx = METHODS[name]()
  params = {str(s): jax.ShapeDtypeStruct(s, jnp.float32) for s in SHAPES}
  state = jax.eval_shape(tx.init, params)
  jax.clear_caches()
  times = [time.process_time()]
  traced = jax.jit(tx.update).trace(params, state, params)
  times.append(time.process_time())
  lowered = traced.lower()
  times.append(time.process_time())
  lowered.compile()
  times.append(time.process_time())
  steps = [after - before for before, after in itertools.pairwise(times)]
  return [*steps, sum(steps)]


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--methods", default=",".join(METHODS))
  args = parser.parse_args()
  jax.config.update("jax_enable_compilation_cache", False)
  names = [name for name in args.methods.split(",") if name != BASE]
  unknown = sorted(set(names) - set(METHODS))
  if unknown:
    parser.error(f"--methods={unknown} must be among {sorted(METHODS)}.")
  names = [BASE, *names]
  cpu_seconds(BASE)  # What the process does only once.
  turns = [
    {name: cpu_seconds(name) for name in names} for _ in range(args.repeats)
  ]
  rows = []
  for name in names:
    columns = zip(*(turn[name] for turn in turns), strict=True)
    medians = [statistics.median(column) for column in columns]
    ratio = statistics.median(turn[name][-1] / turn[BASE][-1] for turn in turns)
    rows.append([name, *(f"{x:.2f}" for x in [*medians, ratio])])
  timing.print_table(HEADER, rows)


if __name__ == "__main__":
  main()
