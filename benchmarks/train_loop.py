"""What surrounds the step: the loop, starting up, compiling. Three tables.

    python -m benchmarks.train_loop [--rounds=5] [--steps=60]

1. The whole loop (data, metrics, logging) against the bare compiled step on
   buffers that already lie on the device, size S, in processes that take
   turns; the ratio of their median step times, round by round.
2. Seconds from the start of the process to the first line of metrics, which
   is written while the second update runs: with an empty and a filled
   compilation cache.
3. Seconds to compile the step against depth, scanned and unrolled.

The corpus is the help text that Python ships, so nothing is downloaded.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import corpus
from benchmarks.timing import ROOT, environment

_VALUES = {
  "data.tokenizer": "bytes",
  "model.V": 4096,  # Size S, whatever the tokenizer.
  "eval.every": 0,
  "eval.final_batches": 1,
  "checkpoint.every": 0,
  "train.num_tokens": 0,
  "train.num_steps": 100,
  "log.samples": 0,
  "log.progress": "none",
}


def printed(arguments: list[str], **env: str) -> float:
  """The number that a Python process prints last."""
  out = subprocess.run(
    [sys.executable, *arguments], check=True, cwd=ROOT,
    env=environment(XLA_FLAGS="", **env), stdout=subprocess.PIPE,
  )  # fmt: skip
  return float(out.stdout.split()[-1])


def loop_ms(flags: list[str], steps: int) -> float:
  """Median step time that a run of the program reports."""
  with tempfile.TemporaryDirectory() as workdir:
    run = [sys.executable, "-m", "lm.main", *flags, f"--workdir={workdir}"]
    run += [f"--config.train.num_steps={steps}"]
    env = environment(XLA_FLAGS="")
    subprocess.run(run, check=True, cwd=ROOT, env=env)
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    waits = [v["perf/data_wait_ms"] for v in values if "perf/step_ms" in v]
    times = [v["perf/step_ms"] for v in values if "perf/step_ms" in v]
    print(f"  data wait {statistics.median(waits):.2f} ms a step")
    return statistics.median(times[1:])  # The first holds the start.


def bare_ms(flags: list[str], steps: int) -> float:
  """Median over tens of the same compiled step, called alone."""
  run = ["-m", "benchmarks.train_loop", "--bare", f"--steps={steps}"]
  return printed([*run, *flags])


def bare(flags: list[str], steps: int) -> None:
  """The worker of `bare_ms`."""
  from lm.cli import allocator, program
  from lm.cli import flags as lm_flags

  allocator.settle()
  program.use_compilation_cache()
  flags = [*flags, f"--config.train.num_steps={steps}"]
  given = lm_flags.parse(flags, None, (lm_flags.CONFIG,))
  import jax
  import numpy as np

  from lm.config import load
  from lm.step import build

  config = load.from_config_dict(given.config)
  parts = build.build(build.resolve(config, build.find_data(config)))
  with jax.set_mesh(parts.mesh):
    step, state = build.compile_step(parts), build.init_state(parts)
    rows = np.random.default_rng(0).integers(2, 250, parts.buffer_shape)
    buffer = build.put_buffer(parts, rows.astype(np.int32))
    times = []
    for _ in range(steps // 10):
      start = time.perf_counter()
      for _ in range(10):
        state, metrics = step(state, buffer, np.int32(1))
      jax.block_until_ready(metrics)
      times.append(100 * (time.perf_counter() - start))
  print(statistics.median(times[1:]))


def first_line_seconds(flags: list[str], cache: str) -> float:
  """From the start of the process to the first line of metrics."""
  with tempfile.TemporaryDirectory() as workdir:
    run = [sys.executable, "-m", "lm.main", *flags, f"--workdir={workdir}"]
    run += ["--config.train.num_steps=3", "--config.log.every=1"]
    metrics = pathlib.Path(workdir) / "metrics.jsonl"
    start = time.perf_counter()
    env = environment(XLA_FLAGS="", JAX_COMPILATION_CACHE_DIR=cache)
    process = subprocess.Popen(run, cwd=ROOT, env=env)
    while not metrics.exists() or not metrics.stat().st_size:
      if process.poll() not in (None, 0):
        raise RuntimeError("the run failed")
      time.sleep(0.01)
    seconds = time.perf_counter() - start
    process.wait()
    return seconds


def compile_seconds(layers: str, depth: int) -> float:
  """Of the training step at width 64, in a process of its own."""
  code = f"""
import time, jax
from lm.config import load
from lm.step import build
from ml_collections_configs import base
c = base.get_config()
c.model.D, c.model.F, c.model.N, c.model.layers = 64, 256, {depth}, {layers!r}
c.data.seq_length = 64
config = load.resolve(load.from_config_dict(c), vocab_size=512, eos_id=1,
                      pad_id=0, platform="cpu")
parts = build.build(config)
with jax.set_mesh(parts.mesh):
  start = time.perf_counter()
  build.compile_step(parts)
  print(time.perf_counter() - start)
"""
  return printed(["-c", code], JAX_ENABLE_COMPILATION_CACHE="false")


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=60, help="per round")
  parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
  options, flags = parser.parse_known_args()
  if options.bare:
    bare(flags, options.steps)
    return
  with tempfile.TemporaryDirectory() as folder:
    flags = corpus.prepare(pathlib.Path(folder), _VALUES)
    ratios = []
    for _ in range(options.rounds):
      whole = loop_ms(flags, options.steps)
      alone = bare_ms(flags, options.steps)
      ratios.append(whole / alone)
      print(f"  loop {whole:.1f} ms, bare {alone:.1f} ms, {ratios[-1]:.3f}")
    print(f"whole loop / bare step, median: {statistics.median(ratios):.3f}\n")
    cold, cached = [], []
    for _ in range(options.rounds):
      with tempfile.TemporaryDirectory() as cache:
        cold.append(first_line_seconds(flags, cache))
        cached.append(first_line_seconds(flags, cache))
    print(f"start to first step, empty cache: {statistics.median(cold):.2f} s")
    print(
      f"start to first step, filled:      {statistics.median(cached):.2f} s"
    )
  print("\nlayers  scanned  unrolled   (seconds to compile the step)")
  for depth in (4, 16, 48):
    scanned = compile_seconds("scan", depth)
    unrolled = compile_seconds("unroll", depth)
    print(f"{depth:6d}  {scanned:7.2f}  {unrolled:8.2f}", flush=True)


if __name__ == "__main__":
  main()
