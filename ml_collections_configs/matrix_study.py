"""Matrix methods on text: does a staggered refresh keep the gain of f = 1?

    SWEEP=ml_collections_configs/matrix_study.py
    python -m lm.sweep --sweep=$SWEEP:rates --root=runs/matrix_study --jobs=2
    python -m lm.sweep --sweep=$SWEEP:seeds --root=runs/matrix_study --jobs=2
    python -m benchmarks.matrix_study runs/matrix_study

16,384 tokens an update, 100 updates, a constant rate after the warm-up, the
averaged weights scored. The matrices of the blocks
have the method. Embedding, head and gains have AdamW with AdamW's own best
rate, whatever the method. `rates` chooses a rate for each method on seed 0.
State it in `_BEST` once the runs are made: `seeds` uses this rate on seeds 1, 2
and 3, so that no seed both chooses and reports.
"""

from typing import Any

Run = dict[str, Any]

_CONFIG = "ml_collections_configs/study1m.py"
_SEEDS = (1, 2, 3)
_ADAMW = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
_ADAMW_RATE = 1.2e-2  # The best at this batch in docs/optimizer_study.md.
_RMS = {"consistent_rms": 0.2, "weight_decay": 0.1}
_FACTORS = {"b1": 0.95, "b2": 0.95, "weight_decay": 0.1}

# Name -> (factory, keyword arguments). "_1" refreshes at each update, the
# others once in ten, in turns.
_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
  "adamw": ("adamw", _ADAMW),
  "soap": ("soap", _FACTORS),
  "soap_1": ("soap", _FACTORS),
  "klsoap": ("kl_soap", _FACTORS),
  "klsoap_1": ("kl_soap", _FACTORS),
  "soapmuon": ("soap_muon", {"weight_decay": 0.1}),
  "soapmuon_1": ("soap_muon", {"weight_decay": 0.1}),
  "muon": ("muon", _RMS),
  "normuon": ("normuon", _RMS),
  "muonh": ("muon_h", {}),
  "soaph": ("soap_h", {"b1": 0.95, "b2": 0.95}),
  "klshampoo": ("kl_shampoo", {"weight_decay": 0.1}),
  "klshampoo_1": ("kl_shampoo", {"weight_decay": 0.1}),
  "moso": ("moso", _FACTORS),
  "shampoo": ("shampoo", _FACTORS),
}
_FREQUENCY = ("shampoo", "soap", "soap_h", "kl_", "soap_muon", "moso")
# Method -> rates, a factor of 2 apart, until the best has a worse one on either
# side.
_RATES = {
  "adamw": (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2),
  "soap": (3e-3, 6e-3, 1.2e-2, 2.4e-2),
  "klsoap": (3e-3, 6e-3, 1.2e-2, 2.4e-2),
  "soap_1": (6e-3, 1.2e-2, 2.4e-2, 4.8e-2),
  "klsoap_1": (6e-3, 1.2e-2, 2.4e-2, 4.8e-2),
  "klshampoo_1": (6e-3, 1.2e-2, 2.4e-2, 4.8e-2),
  "muonh": (3.6e-2, 7.2e-2, 1.44e-1),
  "soaph": (1.8e-2, 3.6e-2, 7.2e-2, 1.44e-1),
  "soapmuon": (4e-2, 8e-2, 1.6e-1),
  "soapmuon_1": (4e-2, 8e-2, 1.6e-1),
  "muon": (1.2e-2, 2.4e-2, 4.8e-2, 9.6e-2),
  "normuon": (1.2e-2, 2.4e-2, 4.8e-2, 9.6e-2),
  "moso": (7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2),
}
_OTHER_RATES = (6e-3, 1.2e-2, 2.4e-2)

# Name -> rate: the lowest final loss of `rates`. The others have one seed.
_BEST: dict[str, float] = {
  "adamw": 3e-3,
  "soap": 6e-3,
  "soap_1": 2.4e-2,
  "klsoap": 6e-3,
  "klsoap_1": 2.4e-2,
  "soapmuon": 8e-2,
  "soapmuon_1": 8e-2,
  "muon": 2.4e-2,
}


def rates() -> list[Run]:
  """Learning rates of each method, on one seed."""
  return [
    _run(method, rate, 0)
    for method in _METHODS
    for rate in _RATES.get(method, _OTHER_RATES)
  ]


def seeds() -> list[Run]:
  """The best rate of each method on seeds that did not choose it."""
  return [
    _run(method, _BEST[method], seed)
    for seed in _SEEDS
    for method in _METHODS
    if method in _BEST
  ]


def _run(method: str, rate: float, seed: int) -> Run:
  factory, kwargs = _METHODS[method]
  if factory.startswith(_FREQUENCY):
    every = 1 if method.endswith("_1") else 10
    kwargs = {**kwargs, "precondition_frequency": every}
  hidden = {"name": factory, "learning_rate": rate, "kwargs": dict(kwargs)}
  overrides = {
    "train.num_tokens": 0, "train.num_steps": 100,
    "data.batch_size": 64, "train.microbatch_size": 16,
    "optim.name": "adamw", "optim.learning_rate": _ADAMW_RATE,
    "optim.kwargs": dict(_ADAMW), "optim.averages": ("ema:0.95",),
    "optim.by_role": {"hidden": hidden}, "eval.every": 10, "seed": seed,
  }  # fmt: skip
  name = f"{method}_rate={rate:g}_seed={seed}"
  return {"config": _CONFIG, "overrides": overrides, "name": name}
