"""The optimisers that studies compare: one entry of `METHODS` each.

A method has the matrices of the blocks, and AdamW has the other parameters; or
the method is whole and has all of them.

Weight decay is 0.1 first, where a method has it. Methods with Kronecker factors
refresh each factor once in 10 updates, in turns; those called "..._1" refresh
all factors at each update. Settings that count updates are for runs of 60 to
250 updates. Most rates start near the best of 100 updates of 16,384 tokens on
`ml_collections_configs/study1m.py`; those of Lion, Signum, AdEMAMix and
Schedule-Free near the best of 60 updates of 4,096 tokens at width 64; those of
Adafactor and MARS at AdamW's.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..methods import newton, plain
from .tuning import RATE, Log

AUXILIARY = "auxiliary"
_ROWS = 4  # Of Gauss-Newton's microbatch at least, where the batch allows it.


class Method(NamedTuple):
  """An optimiser, and what is tuned of it.

  Attributes:
    factory: Name in `optim`, `optax` or `optax.contrib`, as for
      `config.optim.name`.
    kwargs: Keyword arguments of the factory that are fixed.
    tuned: Key -> what is tried, in the order in which keys are tuned.
      "learning_rate" has a `Log`. Every other key has a tuple of values, of
      which the first is the default. A key is an argument of the factory, a
      dotted key of the configuration, or "auxiliary": the rate of embedding,
      head, gains and biases, in units of `auxiliary_rate`, or of the method's
      own rate if the method is whole.
    whole: Whether the method has all parameters.
    overrides: Further dotted keys of the configuration.
  """

  factory: str
  kwargs: Mapping[str, Any]
  tuned: Mapping[str, Any]
  whole: bool = False
  overrides: Mapping[str, Any] = {}


def changes(
  method: Method,
  settings: Mapping[str, Any],
  auxiliary_rate: float,
  batch: int,
  kwargs: Mapping[str, Any] = {},
) -> dict[str, Any]:
  """The keys of the configuration that a method sets, for one run.

  They go on top of the keys of a cell: Schedule-Free and Gauss-Newton replace
  the schedule, and Gauss-Newton the microbatches. An update sees `batch` rows
  by every method; Gauss-Newton uses a part of them for its line search.

  Args:
    method: An entry of `METHODS`, or another one.
    settings: Value of "learning_rate", and of other keys. A key of `tuned` that
      is left out has its default.
    auxiliary_rate: Peak rate of AdamW on embedding, head, gains and biases, for
      "auxiliary" 1. A whole method does not use it.
    batch: Rows of an update.
    kwargs: Arguments in place of those that a method has, AdamW beside it too,
      but not of the settings.

  Returns:
    Dotted key -> value, for `lm.tools.sweeps.resolve`.

  Raises:
    ValueError: If the settings have no rate, or Gauss-Newton cannot cut the
      batch.
  """
  if RATE not in settings:
    raise ValueError(f"settings={dict(settings)} have no {RATE!r}; give one.")
  method = _with(method, kwargs)
  given = _defaults(method) | dict(settings)
  rate, auxiliary = given[RATE], given.get(AUXILIARY, 1.0)
  main, roles = _optimizer(method, given), {}
  found: dict[str, Any] = {"data.batch_size": batch}
  if not method.whole:
    adamw = _with(METHODS["adamw"], kwargs)
    roles = {"hidden": main}
    rest = _defaults(adamw) | {RATE: auxiliary * auxiliary_rate}
    main = _optimizer(adamw, rest)
  elif method.factory == newton.OUTER:
    found |= _cut(batch)
    # Rate of Adam inside Muon, the inner optimiser, in units of Muon's rate.
    main["kwargs"]["adam_learning_rate"] = auxiliary
  elif auxiliary != 1:
    others = [role for role in plain.ROLES if role != "hidden"]
    roles = {role: {RATE: auxiliary * rate} for role in others}
  found |= {f"optim.{key}": value for key, value in main.items()}
  found |= {"optim.by_role": roles, **method.overrides}
  return found | {key: given[key] for key in given if "." in key}


def _with(method: Method, kwargs: Mapping[str, Any]) -> Method:
  """The method with other values of the arguments that it has."""
  has = {**method.kwargs, **method.tuned}
  taken = {k: v for k, v in kwargs.items() if k in has}
  tuned = {k: v for k, v in method.tuned.items() if k not in taken}
  return method._replace(kwargs={**method.kwargs, **taken}, tuned=tuned)


def _defaults(method: Method) -> dict[str, Any]:
  return {key: v[0] for key, v in method.tuned.items() if key != RATE}


def _optimizer(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
  """What `config.optim`, or an entry of `by_role`, has of a method."""
  arguments = {
    key: value
    for key, value in given.items()
    if key not in (RATE, AUXILIARY) and "." not in key
  }
  kwargs = {**method.kwargs, **arguments}
  return {"name": method.factory, RATE: given[RATE], "kwargs": kwargs}


def _cut(batch: int) -> dict[str, Any]:
  """Gauss-Newton's microbatches: n to solve on and n / 4 to search on."""
  sizes = [m for m in range(1, batch) if batch % m == 0]
  for m in sorted(sizes, key=lambda m: (m < _ROWS, abs(m - _ROWS))):
    for n in range(1, batch // m):
      if n + max(1, n // 4) == batch // m:
        return {"train.microbatch_size": m, "gauss_newton.inner_steps": n}
  raise ValueError(
    f"batch={batch} rows cannot be cut into equal microbatches, n to solve on "
    "and max(1, n // 4) for the line search; take a multiple of 2 or 3."
  )


def _method(
  factory: str,
  kwargs: Mapping[str, Any],
  rate: float,
  whole: bool = False,
  overrides: Mapping[str, Any] = {},
  **tuned: Any,
) -> Method:
  """A method with a first rate, and what is tuned after both rates."""
  rates = {RATE: Log(rate), AUXILIARY: (1.0, 0.5, 2.0)}
  return Method(factory, kwargs, {**rates, **tuned}, whole, overrides)


_BETA, _DECAY = {"beta": (0.95, 0.9)}, {"weight_decay": (0.1, 0.3)}
_B2 = {"b2": (0.95, 0.98), **_DECAY}
_MUON = {**_BETA, **_DECAY}
_RMS = {"consistent_rms": 0.2}  # Muon's updates have Adam's size.
_TURNS = {"b1": 0.95, "precondition_frequency": 10}
_ALL = {"b1": 0.95, "precondition_frequency": 1}
_CONSTANT = {"schedule.name": "constant"}

METHODS: dict[str, Method] = {
  "adamw": _method("adamw", {"b1": 0.9, "eps": 1e-8}, 6e-3, True, **_B2),
  "lion": _method(
    "lion", {"b1": 0.9}, 6e-4, b2=(0.95, 0.98), weight_decay=(0.1, 1.0)
  ),
  "signum": _method("signum", {}, 6e-4, **_BETA),  # It has no decay.
  "adafactor": _method("adafactor", {"b1": 0.9}, 6e-3, **_B2),
  # The slow average has a memory of 50 updates, and 50 to reach its weight.
  "ademamix": _method(
    "ademamix", {"b2": 0.95, "b3": 0.98, "alpha_warmup": 50, "b3_warmup": 50},
    1.5e-3, alpha=(5.0, 2.0), **_DECAY,
  ),
  "mars": _method(
    "mars", {}, 6e-3, gamma=(0.025, 0.05), b2=(0.99, 0.95), **_DECAY
  ),
  # Its average stands in place of a decay of the rate, for all parameters.
  "schedule_free": _method(
    "schedule_free_adamw", {"b2": 0.95}, 1.2e-2, True, _CONSTANT,
    b1=(0.9, 0.95), **_DECAY,
  ),
  "muon": _method("muon", _RMS, 2.4e-2, **_MUON),
  "normuon": _method("normuon", _RMS, 2.4e-2, **_MUON),
  "muon_h": _method("muon_h", {}, 7.2e-2, **_BETA),
  "shampoo": _method("shampoo", _TURNS, 1.2e-2, **_B2),
  "soap": _method("soap", _TURNS, 6e-3, **_B2),
  "soap_1": _method("soap", _ALL, 2.4e-2, **_B2),
  "soap_h": _method("soap_h", _TURNS, 3.6e-2, b2=(0.95, 0.98)),
  "kl_soap": _method("kl_soap", _TURNS, 6e-3, **_B2),
  "kl_soap_1": _method("kl_soap", _ALL, 2.4e-2, **_B2),
  "kl_shampoo": _method("kl_shampoo", _TURNS, 1.2e-2, **_B2),
  "kl_shampoo_1": _method("kl_shampoo", _ALL, 2.4e-2, **_B2),
  "soap_muon": _method("soap_muon", _TURNS, 8e-2, b2=(0.9, 0.95), **_DECAY),
  "soap_muon_1": _method("soap_muon", _ALL, 8e-2, b2=(0.9, 0.95), **_DECAY),
  "moso": _method("moso", _TURNS, 6e-3, **_B2),
  # Arguments are those of Muon, which makes the inner updates.
  "gauss_newton": _method(
    newton.OUTER, _RMS, 2.4e-2, True,
    {**_CONSTANT, "schedule.warmup": 0.0, "gauss_newton.optimizer": "muon"},
    **{"gauss_newton.inner_schedule": (
      "constant_with_inner_cosine", "cosine_with_global_schedule",
    )}, **_MUON,
  ),
}  # fmt: skip
# The control: the same loop on the loss itself.
_NEWTON = METHODS["gauss_newton"]
METHODS["nonlinear"] = _NEWTON._replace(
  tuned={**_NEWTON.tuned, RATE: Log(4.8e-2)},
  overrides={**_NEWTON.overrides, "gauss_newton.mode": "nonlinear"},
)
