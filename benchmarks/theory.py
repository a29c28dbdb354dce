"""Speed of `theory` against the naive ways, in one interleaved run.

    python -m benchmarks.theory             # the table, about two minutes
    python -m benchmarks.theory --rounds=3  # faster, noisier
    python -m benchmarks.theory --skip-study

Every row is the median over rounds; all rows of a round run one after the
other, so that a busy machine slows them alike. "extrapolated" rows time fewer
steps and scale; the others are measured in full.
"""

import argparse
import subprocess
import sys
import time

import jax
import numpy as np

import theory
from benchmarks.timing import ROOT

T = 10_000


def _matrix_recursion(d, steps):
  """Dense d x d recursion of the moments, NumPy on all cores."""
  H = np.diag(np.arange(1.0, d + 1) ** -1.5)
  C, eta, batch = np.eye(d), 0.1, 4
  for _ in range(steps):
    HC = H @ C
    noise = 1.25 * HC @ H + (np.trace(HC) + 1) / batch * H
    C = C - eta * (HC + HC.T) + eta**2 * noise


def _vector_loop(d, steps):
  """The O(d) recursion as a NumPy loop."""
  lam, z, eta, batch = np.arange(1.0, d + 1) ** -1.5, np.ones(d), 0.1, 4
  keep = 1 - eta * lam * (2 - 1.25 * eta * lam)
  for _ in range(steps):
    z = keep * z + eta**2 / batch * lam * (lam @ z + 1)


def _monte_carlo(d, steps, replicas):
  """Sampled SGD at batch 1, NumPy."""
  rng = np.random.default_rng(0)
  root = np.arange(1.0, d + 1) ** -0.75
  w = np.ones((replicas, d))
  for _ in range(steps):
    x = rng.standard_normal((replicas, d)) * root
    w -= 0.1 * ((w * x).sum(1) - rng.standard_normal(replicas))[:, None] * x


def _rows():
  """(name, target in seconds or None, function, factor, note)."""
  full = theory.power_law(1000, 1.5, 2.0, 1.0, nodes=None)
  small = theory.power_law(1e5, 1.5, 2.0, 1.0)
  tiny = theory.power_law(1e4, 1.5, 2.0, 1.0, nodes=5, head=16)
  eta = 0.3 * theory.eta_max(small, 4)
  short = theory.schedule(theory.cosine(eta, T), 4)
  long = theory.schedule(theory.cosine(eta, 1_000_000), 4)
  mid = np.asarray(theory.cosine(eta, 90_000))
  etas = eta * np.logspace(-2, 0.3, 64)
  times = np.logspace(0, 9, 50)
  with theory.float64():
    batched = jax.jit(
      jax.vmap(lambda e: theory.risk_at(small, e, 4.0, times).total)
    )
    gradient = jax.jit(
      jax.value_and_grad(
        lambda e: (
          theory.final_risk(
            tiny, theory.Schedule(e, np.full(e.size, 4.0))
          ).total
        )
      )
    )

  def scoped(fn, x):
    with theory.float64():
      return jax.block_until_ready(fn(x))

  mc = dict(steps=20, replicas=1000)
  return [
    ("d x d recursion, d=1000, 1e4 steps", None,
     lambda: _matrix_recursion(1000, 3), T / 3, "extrapolated from 3 steps"),
    ("Monte Carlo to 1 %, d=1000, 1e4 steps", None,
     lambda: _monte_carlo(1000, **mc), T / 20, "extrapolated, 1000 replicas"),
    ("NumPy O(d) loop, d=1000, 1e4 steps", None,
     lambda: _vector_loop(1000, T), 1, ""),
    ("risk_scan, d=1000 uncompressed, 1e4 steps", 6e-3,
     lambda: theory.risk_scan(full, short), 1, "bias and variance"),
    (f"risk_scan, {small.lam.size} nodes (d=1e5), 1e6 steps", 0.5,
     lambda: theory.risk_scan(small, long, every=1000), 1, "cosine"),
    (f"risk_at, 64 etas x 50 times, {small.lam.size} nodes", 1.0,
     lambda: scoped(batched, etas), 1, "times to 1e9"),
    (f"value and gradient of 9e4 step sizes, {tiny.lam.size} nodes", 0.4,
     lambda: scoped(gradient, mid), 1, ""),
    (f"tail_average_at, N=1e10, {small.lam.size} nodes", None,
     lambda: theory.tail_average_at(small, eta, 4, 1e10, 1e10), 1, ""),
  ]  # fmt: skip


def _import_seconds(rounds):
  """What importing theory adds to importing jax, and jax.numpy with it."""

  def timed(line):
    code = f"import time; t = time.perf_counter(); {line}; print(time.perf_counter() - t)"  # noqa: E501
    out = subprocess.run(
      [sys.executable, "-c", code],
      capture_output=True,
      text=True,
      check=True,
      cwd=ROOT,
    )
    return float(out.stdout)

  plain = [timed("import jax") for _ in range(rounds)]
  ours = [timed("import theory") for _ in range(rounds)]
  return np.median(ours) - np.median(plain)


def study():
  """Critical batch size of three problems: 270 (eta, B) x 15 data sizes."""
  batches = np.logspace(0, 5, 15)
  for a, b, low in ((1.5, 3.0, 1e-3), (1.5, 2.0, 1e-3), (2.0, 1.5, 1e-2)):
    problem = theory.power_law(1e5, a, b, 1.0, nodes=4)
    etas = theory.eta_grid(problem, batches, 18, low)
    theory.risk_table(problem, etas, batches, np.logspace(4.5, 7, 15))


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--skip-study", action="store_true")
  args = parser.parse_args()
  rows = _rows()
  for row in rows[3:]:
    row[2]()  # Compile.
  seconds = np.zeros((args.rounds, len(rows)))
  for k in range(args.rounds):
    for j, (_, _, fn, factor, _) in enumerate(rows):
      start = time.perf_counter()
      fn()
      seconds[k, j] = (time.perf_counter() - start) * factor
  table = [
    (name, target, value, note)
    for (name, target, _, _, note), value in zip(
      rows, np.median(seconds, axis=0), strict=True
    )
  ]
  extra = _import_seconds(args.rounds)
  table.append(("import theory, beyond import jax", 0.3, extra, ""))
  if not args.skip_study:
    start = time.perf_counter()
    study()
    table.append(
      ("critical-batch study, 3 problems x 4050", 15.0,
       time.perf_counter() - start, "with compilation")
    )  # fmt: skip
  print(f"{'task':<52}{'seconds':>10}{'target':>9}  note")
  for name, target, value, note in table:
    goal = "" if target is None else f"{target:g}"
    verdict = "" if target is None else ("ok " if value <= target else "MISS ")
    print(f"{name:<52}{value:>10.3g}{goal:>9}  {verdict}{note}")


if __name__ == "__main__":
  main()
