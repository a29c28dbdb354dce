"""Training steps against peers: one command, one table of ratios.

    python benchmarks/train_step.py [--sizes=S,M,W] [--rounds=9]
        [--torch-python=PATH] [--peers="NAME;NAME"] [--core=N]

Each side has a process of its own and they take turns (A B C A B C ...), one
computing at a time; ratios are taken round by round, and the table gives their
median and quartiles, of wall time. On a busy machine `--core=N` pins every side
to one core and compares CPU time, which others disturb less.

ours            the step that `python -m lm.main` runs, all its metrics
                included, under the allocator settings it makes
ours, system    the same under the system's allocator
ours, base      as ours, but rotary positions and isolated documents
flax, system    a plain Flax and optax step of the same maths, as anyone runs it
flax, settled   the same under our allocator settings
torch...        the same model in PyTorch, with --torch-python (an interpreter
                that has torch): eager, compiled, bfloat16 autocast

Same numbers first: every side starts from the same weights and sees the same
tokens; unless the losses of the first steps agree, its times are not printed
(not asked of other maths: "ours, base" and bfloat16).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZES = {
  "S": dict(D=256, H=4, N=4, F=1024, V=4096, L=256, B=4),
  "M": dict(D=512, H=8, N=8, F=2048, V=4096, L=256, B=2),
  "W": dict(D=256, H=4, N=4, F=1024, V=32128, L=256, B=2),
}
JAX_PEERS = (
  "ours",
  "ours, system",
  "ours, base",
  "flax, system",
  "flax, settled",
)
TORCH_PEERS = ("torch, eager", "torch, compiled", "torch, bfloat16")
OTHER_MATHS = ("ours, base", "torch, bfloat16")
BATCHES, FIRST_STEPS = 8, 4  # Batches in turn; steps whose losses must agree.
TOLERANCE = 2e-3  # Relative, on losses after up to FIRST_STEPS updates.


# --- Workers: "step" in, one JSON line out -----------------------------------


def _ours(size, weights, *, base):
  import dataclasses

  import jax
  import jax.numpy as jnp
  import train_step_peers as peers

  from lm.config import load
  from lm.step import build
  from ml_collections_configs import base as base_config

  c = base_config.get_config()
  for letter in "DHNF":
    c.model[letter] = size[letter]
  c.model.G = size["H"]
  c.data.seq_length, c.data.batch_size = size["L"], size["B"]
  c.train.num_tokens, c.train.num_steps = 0, 10_000
  c.schedule.name, c.schedule.warmup = "constant", 0.0
  c.optim.learning_rate, c.optim.clip_norm = peers.LEARNING_RATE, peers.CLIP
  c.optim.kwargs.update(
    b1=peers.B1, b2=peers.B2, eps=peers.EPS, weight_decay=peers.DECAY
  )
  if not base:
    c.model.positions = "learned"
    c.model.isolate_documents = c.model.restart_positions = False
  config = load.resolve(
    load.from_config_dict(c),
    vocab_size=size["V"],
    eos_id=1,
    pad_id=0,
    platform="cpu",
  )
  model = dataclasses.replace(config.model, layers="unroll")
  parts = build.build(dataclasses.replace(config, model=model))
  with jax.set_mesh(parts.mesh):
    train_step = build.compile_step(parts)
  state = build.init_state(parts)
  if not base:
    params = jax.tree.map(jnp.asarray, weights)
    state = state._replace(
      params=jax.device_put(params, parts.shardings.params)
    )
  count = jnp.int32(1)

  def step(rows):
    nonlocal state
    buffer = build.put_buffer(parts, rows[None])
    state, metrics = train_step(state, buffer, count)
    return float(metrics["train/loss"])

  return step


def _flax(size, weights):
  import train_step_peers as peers

  train_step, state = peers.flax_step(size, weights)

  def step(rows):
    nonlocal state
    state, loss = train_step(state, rows)
    return float(loss)

  return step


def work(peer, size, weights_file):
  """Serves steps of one side until its input ends."""
  if peer.startswith("ours") or peer.endswith("settled"):
    from lm.cli import allocator

    allocator.settle()  # Does nothing if the environment says "system".
  import numpy as np

  weights = np.load(weights_file, allow_pickle=True).item()
  if peer.startswith("torch"):
    import train_step_peers as peers

    step = peers.torch_step(
      size,
      weights,
      compiled="compiled" in peer,
      dtype="bfloat16" if "bfloat16" in peer else "float32",
    )
  elif peer.startswith("flax"):
    step = _flax(size, weights)
  else:
    step = _ours(size, weights, base="base" in peer)
  batches = _rows(size)
  for i, _ in enumerate(sys.stdin):
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step(batches[i % BATCHES])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps([loss, wall * 1e3, cpu * 1e3]), flush=True)


def _rows(size):
  import numpy as np

  shape = (BATCHES, size["B"], size["L"] + 1)
  rng = np.random.default_rng(0)
  return rng.integers(2, size["V"], shape).astype(np.int32)


def write_weights(size, path):
  """Writes initial weights, unrolled, as a pickled dict of NumPy arrays."""
  import numpy as np

  rng = np.random.default_rng(1)
  d, h, f = size["D"], size["H"], size["F"]

  def normal(*shape):
    return (rng.normal(size=shape) * d**-0.5).astype(np.float32)

  def gain():
    return {"gain": np.ones(d, np.float32)}

  def block():
    attention = {n: normal(d, h, d // h) for n in "qkv"}
    attention["out"] = normal(h, d // h, d)
    mlp = {"in": normal(d, f), "out": normal(f, d) / 2}
    return dict(norm1=gain(), attention=attention, norm2=gain(), mlp=mlp)

  weights = {
    "embed": {"table": normal(size["V"], d)},
    "positions": {"table": normal(size["L"], d)},
    "blocks": {str(i): block() for i in range(size["N"])},
    "final_norm": gain(),
  }
  np.save(path, np.array(weights, dtype=object), allow_pickle=True)


# --- The one who gives the turns ---------------------------------------------


class Worker:
  """One side's process."""

  def __init__(self, peer, size_name, weights, options):
    """Starts the process; it compiles at the first step."""
    env = dict(os.environ, JAX_PLATFORMS="cpu")
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
      env.pop(name, None)  # They halve the BLAS that some peers use.
    env["GOLDENPATH_ALLOCATOR"] = "system" if "system" in peer else ""
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    python = options.torch_python if "torch" in peer else sys.executable
    pin = ["taskset", "-c", options.core] if options.core else []
    command = [*pin, python, __file__, "--worker", peer]
    command += ["--sizes", size_name, "--weights", str(weights)]
    self._process = subprocess.Popen(
      command,
      env=env,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def step(self):
    """Makes one update; returns loss, wall and CPU milliseconds."""
    self._process.stdin.write("step\n")
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f"{self._process.args} stopped; see above.")
    return json.loads(line)

  def close(self):
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def measure(size_name, peers, options):
  """Times of each side: {peer: [[wall, cpu] of each round]}."""
  with tempfile.TemporaryDirectory() as folder:
    weights = pathlib.Path(folder) / "weights.npy"
    write_weights(SIZES[size_name], weights)
    workers = {p: Worker(p, size_name, weights, options) for p in peers}
    try:
      losses = {
        p: [worker.step()[0] for _ in range(FIRST_STEPS)]
        for p, worker in workers.items()
      }
      agree(losses)
      times = {p: [] for p in peers}
      for _ in range(options.rounds):
        for p, worker in workers.items():
          steps = [worker.step()[1:] for _ in range(options.steps)]
          times[p].append(
            [statistics.mean(x) for x in zip(*steps, strict=True)]
          )
      return times
    finally:
      for worker in workers.values():
        worker.close()


