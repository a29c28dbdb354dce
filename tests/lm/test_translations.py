"""Stored configurations with older names are read under today's names."""

import copy

import pytest

from lm.config import load, translations
from lm.step import build
from ml_collections_configs import base


def _stored(name, kwargs, **gauss_newton):
  """A configuration as JSON has it, with the keywords of an optimiser."""
  plain = load.to_dict(load.from_config_dict(base.get_config()))
  plain["optim"]["name"], plain["optim"]["kwargs"] = name, kwargs
  plain["gauss_newton"].update(gauss_newton)
  return plain


@pytest.mark.parametrize(
  ("plain", "wanted"),
  [
    (
      _stored("muon", dict(decay=0.9, num_steps=6, nesterov=False)),
      dict(beta=0.9, ns_steps=6, nesterov=False),
    ),
    (
      _stored("gauss_newton", dict(decay=0.9), optimizer="muon"),
      dict(beta=0.9),
    ),
    (
      _stored("soap", dict(b1=0.9, mu_dtype="bfloat16", basis_dtype="float16")),
      dict(b1=0.9, storage=dict(mu="bfloat16", basis="float16")),
    ),
    # Other optimisers keep names that look like these.
    (_stored("adamw", dict(mu_dtype="bfloat16")), dict(mu_dtype="bfloat16")),
    (_stored("sm3", dict(momentum=0.9)), dict(momentum=0.9)),
    # What has today's names already stays.
    (_stored("muon", dict(beta=0.9)), dict(beta=0.9)),
  ],
)
def test_keywords_take_todays_names(plain, wanted):
  before = copy.deepcopy(plain)
  assert translations.config(plain)["optim"]["kwargs"] == wanted
  assert plain == before  # The stored dictionary is not changed.
  assert dict(load.from_dict(plain).optim.kwargs) == wanted


def test_a_command_line_has_no_older_names():
  config = base.get_config()
  config.optim.name = "muon"
  with config.unlocked():
    config.optim.kwargs = dict(decay=0.9)
  built = load.from_config_dict(config)
  assert dict(built.optim.kwargs) == dict(decay=0.9)  # Refused by its name:
  (problem,) = build.problems(built)
  assert "config.optim.kwargs.decay is not an argument of muon" in problem
  assert "beta" in problem


def test_names_that_were_optaxs_stay_optaxs_in_older_configurations():
  plain = _stored("schedule_free_adamw", dict(b1=0.9), optimizer="ademamix")
  plain["optim"]["by_role"] = {"hidden": {"name": "adafactor"}, "gain": {}}
  assert load.from_dict(plain).optim.name == "schedule_free_adamw"
  del plain[translations.FORMAT]
  older = load.from_dict(plain)
  assert older.optim.name == "optax.contrib.schedule_free_adamw"
  assert older.gauss_newton.optimizer == "optax.contrib.ademamix"
  roles = {role: dict(fields) for role, fields in older.optim.by_role}
  assert roles == {"hidden": {"name": "optax.adafactor"}, "gain": {}}
  assert load.from_dict(load.to_dict(older)) == older
