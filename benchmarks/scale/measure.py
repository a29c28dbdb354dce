"""Counts what updates compute, move and send on 8 to 2,048 devices.

    python -m benchmarks.scale.measure [--counts=FILE] [--methods=adamw,soap]
        [--sizes=150M] [--devices=8,64,512,2048]

Compiles every update for so many fake CPU devices (jax allows up to 2,048) and
adds a line of counts to the file, unless the line is there: matrix products and
the bytes of every collective, each as often as it runs.

A program compiled for CPUs differs from one for TPUs in two known ways: weights
are gathered in float32 (a TPU gathers the compute type), and a gradient is
reduced to its shards by an all-reduce and a slice (a TPU reduce-scatters,
which sends half). Both make the communication here an upper bound.
"""

import argparse
import itertools
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.scale import hlo, points
from lm.config.schema import Config
from lm.step import build, memory
from lm.step.parts import Parts


def measure(
  config: Config, devices: Sequence[jax.Device] | None = None
) -> points.Counts:
  """Compiles an update for some devices (None: all), and counts."""
  parts = build.build(config, devices)
  build.check_rows(config, parts.mesh)
  with jax.set_mesh(parts.mesh):
    step: Any = build.compile_step(parts)
    text = step.as_text()
  mesh = dict(parts.mesh.shape)
  passes = parts.buffer_shape[0]
  return points.Counts(
    mesh,
    hlo.product_flops(text, passes),
    hbm_bytes(parts),
    hlo.totals(hlo.collectives(text, mesh, passes)),
    config.tokens_per_step,
  )


def hbm_bytes(parts: Parts) -> int:
  """Bytes of memory traffic: state and activations, once in and once out."""
  passes, sums = parts.buffer_shape[0], memory.by_phase(memory.plan(parts))
  once = sums["kept"] + sums["gradients"] + sums["update"]
  return 2 * (once + passes * sums["backward"])


def main() -> None:
  """Measures what the file lacks."""
  split = lambda text: text.split(",")  # noqa: E731
  parser = argparse.ArgumentParser(description=__doc__)
  add = parser.add_argument
  add("--counts", type=pathlib.Path, default=points.COUNTS)
  add("--methods", type=split, default=list(points.METHODS))
  add("--sizes", type=split, default=list(points.SIZES))
  add("--devices", type=split, default=["8", "64", "512", "2048"])
  args = parser.parse_args()
  numbers = [int(n) for n in args.devices]
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", max(numbers))
  args.counts.parent.mkdir(parents=True, exist_ok=True)
  done = points.read(args.counts)
  for n, size, method in itertools.product(numbers, args.sizes, args.methods):
    if n in done.get((method, size), {}):
      continue
    start = time.time()
    counts = measure(points.config_of(method, size, n), jax.devices()[:n])
    sent = [[*key, many] for key, many in sorted(counts.sent.items())]
    point = {"method": method, "size": size, "devices": n}
    point |= counts._asdict() | {"sent": sent}
    with args.counts.open("a") as file:
      file.write(json.dumps(point) + "\n")
    print(method, size, n, f"{time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
  main()
