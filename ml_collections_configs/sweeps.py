"""Named sweeps: each function returns the runs of one study as plain data.

A run is a dictionary: "config", a file of this folder; "overrides", dotted
keys of that configuration and their values; and, if the overrides are too
many to read, a "name". `lm/sweep.py` runs them:

    python -m lm.sweep --sweep=tiny_learning_rate --root=runs/tiny_learning_rate
    python -m lm.sweep --sweep=cbs_151m --list
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Run = dict[str, Any]

# (rows of 512 tokens, steps) of the critical-batch-size study by model, from
# its repository's configs/critical-bs/chinchilla.
_CBS_PAIRS = {
  "85m": (
    (64, 70_000), (128, 45_000), (256, 13_282), (512, 10_000), (1024, 4_000),
    (2048, 3_200), (4096, 4_000), (8192, 2_400), (16_384, 2_400),
  ),
  "151m": (
    (64, 160_000), (128, 60_000), (256, 27_000), (512, 12_850), (1024, 7_200),
    (2048, 5_000), (4096, 4_200), (8192, 3_700), (16_384, 2_600),
  ),
  "302m": (
    (64, 197_000), (128, 93_750), (256, 46_875), (512, 26_000), (1024, 14_000),
    (2048, 8_400), (4096, 6_000), (8192, 4_500), (16_384, 4_000),
  ),
  "604m": (
    (64, 500_000), (128, 260_000), (256, 93_750), (512, 48_000),
    (1024, 26_000), (2048, 11_719), (4096, 10_000), (8192, 8_500),
    (16_384, 8_000),
  ),
  "1b2": (
    (64, 900_000), (128, 400_000), (256, 187_500), (512, 100_000),
    (1024, 43_000), (2048, 38_000), (4096, 16_000), (8192, 10_000),
  ),
}  # fmt: skip


def product(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
  """Every combination of the values; the last key varies fastest.

  Args:
    axes: Dotted key -> its values.

  Yields:
    Overrides, one value a key.
  """
  for values in itertools.product(*axes.values()):
    yield dict(zip(axes, values, strict=True))


def smoke() -> list[Run]:
  """Two seeds of a 148k-parameter model for 20 steps: seconds on a CPU."""
  small = {
    "model.D": 32, "model.N": 2, "model.H": 2, "model.G": 2, "model.F": 64,
    "train.num_tokens": 0, "train.num_steps": 20, "eval.final_batches": 2,
    "log.samples": 0,
  }  # fmt: skip
  return [
    _tiny(small | seed, name=f"smoke_seed={seed['seed']}")
    for seed in product({"seed": (0, 1)})
  ]


def tiny_learning_rate() -> list[Run]:
  """tiny.py at five learning rates."""
  rates = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
  return [_tiny(point) for point in product({"optim.learning_rate": rates})]


def tiny_learning_rate_width() -> list[Run]:
  """Learning rate against width at a fixed number of tokens.

  F follows the width; the heads keep 64 channels.
  """
  runs = []
  for width in (128, 256, 512):
    shape = {
      "model.D": width, "model.H": width // 64, "model.G": width // 64,
      "model.F": 4 * width,
    }  # fmt: skip
    for point in product({"optim.learning_rate": (5e-4, 1e-3, 2e-3, 4e-3)}):
      rate = point["optim.learning_rate"]
      name = f"tiny_D={width}_learning_rate={rate:g}"
      runs.append(_tiny(shape | point, name=name))
  return runs


def cbs_85m() -> list[Run]:
  """Batch against steps, 85M parameters; see `_cbs`."""
  return _cbs("85m", {"optim.kwargs.b2": 0.95})


def cbs_151m() -> list[Run]:
  """Batch against steps, 151M parameters; see `_cbs`."""
  return _cbs("151m", {})


def cbs_302m() -> list[Run]:
  """Batch against steps, 302M parameters; see `_cbs`."""
  return _cbs("302m", {})


def cbs_604m() -> list[Run]:
  """Batch against steps, 604M parameters; see `_cbs`."""
  return _cbs("604m", {})


def cbs_1_2b() -> list[Run]:
  """Batch against steps, 1.2B parameters; see `_cbs`."""
  averages = {"optim.kwargs.b1": 0.8, "optim.kwargs.b2": 0.9995}
  return _cbs("1b2", averages | {"optim.averages": ("ema:0.999",)})


def _tiny(overrides: Mapping[str, Any], name: str | None = None) -> Run:
  run = {"config": "ml_collections_configs/tiny.py"}
  return run | {"overrides": dict(overrides)} | ({"name": name} if name else {})


def _cbs(model: str, overrides: Mapping[str, Any]) -> list[Run]:
  """One run a (batch, steps) pair, at the study's rate for all of them.

  `python -m lm.report RUNS --to=3.2 --set=c4 --average=ema:0.99` then gives the
  steps that each batch size needs to a loss of 3.2. A pass has at most 1024
  rows, 128 on each of eight devices as in the study. Evaluations come every
  half per cent of a run, at least 20 steps apart.
  """
  runs = []
  for batch, steps in _CBS_PAIRS[model]:
    schedule = {
      "data.batch_size": batch,
      "train.microbatch_size": min(batch, 1024),
      "train.num_steps": steps,
      "eval.every": max(20, steps // 200),
    }
    runs.append(
      {
        "config": f"ml_collections_configs/cbs{model}.py",
        "overrides": schedule | dict(overrides),
        "name": f"cbs{model}_batch={batch}",
      }
    )
  return runs
