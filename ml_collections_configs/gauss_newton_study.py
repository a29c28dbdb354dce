"""Gauss-Newton beside AdamW, Muon and SOAP at three batch sizes.

    SWEEP=ml_collections_configs/gauss_newton_study.py
    python -m benchmarks.gauss_newton_study --plan
    python -m lm.sweep --sweep=$SWEEP:rates --root=runs/gauss_newton_study
    python -m lm.sweep --sweep=$SWEEP:seeds --root=runs/gauss_newton_study
    python -m benchmarks.gauss_newton_study runs/gauss_newton_study

With --jobs=2 on two cores. Both sweeps have one folder, so a run that both
share is made once. `rates` chooses learning rates at the middle batch on seed
0; `_RATE` states them. All methods see the same tokens for an update: N
microbatches of 2,048 tokens. Gauss-Newton solves on them, the other methods sum
their gradients. Gauss-Newton's line search has N / 4 more, which its tokens
count. AdamW, Muon and SOAP make four times as many updates. `nonlinear` is the
control: the same loop on the loss itself.
"""

from typing import Any

Run = dict[str, Any]

_CONFIG = "ml_collections_configs/study1m.py"
_SEEDS = (0, 1, 2)
_ROWS = 8  # Of a microbatch.

# N -> updates of Gauss-Newton: 8k, 25k and 74k tokens to solve on an update,
# the larger ones for longer, since their curves have fewer points.
_BATCHES = {4: 36, 12: 16, 36: 8}
_MIDDLE = 12
_MORE = 4  # Times as many updates of the baselines, to come as far.

_BASELINES: dict[str, dict[str, Any]] = {
  "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1},
  "muon": {"beta": 0.95, "weight_decay": 0.1, "consistent_rms": 0.2},
  "soap": {"b1": 0.95, "b2": 0.95, "weight_decay": 0.1},
}
_SOLVERS: dict[str, dict[str, Any]] = {
  "gn": {},
  "prox": {"gauss_newton.mode": "prox_linear"},
  "layerwise": {
    "gauss_newton.scope": "layerwise",
    "model.layers": "unroll",
  },
  "nonlinear": {"gauss_newton.mode": "nonlinear"},
}
# Until the best of a method has a worse one on either side.
_TRIED: dict[str, tuple[float, ...]] = {
  "adamw": (6e-3, 1.2e-2, 2.4e-2),
  "muon": (1.2e-2, 2.4e-2, 4.8e-2, 9.6e-2),
  "soap": (6e-3, 1.2e-2, 2.4e-2),
  "gn": (6e-3, 1.2e-2, 2.4e-2, 4.8e-2),
  "prox": (6e-3, 1.2e-2, 2.4e-2, 4.8e-2),
  "layerwise": (6e-3, 1.2e-2, 2.4e-2, 4.8e-2, 9.6e-2, 0.192),
  "nonlinear": (6e-3, 1.2e-2, 2.4e-2, 4.8e-2, 9.6e-2),
}

# Method -> rate: the best of `rates`.
_RATE = {
  "adamw": 1.2e-2,
  "muon": 4.8e-2,
  "soap": 1.2e-2,
  "gn": 2.4e-2,
  "prox": 2.4e-2,
  "layerwise": 9.6e-2,
  "nonlinear": 4.8e-2,
}


def rates() -> list[Run]:
  """The learning rates of each method at the middle batch, on one seed."""
  return [
    _run(method, _MIDDLE, rate, 0)
    for method, tried in _TRIED.items()
    for rate in tried
  ]


def seeds() -> list[Run]:
  """Every method at every batch size, three seeds."""
  return [
    _run(method, count, _RATE[method], seed)
    for seed in _SEEDS
    for count in _BATCHES
    for method in _TRIED
  ]


def _run(method: str, count: int, rate: float, seed: int) -> Run:
  points, steps = 12, _BATCHES[count]
  if method in _BASELINES:
    points, steps = 24, _MORE * steps
  overrides = {
    "train.num_tokens": 0,
    "train.num_steps": steps,
    "train.microbatch_size": _ROWS,
    "optim.learning_rate": rate,
    "eval.every": max(1, steps // points),
    "eval.final_batches": 4,  # The same rows at each point of a curve.
    "seed": seed,
  }
  if method in _BASELINES:
    overrides |= {
      "optim.name": method,
      "optim.kwargs": dict(_BASELINES[method]),
      "data.batch_size": count * _ROWS,
      "schedule.name": "cosine",
    }
  else:
    overrides |= {
      "optim.name": "gauss_newton",
      "optim.kwargs": dict(_BASELINES["muon"]),
      "gauss_newton.inner_steps": count,
      "data.batch_size": (count + max(1, count // 4)) * _ROWS,
      "schedule.warmup": 0.0,
      **_SOLVERS[method],
    }
  name = f"{method}_batches={count}_rate={rate:g}_seed={seed}"
  return {"config": _CONFIG, "overrides": overrides, "name": name}
