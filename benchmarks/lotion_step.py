"""What LOTION adds to an AdamW step, beside the casts of QAT and RAT.

    python -m benchmarks.lotion_step [--width=1024] [--rounds=15]
        [--block_size=32]

One kernel [width, width], float32. The steps take turns, so that a busy machine
slows all alike: compare ratios, which are taken round by round. Bytes are what
the compiler says it reads and writes, per weight; kernels are the operations of
the compiled program's entry. A step of LOTION has no matrix product and rounds
no weights for a forward pass; QAT and RAT cast at least once a step and keep
AdamW's step besides. Ideal traffic, all fused: AdamW 28 bytes a weight, the
penalty 24 more.
"""

import argparse
import re
import statistics
import time

import jax
import optax

import optim
from benchmarks import timing
from benchmarks.optimizer_peers import step_of

_KERNEL = re.compile(
  r"^\s+(?:ROOT )?%?\S+ = .*?\b"
  r"(fusion|reduce|reduce-window|dot|while|custom-call|copy|call|transpose)\(",
  re.MULTILINE,
)


def _cast(fn):
  """A cast of the weights with the same signature; the state is a key."""

  def step(params, key, grads):
    del grads
    return fn(key, params), key

  return step


def cases(block_size):
  """{name: (init, step)}; the first is what the others are divided by."""
  whole = optim.Quantizer(optim.INT4)
  blocks = optim.Quantizer(optim.INT4, -2, block_size)
  floats = optim.Quantizer(optim.E2M1, -2, block_size)
  optimizers = {
    "adamw": optax.adamw(1e-3),
    "lotion, one scale": optim.lotion_adamw(1e-3, whole, 1.0),
    "lotion, blocks": optim.lotion_adamw(1e-3, blocks, 1.0),
    "lotion, blocks, s fixed": optim.lotion_adamw(
      1e-3, blocks, 1.0, scale_gradient=False
    ),
    "lotion, E2M1 blocks": optim.lotion_adamw(1e-3, floats, 1.0),
  }
  casts = {
    "QAT cast, one scale": lambda key, w: optim.round_nearest(w, whole),
    "QAT cast, blocks": lambda key, w: optim.round_nearest(w, blocks),
    "RAT cast, one scale": lambda key, w: optim.round_random(key, w, whole),
    "RAT cast, blocks": lambda key, w: optim.round_random(key, w, blocks),
  }
  result = {k: (tx.init, step_of(tx)) for k, tx in optimizers.items()}
  for name, fn in casts.items():
    result[name] = (lambda params: jax.random.key(0), _cast(fn))
  return result


class Case:
  """A compiled step, with its state and its times."""

  def __init__(self, name, init, step, width):
    """Compiles it."""
    shape = (width, width)
    self.name, self.times = name, []
    self._params = jax.random.normal(jax.random.key(0), shape)
    self._grads = jax.random.normal(jax.random.key(1), shape)
    self._state = init(self._params)
    self._step = (
      jax.jit(step, donate_argnums=(0, 1))
      .lower(self._params, self._state, self._grads)
      .compile()
    )
    text = self._step.as_text()
    self.products = len(re.findall(r"\bdot\(", text))
    self.kernels = len(_KERNEL.findall(text[text.index("ENTRY") :]))
    cost = self._step.cost_analysis()
    self.bytes = cost["bytes accessed"] / self._params.size

  def run(self):
    """One step, in CPU milliseconds."""
    start = time.process_time()
    self._params, self._state = self._step(
      self._params, self._state, self._grads
    )
    jax.block_until_ready((self._params, self._state))
    self.times.append(1e3 * (time.process_time() - start))

  def row(self, base):
    """Cells of the table; without times if it has not run."""
    facts = [self.name, f"{self.bytes:.1f}", self.kernels, self.products]
    if not self.times:
      return [*facts, "-", "-"]
    ratios = [a / b for a, b in zip(self.times, base.times, strict=True)]
    median = statistics.median(self.times)
    return [*facts, f"{median:.2f}", f"{statistics.median(ratios):.2f}"]


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--width", type=int, default=1024)
  parser.add_argument("--block_size", type=int, default=32)
  parser.add_argument(
    "--rounds", type=int, default=15, help="0: only what the compiler says."
  )
  args = parser.parse_args()
  made = cases(args.block_size)
  table = [Case(name, *pair, args.width) for name, pair in made.items()]
  for round_ in range(args.rounds + 1):
    for case in table:
      if args.rounds:
        case.run()
    if round_ == 0:  # The first call of each is not like the others.
      for case in table:
        case.times.clear()
  header = ["step", "bytes", "kernels", "products", "CPU ms", "/ adamw"]
  print(f"Width {args.width}, blocks of {args.block_size}, float32.")
  timing.print_table(header, [case.row(table[0]) for case in table])


if __name__ == "__main__":
  main()
