"""Seconds until a program says what is wrong with its flags.

    python -m benchmarks.messages --rounds=5

A wrong flag is told before jax is imported, a wrong configuration before a
device is touched. The programs take turns; the table has medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from benchmarks.timing import ROOT
from lm.cli import text

_TINY = "--config=ml_collections_configs/tiny.py"
_MISTAKES = {
  "an unknown flag": ["lm.main", "--confg=x"],
  "an unknown key": ["lm.main", _TINY, "--workdir=x", "--config.model.DD=3"],
  "a wrong value": ["lm.main", _TINY, "--workdir=x", "--config.model.D=33"],
  "an unknown optimiser": [
    "lm.main", _TINY, "--workdir=x", "--config.optim.name=adamv",
  ],
  "data not prepared": [
    "lm.main", _TINY, "--workdir=x", "--config.data.root=/nowhere",
  ],
  "no such run": ["lm.evaluate", "--workdir=/nowhere"],
  "no such sweep": ["lm.sweep", "--sweep=nothing"],
  "a wrong value, prepare": ["lm.data.prepare", _TINY, "--config.seed=-1"],
  "an unknown slice": ["lm.tools.plan", _TINY, "--topology=v9-8"],
}  # fmt: skip


def seconds(arguments: list[str]) -> tuple[float, float]:
  """Wall and CPU seconds of a program that ends with exit code 2."""
  before, start = os.times(), time.perf_counter()
  done = subprocess.run(
    [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True
  )
  wall, after = time.perf_counter() - start, os.times()
  if done.returncode != 2:
    raise RuntimeError(f"{arguments} ended with {done.returncode}, not 2.")
  cpu = after.children_user + after.children_system
  return wall, cpu - before.children_user - before.children_system


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--rounds", type=int, default=5)
  rounds = parser.parse_args().rounds
  found = {name: [] for name in _MISTAKES}
  for _ in range(rounds):
    for name, arguments in _MISTAKES.items():
      found[name].append(seconds(arguments))
  rows = []
  for name, times in found.items():
    medians = map(statistics.median, zip(*times, strict=True))
    rows.append([name, _MISTAKES[name][0], *(f"{s:.2f}" for s in medians)])
  print(text.format_table(["mistake", "program", "seconds", "CPU"], rows))


if __name__ == "__main__":
  main()
