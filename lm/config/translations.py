"""What stored runs call by an older name, in today's names.

Used only where a stored configuration is read: by whoever opens a run or an
export, and by the comparison of a checkpoint with the command that resumes it.
A command line that uses an older name is told that the name is unknown.
"""

import copy
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


def config(plain: dict[str, Any]) -> dict[str, Any]:
  """A stored configuration with today's names.

  Args:
    plain: Nested dictionaries, as `lm.config.to_dict` made them; not changed.

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
  return plain
