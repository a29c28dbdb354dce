"""Training steps against peers: one command, one table of ratios.

    python -m benchmarks.train_step [--sizes=S,M,W] [--rounds=9]
        [--torch-python=PATH] [--peers="NAME;NAME"] [--core=N]

Each side has a process of its own and they take turns (`timing.py`); the table
gives median and quartiles of the ratios, of wall time. On a busy machine
`--core=N` pins every side to one core and compares CPU time, which others
disturb less.

ours            the step that `python -m lm.main` runs, all its metrics
                included, under the allocator settings it makes
ours, system    the same under the system's allocator
ours, base      as ours, but rotary positions and isolated documents
ours, RECIPE    as ours, with `config.product.recipe`; by --peers only, e.g.
                --peers="ours;ours, mxfp8_e4m3;ours, nvfp4"
flax, system    a plain Flax and optax step of the same maths, as anyone runs it
flax, settled   the same under our allocator settings
torch...        the same model in PyTorch, with --torch-python (an interpreter
                that has torch): eager, compiled, bfloat16 autocast

Same numbers first: every side starts from the same weights and sees the same
tokens; unless the losses of the first steps agree, its times are not printed
(not asked of other maths: "ours, base", recipes and bfloat16).
"""

import argparse
import itertools
import os
import pathlib
import statistics
import tempfile

from benchmarks import timing

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
SAME_MATHS = (
  "ours",
  "ours, system",
  "flax, system",
  "flax, settled",
  "torch, eager",
  "torch, compiled",
)
BATCHES, FIRST_STEPS = 8, 4  # Batches in turn; steps whose losses must agree.
TOLERANCE = 2e-3  # Relative, on losses after up to FIRST_STEPS updates.


def config_of(size, change=lambda config: None):
  """The resolved configuration of a model of this size, layers unrolled."""
  import dataclasses

  from lm.config import load
  from ml_collections_configs import base

  c = base.get_config()
  for letter in "DHNF":
    c.model[letter] = size[letter]
  c.model.G = size["H"]
  c.data.seq_length, c.data.batch_size = size["L"], size["B"]
  c.train.num_tokens, c.train.num_steps = 0, 10_000
  change(c)
  config = load.resolve(
    load.from_config_dict(c),
    vocab_size=size["V"],
    eos_id=1,
    pad_id=0,
    platform="cpu",
  )
  model = dataclasses.replace(config.model, layers="unroll")
  return dataclasses.replace(config, model=model)


def _ours(size, weights, *, base, recipe):
  import jax
  import jax.numpy as jnp

  from benchmarks import train_step_peers as peers
  from lm.step import build

  def change(c):
    c.schedule.name, c.schedule.warmup = "constant", 0.0
    c.optim.learning_rate, c.optim.clip_norm = peers.LEARNING_RATE, peers.CLIP
    c.optim.kwargs.update(
      b1=peers.B1, b2=peers.B2, eps=peers.EPS, weight_decay=peers.DECAY
    )
    c.product.recipe = recipe
    if not base:
      c.model.positions = "learned"
      c.model.isolate_documents = c.model.restart_positions = False

  parts = build.build(config_of(size, change))
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
  from benchmarks import train_step_peers as peers

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
    from benchmarks import train_step_peers as peers

    step = peers.torch_step(
      size,
      weights,
      compiled="compiled" in peer,
      dtype="bfloat16" if "bfloat16" in peer else "float32",
    )
  elif peer.startswith("flax"):
    step = _flax(size, weights)
  else:
    words = peer.partition(", ")[2]
    recipe = "none" if words in ("", "base", "system") else words
    step = _ours(size, weights, base=words == "base", recipe=recipe)
  batches = itertools.cycle(_rows(size))
  timing.serve(lambda: step(next(batches)))


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


def _start(name, size_name, weights, options):
  """The process of a side; it compiles at the first step."""
  env = {
    "JAX_PLATFORMS": "cpu",
    "GOLDENPATH_ALLOCATOR": "system" if "system" in name else "",
  }
  given = [f"--worker={name}", f"--sizes={size_name}", f"--weights={weights}"]
  given += [f"--core={options.core}"]
  return timing.Peer(
    name,
    given,
    module="benchmarks.train_step",
    python=options.torch_python if "torch" in name else "",
    env=env,
  )


def measure(size_name, names, options):
  """The sides, which have taken their turns; their first turn is left out."""
  with tempfile.TemporaryDirectory() as folder:
    weights = pathlib.Path(folder) / "weights.npy"
    write_weights(SIZES[size_name], weights)
    sides = [_start(name, size_name, weights, options) for name in names]
    try:
      agree({side.name: side.run(FIRST_STEPS) for side in sides})
      for side in sides:
        side.turns.clear()
      timing.take_turns(sides, options.rounds, options.steps)
      return {side.name: side for side in sides}
    finally:
      for side in sides:
        side.stop()


def agree(losses):
  """Raises unless all sides of the same maths had the same losses."""
  same = {p: x for p, x in losses.items() if p in SAME_MATHS}
  reference, expected = next(iter(same.items()), ("", []))
  for peer, found in same.items():
    gaps = [abs(a / b - 1) for a, b in zip(found, expected, strict=True)]
    if max(gaps) > TOLERANCE:
      raise RuntimeError(
        f"{peer} has losses {found}, {reference} has {expected}: not the same "
        "function, so their times mean nothing."
      )


def table(size_name, sides, clock):
  """Lines of the table of one size; `clock` 0 compares wall, 1 CPU time."""
  size = SIZES[size_name]
  tokens = size["B"] * size["L"]
  reference = "flax, system" if "flax, system" in sides else next(iter(sides))
  columns = [
    p for p in (reference, "flax, settled", "torch, compiled") if p in sides
  ]
  heads = "".join(f"{f'/ {p}':>26}" for p in columns)
  yield f"{size_name}: {size}"
  yield f"{'':18}{'ms':>8}{'CPU ms':>9}{'tok/s':>8}{heads}"
  for name, side in sides.items():
    wall, cpu = (statistics.median(side.means(i)) for i in (0, 1))
    cells = "".join(
      f"{_spread(side.ratios(sides[c], clock)):>26}" for c in columns
    )
    yield f"{name:18}{wall:8.1f}{cpu:9.1f}{tokens / wall * 1e3:8.0f}{cells}"


def _spread(ratios):
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
    if options.core:
      os.sched_setaffinity(0, {int(options.core)})
    work(options.worker, SIZES[options.sizes], options.weights)
    return
  peers = JAX_PEERS + (TORCH_PEERS if options.torch_python else ())
  if options.peers:
    peers = tuple(p.strip() for p in options.peers.split(";"))
  for size_name in options.sizes.split(","):
    sides = measure(size_name, peers, options)
    for line in table(size_name, sides, clock=1 if options.core else 0):
      print(line, flush=True)


if __name__ == "__main__":
  main()
