"""Muon and its relatives for the authors' settings; see `authors.py`."""

from oracles.authors_built import Built, Setup

import optim


def _keller(setup: Setup) -> Built:
  s = setup.settings
  tx = optim.muon(
    s["learning_rate"],
    beta=s["beta"],
    ns_steps=s["ns_steps"],
    nesterov=s["nesterov"],
    weight_decay=s["weight_decay"],
    adam_learning_rate=s["adam_learning_rate"],
    dimension_numbers=_dims(setup),
    **setup.pick("adam_b1", "adam_b2", "adam_eps"),
  )
  return Built(tx)


def _dims(setup: Setup) -> dict:
  """Matrices are what the case says; all other leaves are Adam's."""
  leaves = setup.settings["muon_leaves"]
  return {k: d if k in leaves else None for k, d in setup.dims.items()}


METHODS = {"muon": _keller}
LAYOUTS = {
  "muon": ("kernels", "stacked"),
}
