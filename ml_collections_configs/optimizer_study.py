"""AdamW, Muon, Shampoo and SOAP on the default corpus, at two batch sizes.

    SWEEP=ml_collections_configs/optimizer_study.py
    python -m lm.sweep --sweep=$SWEEP:rates --root=runs/optimizer_study
    python -m lm.sweep --sweep=$SWEEP:seeds --root=runs/optimizer_study
    python -m lm.sweep --sweep=$SWEEP:frequencies --root=runs/optimizer_study
    python -m lm.sweep --sweep=$SWEEP:embeddings --root=runs/optimizer_study
    python -m benchmarks.optimizer_study runs/optimizer_study

With --jobs=2 on two cores. All sweeps have one folder, so a run that two share
is made once. `rates` chooses a learning rate for each method and batch size on
seed 0, and `_BEST` states it. The other sweeps use this rate on three seeds.
The results are in docs/optimizer_study.md.
"""

from collections.abc import Mapping
from typing import Any

Run = dict[str, Any]

_CONFIG = "ml_collections_configs/study1m.py"
_SEEDS = (0, 1, 2)
_RATES = {
  "large": (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2, 4.8e-2),
  "small": (3e-3, 6e-3, 1.2e-2, 2.4e-2),
}

# Name of the batch -> its overrides. 16,384 and 2,048 tokens an update.
_BATCHES: dict[str, dict[str, Any]] = {
  "large": {
    "data.batch_size": 64, "train.microbatch_size": 16,
    "train.num_steps": 100, "optim.averages": ("ema:0.95",), "eval.every": 10,
  },
  "small": {
    "data.batch_size": 8, "train.num_steps": 500,
    "optim.averages": ("ema:0.98",), "eval.every": 40,
  },
}  # fmt: skip

# Every method decays the matrices by 0.1; the two with factors and AdamW keep
# the momentum of their papers. Muon's updates are scaled to Adam's size.
_METHODS: dict[str, dict[str, Any]] = {
  "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1},
  "muon": {"beta": 0.95, "weight_decay": 0.1, "consistent_rms": 0.2},
  "shampoo": {"b1": 0.95, "b2": 0.95, "weight_decay": 0.1},
  "soap": {"b1": 0.95, "b2": 0.95, "weight_decay": 0.1},
}

# (batch, method) -> learning rate: the lowest final loss of `rates`.
_BEST = {
  ("large", "adamw"): 1.2e-2,
  ("large", "muon"): 4.8e-2,
  ("large", "shampoo"): 2.4e-2,
  ("large", "soap"): 1.2e-2,
  ("small", "adamw"): 6e-3,
  ("small", "muon"): 1.2e-2,
  ("small", "shampoo"): 1.2e-2,
  ("small", "soap"): 1.2e-2,
}


def rates() -> list[Run]:
  """Learning rates of each method and batch size, on one seed."""
  return [
    _run(batch, method, rate, 0)
    for batch in _BATCHES
    for rate in _RATES[batch]
    for method in _METHODS
  ]


def seeds() -> list[Run]:
  """The best rate of each method and batch size on three seeds."""
  return [
    _run(batch, method, _BEST[batch, method], seed)
    for seed in _SEEDS
    for batch in _BATCHES
    for method in _METHODS
  ]


def frequencies() -> list[Run]:
  """SOAP and Shampoo refreshed every 1, 10, 50 and 100 steps; large batch."""
  return [
    _run("large", method, _BEST["large", method], seed, frequency=frequency)
    for seed in _SEEDS
    for method in ("soap", "shampoo")
    for frequency in (1, 10, 50, 100)
  ]


def embeddings() -> list[Run]:
  """Embedding and head of SOAP and Shampoo by Adam and one-sided."""
  return [
    _run("large", method, _BEST["large", method], seed, embeddings=embeddings)
    for seed in _SEEDS
    for method in ("soap", "shampoo")
    for embeddings in ("elementwise", "one_sided")
  ]


def _run(
  batch: str,
  method: str,
  rate: float,
  seed: int,
  frequency: int = 10,
  embeddings: str = "elementwise",
) -> Run:
  kwargs: Mapping[str, Any] = _METHODS[method]
  if method in ("soap", "shampoo"):
    kwargs = {**kwargs, "precondition_frequency": frequency}
  name = f"{batch}_{method}_rate={rate:g}_seed={seed}"
  if frequency != 10:
    name += f"_frequency={frequency}"
  if embeddings != "elementwise":
    name += f"_{embeddings}"
  overrides = {
    "train.num_tokens": 0,
    **_BATCHES[batch],
    "optim.name": method,
    "optim.kwargs": dict(kwargs),
    "optim.learning_rate": rate,
    "optim.embeddings": embeddings,
    "seed": seed,
  }
  return {"config": _CONFIG, "overrides": overrides, "name": name}
