"""From the names in stored runs to today's names.

The tables are used only to read what is stored: the configuration of a run or
an export, the leaves of a checkpoint, the keys of metrics. On a command line an
older name is an unknown name.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

# Optimiser -> {older keyword: keyword}.
_KWARGS = {
  "muon": {
    "coefficients": "ns_coeffs",
    "decay": "beta",
    "num_steps": "ns_steps",
  },
}
# Keywords that are entries of a group now: keyword -> (group, entry).
_GROUPS = {
  "basis_dtype": ("storage", "basis"),
  "factor_dtype": ("storage", "factor"),
  "mu_dtype": ("storage", "mu"),
  "nu_dtype": ("storage", "nu"),
}
_GROUPED = ("shampoo", "soap")
# Names that were optax's before `optim` had a factory of the name. A stored
# configuration without a `FORMAT` may mean optax's.
FORMAT = "format"
_OPTAX = {
  "adafactor": "optax.adafactor",
  "ademamix": "optax.contrib.ademamix",
  "schedule_free_adamw": "optax.contrib.schedule_free_adamw",
  "schedule_free_sgd": "optax.contrib.schedule_free_sgd",
  "simplified_ademamix": "optax.contrib.simplified_ademamix",
}


def config(plain: dict[str, Any]) -> dict[str, Any]:
  """A stored configuration with today's names.

  Args:
    plain: Nested dictionaries, as `load.to_dict` made them; not changed.

  Returns:
    A copy.
  """
  plain = copy.deepcopy(dict(plain))
  optim = plain.get("optim", {})
  names = {optim.get("name"), plain.get("gauss_newton", {}).get("optimizer")}
  kwargs = dict(optim.get("kwargs", {}))
  for name in names & _KWARGS.keys():
    kwargs = {_KWARGS[name].get(k, k): v for k, v in kwargs.items()}
  if names & set(_GROUPED):
    for old, (group, entry) in _GROUPS.items():
      if old in kwargs:
        kwargs[group] = dict(kwargs.get(group, {})) | {entry: kwargs.pop(old)}
  if "kwargs" in optim:
    optim["kwargs"] = kwargs
  if FORMAT not in plain:
    named = [(optim, "name"), (plain.get("gauss_newton", {}), "optimizer")]
    named += [(role, "name") for role in optim.get("by_role", {}).values()]
    for section, key in named:
      if key in section:
        section[key] = _OPTAX.get(section[key], section[key])
  if "ema" in optim:  # Of one average, or 0.
    decay = optim.pop("ema")
    optim["averages"] = [f"ema:{float(decay)!r}"] if decay else []
  return plain


def leaf(path: str, updates: int) -> str | float:
  """Where a checkpoint with the field `ema` keeps a leaf of today's state.

  The average of the weights was a field of the training state. Now the
  optimiser's state has its sum s and its weight; the average is s / weight.

  Args:
    path: Of the leaf, e.g. "opt_state/averages/ema:0.99/sum/embed/table".
    updates: Of the method, averaged so far.

  Returns:
    The path in the checkpoint, or the value of a leaf that was not stored.
  """
  if path == "opt_state/count":
    return updates
  if found := re.fullmatch(r"opt_state/averages/ema:(.*)/weight", path):
    return 1 - float(found[1]) ** updates
  path = re.sub(r"^opt_state/averages/[^/]*/sum/", "ema/", path)
  return re.sub(r"^opt_state/inner/", "opt_state/", path)


def metric(key: str, averages: Sequence[str]) -> str:
  """Today's key of a metric.

  Args:
    key: As a line of metrics.jsonl has it.
    averages: `optim.averages` of the run.
  """
  name = averages[0] if averages else "ema"
  return re.sub(r"^(eval/.*)/ema_loss$", rf"\1/avg/{name}/loss", key)
