"""SOAP-Muon and MOSO for the authors' settings; see `authors.py`."""

from oracles.authors_built import Built, Setup

import optim


def _direction(setup: Setup) -> dict:
  """The arguments of `scale_by_soap_muon`."""
  s = setup.settings
  return dict(
    b1=s["b1"],
    b2=s["b2"],
    shampoo_beta=s["shampoo_beta"],
    eps=s["eps"],
    precondition_frequency=s["frequency"],
    stagger=False,
    dimension_numbers=setup.dims,
    block_size=setup.block_size,
  )


def _soap_muon(setup: Setup) -> Built:
  return Built(
    optim.soap_muon(
      setup.learning_rate,
      weight_decay=setup.settings["weight_decay"],
      **_direction(setup),
    )
  )


def _moso(setup: Setup) -> Built:
  """Decoupled decay before the step; one refresh a call."""
  return Built(
    optim.moso(
      setup.learning_rate,
      stagger=False,
      dimension_numbers=setup.dims,
      block_size=setup.block_size,
      **setup.pick(
        "b1", "b2", "shampoo_beta", "eps", "weight_decay", "max_update_rms"
      ),
    )
  )


METHODS = {"soap_muon": _soap_muon, "moso": _moso}
LAYOUTS = {
  "soap_muon": ("kernels", "stacked", "blocks"),
  "soap_muon_f3": ("stacked",),
  "moso": ("kernels", "stacked"),
}
