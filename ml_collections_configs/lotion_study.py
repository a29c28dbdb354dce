"""Rounded weights on the default corpus: PTQ, QAT, RAT and LOTION, 3 grids.

    SWEEP=ml_collections_configs/lotion_study.py
    python -m benchmarks.lotion_study --plan
    python -m lm.sweep --sweep=$SWEEP:rates --root=runs/lotion_study
    python -m lm.sweep --sweep=$SWEEP:strengths --root=runs/lotion_study
    python -m lm.sweep --sweep=$SWEEP:method_rates --root=runs/lotion_study
    python -m lm.sweep --sweep=$SWEEP:seeds --root=runs/lotion_study
    python -m benchmarks.lotion_study runs/lotion_study

With --jobs=2 on two cores. All sweeps have one folder, so a run that two share
is made once. `rates` chooses the learning rate of each optimiser without
rounding, `strengths` LOTION's strength by curvature and grid on seed 0; `_RATE`
and `_STRENGTH` state them. Every run is scored in full precision, rounded to
nearest and at random.
"""

from typing import Any

Run = dict[str, Any]

_CONFIG = "ml_collections_configs/study1m.py"
_SEEDS = (0, 1, 2)
_GRIDS = ("int4", "fp4", "int8")
_RATES = {"adamw": (3e-3, 6e-3, 1.2e-2), "soap": (1.2e-2, 2.4e-2, 4.8e-2)}

# Updates of 2,048 tokens; the rate falls to 0, or weights hop around the grid.
_RUN = {
  "data.batch_size": 8,
  "train.num_tokens": 0,
  "train.num_steps": 480,
  "schedule.name": "cosine",
  "schedule.end_factor": 0.0,
  "eval.every": 0,
  "eval.final_batches": 8,  # Of the 65; scored ten times by rounded runs.
}
_OPTIMIZERS: dict[str, dict[str, Any]] = {
  "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1},
  "soap": {"b1": 0.95, "b2": 0.95, "weight_decay": 0.1},
}

# Name -> keys of `config.quant`; the suffix -s: the scales are differentiated.
_METHODS: dict[str, dict[str, Any]] = {
  "ptq": {"method": "ptq"},
  "qat": {"method": "qat", "scale_gradient": False},
  "qat-s": {"method": "qat"},
  "rat": {"method": "rat", "scale_gradient": False},
  "rat-s": {"method": "rat"},
  "lotion": {"method": "lotion"},
  "lotion-sampled": {"method": "lotion", "curvature": "sampled"},
}
_FACTORS = {"method": "lotion", "curvature": "factors"}

# Strengths to try: squared mean gradients of 2,048 tokens are about 1 / 2048
# of the Fisher diagonal that drawn labels estimate (docs/lotion.md).
_TRIED = {
  "lotion": (100.0, 1000.0, 10_000.0, 100_000.0),
  "lotion-sampled": (0.1, 1.0, 10.0, 100.0),
  "lotion-factors": (100.0, 1000.0, 10_000.0, 100_000.0),
}

# Optimiser -> rate, and (method, grid) -> strength: the best of the sweeps.
_RATE = {"adamw": 6e-3, "soap": 2.4e-2}
_STRENGTH = {
  ("lotion", "int4"): 10_000.0,
  ("lotion", "fp4"): 10_000.0,
  ("lotion", "int8"): 100.0,
  ("lotion-sampled", "int4"): 10.0,
  ("lotion-sampled", "fp4"): 10.0,
  ("lotion-sampled", "int8"): 1.0,
  ("lotion-factors", "int4"): 10_000.0,
  ("lotion-factors", "fp4"): 10_000.0,
  ("lotion-factors", "int8"): 10_000.0,
}


def rates() -> list[Run]:
  """Three learning rates of each optimiser, not rounded in training."""
  return [
    _run(optimizer, "ptq", "int4", rate, 0)
    for optimizer in _OPTIMIZERS
    for rate in _RATES[optimizer]
  ]


def strengths() -> list[Run]:
  """The strengths of each curvature on each grid, on one seed."""
  return [
    _lotion(method, grid, 0, strength)
    for strengths_now in zip(*_TRIED.values(), strict=True)
    for grid in _GRIDS
    for method, strength in zip(_TRIED, strengths_now, strict=True)
  ]


def method_rates() -> list[Run]:
  """The other rates for every method that rounds in training, on one grid."""
  runs = []
  for rate, other in zip(_RATES["adamw"], _RATES["soap"], strict=True):
    for method in _METHODS:
      if method != "ptq":
        strength = _STRENGTH.get((method, "int4"), 0.0)
        runs.append(_run("adamw", method, "int4", rate, 0, strength))
    strength = _STRENGTH["lotion-factors", "int4"]
    runs.append(_run("soap", "lotion-factors", "int4", other, 0, strength))
  return runs


def seeds() -> list[Run]:
  """Every method on every grid, three seeds; SOAP's own PTQ beside it."""
  runs = []
  for seed in _SEEDS:
    for grid in _GRIDS:
      for method in _METHODS:
        if method in _TRIED:
          strength = _STRENGTH[method, grid]
          runs.append(_lotion(method, grid, seed, strength))
        else:
          runs.append(_run("adamw", method, grid, _RATE["adamw"], seed))
      strength = _STRENGTH["lotion-factors", grid]
      runs.append(_lotion("lotion-factors", grid, seed, strength))
      runs.append(_run("soap", "ptq", grid, _RATE["soap"], seed))
  return runs


def _lotion(method: str, grid: str, seed: int, strength: float) -> Run:
  optimizer = "soap" if method == "lotion-factors" else "adamw"
  return _run(optimizer, method, grid, _RATE[optimizer], seed, strength)


def _run(
  optimizer: str,
  method: str,
  grid: str,
  rate: float,
  seed: int,
  strength: float = 0.0,
) -> Run:
  quant: dict[str, Any] = dict(_METHODS.get(method, _FACTORS), grid=grid)
  name = f"{grid}_{optimizer}_{method}_rate={rate:g}_seed={seed}"
  if strength:
    quant["strength"] = strength
    name += f"_strength={strength:g}"
  overrides = {
    **_RUN,
    "optim.name": optimizer,
    "optim.kwargs": dict(_OPTIMIZERS[optimizer]),
    "optim.learning_rate": rate,
    **{f"quant.{key}": value for key, value in quant.items()},
    "seed": seed,
  }
  return {"config": _CONFIG, "overrides": overrides, "name": name}
