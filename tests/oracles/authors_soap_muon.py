"""SOAP-Muon and MOSO for the authors' settings; see `authors.py`."""

from oracles.authors_built import Built, Setup
from oracles.authors_soap import warm_state

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
  tx = optim.soap_muon(
    setup.learning_rate,
    weight_decay=setup.settings["weight_decay"],
    **_direction(setup),
  )
  return _built(setup, tx)


def _record(setup: Setup) -> Built:
  """The record's control of norms; nothing decays."""
  return _built(setup, _controlled(setup, rule="record"))


def _cautious(setup: Setup) -> Built:
  """The later record: a floor of each row, and cautious decay at the end."""
  decay = optim.Decay(0.025, cautious=True)
  tx = _controlled(
    setup, rule="record_rows", weight_decay=decay, decay_order="official"
  )
  return _built(setup, tx)


def _controlled(setup: Setup, **options):
  direction = optim.scale_by_soap_muon(**_direction(setup))
  return optim.on_sphere(
    direction, setup.learning_rate, dimension_numbers=setup.dims, **options
  )


def _built(setup: Setup, tx) -> Built:
  """A warm start begins after the first call, with moments of zero."""
  if not setup.warm:
    return Built(tx)

  def init(params):
    return warm_state(setup, tx.init(params), params)

  return Built(tx, init)


def _moso(setup: Setup) -> Built:
  """Decoupled decay before the step; one refresh a call."""
  return Built(
    optim.moso(
      setup.learning_rate,
      stagger=False,
      dimension_numbers=setup.dims,
      block_size=setup.block_size,
      max_update_rms=setup.settings["max_update_rms"] or None,  # 0 is off.
      **setup.pick("b1", "b2", "shampoo_beta", "eps", "weight_decay"),
    )
  )


METHODS = {
  "soap_muon": _soap_muon,
  "soap_muon_record": _record,
  "soap_muon_cautious": _cautious,
  "moso": _moso,
}
LAYOUTS = {
  "soap_muon": ("kernels", "stacked", "blocks"),
  "soap_muon_f3": ("stacked",),
  "soap_muon_record": ("stacked",),
  "soap_muon_cautious": ("kernels",),
  "moso": ("kernels", "stacked"),
}
