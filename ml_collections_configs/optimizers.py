r"""A configuration of each optimiser, by name, at the size of study1m.py.

    python -m lm.data.prepare --config=ml_collections_configs/optimizers.py
    python -m lm.main --config=ml_collections_configs/optimizers.py:kl_soap \
        --workdir=runs/kl_soap

Methods for matrices have the matrices of the blocks (`optim.by_role.hidden`).
AdamW has the embedding, the head, gains and biases, each role with a rate of
its own. Methods for any parameters have all of them. `NAMES` lists the names.
The rates of AdamW, Muon, Shampoo and SOAP are those of
`docs/optimizer_study.md`; the others are not tuned yet.
"""

from typing import Any, NamedTuple

import ml_collections

from ml_collections_configs import study1m


class Entry(NamedTuple):
  """An optimiser: its factory, peak rate and keyword arguments."""

  factory: str
  learning_rate: float
  kwargs: dict[str, Any]


_ADAMW = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
# Peak rate of AdamW for each role, where a method has the hidden matrices.
_ROLES = {"input": 1.2e-2, "output": 1.2e-2, "gain": 1.2e-2, "bias": 1.2e-2}
_FACTORS = {"b1": 0.95, "b2": 0.95, "weight_decay": 0.1}

# Of the hidden matrices.
_MATRICES = {
  "muon": Entry("muon", 4.8e-2, {"consistent_rms": 0.2, "weight_decay": 0.1}),
  "normuon": Entry(
    "normuon", 4.8e-2, {"consistent_rms": 0.2, "weight_decay": 0.1}
  ),
  "muon_h": Entry("muon_h", 3.6e-2, {}),
  "adam_h": Entry("adam_h", 1.8e-2, {}),
  "shampoo": Entry("shampoo", 2.4e-2, _FACTORS),
  "shampoo_by_products": Entry(
    "shampoo", 2.4e-2,
    {**_FACTORS, "root": "products", "matrix_eps": 1e-6, "relative_eps": True},
  ),
  "kl_shampoo": Entry("kl_shampoo", 1.2e-2, {"weight_decay": 0.1}),
  "soap": Entry("soap", 1.2e-2, _FACTORS),
  "soap_every_step": Entry(
    "soap", 1.2e-2, {**_FACTORS, "precondition_frequency": 1}
  ),
  "soap_h": Entry("soap_h", 1.8e-2, {}),
  "kl_soap": Entry("kl_soap", 1.2e-2, _FACTORS),
  "soap_muon": Entry("soap_muon", 4e-2, {"weight_decay": 0.1}),
  "soap_muon_staggered": Entry(
    "soap_muon", 4e-2, {"weight_decay": 0.1, "precondition_frequency": 10}
  ),
  "moso": Entry("moso", 1.2e-2, {"weight_decay": 0.1}),
}  # fmt: skip

# Of all parameters.
_ANY = {
  "adamw": Entry("adamw", 1.2e-2, _ADAMW),
  "dampened_sgd": Entry(
    "dampened_sgd", 1.0, {"momentum": 0.98, "dampening": 0.98}
  ),
  "accelerated_sgd": Entry(
    "accelerated_sgd", 3e-3,
    {"beta": 0.95, "a": 0.05, "c": 0.5, "precondition": "after", "b2": 0.95},
  ),
  "lion": Entry("lion", 1.2e-3, {"b1": 0.9, "b2": 0.95, "weight_decay": 0.1}),
  "signum": Entry("lion", 1.2e-3, {"b1": 0.9, "b2": 0.9, "weight_decay": 0.1}),
  "adafactor": Entry("adafactor", 1.2e-2, {**_ADAMW, "eps": 1e-15}),
  "sophia_g": Entry("sophia_g", 3e-3, {"weight_decay": 0.1}),
  "adalayer": Entry("adalayer", 1.2e-2, {"b1": 0.9, "b2": 0.95}),
  "ademamix": Entry(
    "ademamix", 6e-3,
    {"b3": 0.99, "alpha": 5.0, "weight_decay": 0.1, "b3_warmup": 100,
     "alpha_warmup": 100},
  ),
  "simplified_ademamix": Entry(
    "simplified_ademamix", 1e-3, {"b1": 0.95, "b2": 0.95, "b1_warmup": 100}
  ),
  "schedule_free_adamw": Entry(
    "schedule_free_adamw", 1.2e-2, {"b2": 0.95, "warmup_steps": 20}
  ),
  "mars": Entry("mars", 1.2e-2, {"weight_decay": 0.1}),
  "mars_lion": Entry(
    "mars", 1.2e-3, {"variant": "lion", "weight_decay": 0.1}
  ),
  "mars_shampoo": Entry(
    "mars", 2e-2,
    {"variant": "shampoo", "weight_decay": 0.1, "rate_ratio_1d": 0.5},
  ),
  "mars_muon": Entry("mars", 4.8e-2, {"variant": "muon", "weight_decay": 0.1}),
  "gpa_muon": Entry(
    "primal_averaging", 4.8e-2,
    {"eval_interp": 0.95, "train_interp": 0.7, "weight_decay": 0.1,
     "base": {"name": "scale_by_muon", "kwargs": {"consistent_rms": 0.2}}},
  ),
  "schedule_free_soap": Entry(
    "primal_averaging", 1.2e-2,
    {"warmup_steps": 20, "weight_decay": 0.1,
     "base": {"name": "scale_by_soap", "kwargs": {"b1": 0.0}}},
  ),
}  # fmt: skip
NAMES = (*_MATRICES, *_ANY)


def get_config(name: str = "kl_soap") -> ml_collections.ConfigDict:
  """See the module docstring."""
  if name not in NAMES:
    raise ValueError(f"{name!r} is not one of {', '.join(NAMES)}.")
  c = study1m.get_config()
  if name in _ANY:
    entry = _ANY[name]
    c.optim.name, c.optim.learning_rate = entry.factory, entry.learning_rate
    c.optim.kwargs = _section(entry.kwargs)
    return c
  entry = _MATRICES[name]
  c.optim.name, c.optim.kwargs = "adamw", _section(_ADAMW)
  c.optim.learning_rate = _ROLES["input"]
  c.optim.by_role = _section(
    {role: {"learning_rate": rate} for role, rate in _ROLES.items()}
    | {
      "hidden": {
        "name": entry.factory,
        "learning_rate": entry.learning_rate,
        "kwargs": entry.kwargs,
      }
    }
  )
  return c


def _section(values: dict[str, Any]) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(values, allow_dotted_keys=False)