def agree(losses):
  """Raises unless all sides of the same maths had the same losses.

  Args:
    losses: {peer: losses of the first steps}.
  """
  same = {p: x for p, x in losses.items() if p not in OTHER_MATHS}
  reference, expected = next(iter(same.items()))
  for peer, found in same.items():
    gaps = [abs(a / b - 1) for a, b in zip(found, expected, strict=True)]
    if max(gaps) > TOLERANCE:
      raise RuntimeError(
        f"{peer} has losses {found}, {reference} has {expected}: not the same "
        "function, so their times mean nothing."
      )


def table(size_name, times, clock):
  """Lines of the table of one size; `clock` 0 compares wall, 1 CPU time."""
  size = SIZES[size_name]
  tokens = size["B"] * size["L"]
  reference = "flax, system" if "flax, system" in times else next(iter(times))
  columns = [
    p for p in (reference, "flax, settled", "torch, compiled") if p in times
  ]
  heads = "".join(f"{f'/ {p}':>26}" for p in columns)
  yield f"{size_name}: {size}"
  yield f"{'':18}{'ms':>8}{'CPU ms':>9}{'tok/s':>8}{heads}"
  for peer, rounds in times.items():
    wall, cpu = (statistics.median(x) for x in zip(*rounds, strict=True))
    cells = "".join(f"{_ratio(rounds, times[c], clock):>26}" for c in columns)
    yield f"{peer:18}{wall:8.1f}{cpu:9.1f}{tokens / wall * 1e3:8.0f}{cells}"


def _ratio(rounds, reference, clock):
  ratios = [a[clock] / b[clock] for a, b in zip(rounds, reference, strict=True)]
  if len(ratios) < 2:
    return f"{ratios[0]:.3f}"
  low, middle, high = statistics.quantiles(ratios, n=4)
  return f"{middle:.3f} [{low:.2f}, {high:.2f}]"


def main():
  """Parses the flags and prints a table a size."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--sizes", default="S,M,W")
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--steps", type=int, default=3, help="a turn")
  parser.add_argument("--peers", default="", help="separated by ;")
  parser.add_argument("--torch-python", default="")
  parser.add_argument(
    "--core", default="", help="pin to this core; compare CPU time"
  )
  parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
  parser.add_argument("--weights", default="", help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.worker:
    work(options.worker, SIZES[options.sizes], options.weights)
    return
  peers = JAX_PEERS + (TORCH_PEERS if options.torch_python else ())
  if options.peers:
    peers = tuple(p.strip() for p in options.peers.split(";"))
  for size_name in options.sizes.split(","):
    times = measure(size_name, peers, options)
    for line in table(size_name, times, clock=1 if options.core else 0):
      print(line, flush=True)


if __name__ == "__main__":
  main()
