"""The entries of studies: what a method's settings make of a configuration."""

import copy
import pathlib

import jax
import pytest

from lm.config import load
from lm.methods import factories, newton
from lm.step import build, points
from lm.study import methods
from lm.study.methods import AUXILIARY, METHODS, Method
from lm.study.tuning import RATE, Log
from lm.tools import sweeps
from ml_collections_configs import optimizers

_CONFIG = (
  pathlib.Path(__file__).parents[3] / "ml_collections_configs/study1m.py"
)
# A cell: short, with a rate that decays, as in a study of decayed runs.
_CELL = {
  "train.num_tokens": 0,
  "train.num_steps": 60,
  "schedule.name": "linear",
  "schedule.end_factor": 0.0,
}


def _resolved(method, batch=16, **settings):
  given = {RATE: method.tuned[RATE].start} | settings
  found = methods.changes(method, given, 4e-3, batch)
  return sweeps.resolve(str(_CONFIG), _CELL | found)


def _roles(config):
  """Role -> its section of `by_role`, with arguments as a dictionary."""
  roles = {role: dict(section) for role, section in config.optim.by_role}
  for section in roles.values():
    section["kwargs"] = dict(section.get("kwargs", ()))
  return roles


@pytest.mark.parametrize("name", METHODS)
def test_an_update_has_the_same_tokens_by_every_method(name):
  for batch in (16, 40, 64):
    config = _resolved(METHODS[name], batch)
    assert config.tokens_per_step == batch * config.data.seq_length


@pytest.mark.parametrize("name", METHODS)
def test_each_value_of_each_tuned_key_is_another_run(name):
  method = METHODS[name]
  assert next(iter(method.tuned)) == RATE
  assert list(method.tuned)[1] == AUXILIARY
  log, *values = method.tuned.values()
  keys = list(method.tuned)[1:]
  found = [_resolved(method), _resolved(method, **{RATE: log.at(1)})]
  for key, tried in zip(keys, values, strict=True):
    found += [_resolved(method, **{key: value}) for value in tried[1:]]
  assert len(set(map(repr, found))) == len(found)
  first = {key: tried[0] for key, tried in zip(keys, values, strict=True)}
  assert _resolved(method, **first) == found[0]


def test_a_method_of_matrices_leaves_the_rest_to_adamw():
  config = _resolved(METHODS["soap"], auxiliary=0.5, b2=0.98)
  assert config.optim.name == "adamw"
  assert config.optim.learning_rate == 2e-3  # Half of 4e-3.
  assert dict(config.optim.kwargs) == {
    "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1,
  }  # fmt: skip
  kwargs = {
    "b1": 0.95, "b2": 0.98, "weight_decay": 0.1, "precondition_frequency": 10,
  }  # fmt: skip
  hidden = {"name": "soap", "learning_rate": 6e-3, "kwargs": kwargs}
  assert _roles(config) == {"hidden": hidden}


def test_a_whole_method_has_a_rate_of_its_own_beside_the_matrices():
  adamw = METHODS["adamw"]
  assert _resolved(adamw).optim.by_role == ()
  config = _resolved(adamw, learning_rate=3e-3, auxiliary=2.0)
  assert config.optim.learning_rate == 3e-3
  roles = _roles(config)
  assert set(roles) == {"input", "output", "gain", "bias"}
  assert {section[RATE] for section in roles.values()} == {6e-3}


@pytest.mark.parametrize(
  ("batch", "rows", "inner"),
  [(2, 1, 1), (16, 4, 3), (40, 4, 8), (64, 4, 13), (256, 8, 26)],
)
def test_gauss_newton_cuts_a_batch_for_solving_and_searching(
  batch, rows, inner
):
  config = _resolved(METHODS["gauss_newton"], batch, auxiliary=0.5)
  assert config.train.microbatch_size == rows
  assert config.gauss_newton.inner_steps == inner
  assert (inner + newton.num_search_batches(config)) * rows == batch
  assert dict(config.optim.kwargs)["adam_learning_rate"] == 0.5
  assert config.schedule.name == "constant"
  assert config.schedule.warmup == 0


def test_the_control_of_gauss_newton_differs_in_its_model_only():
  both = [
    _resolved(METHODS[name], learning_rate=0.1, auxiliary=0.5)
    for name in ("gauss_newton", "nonlinear")
  ]
  plain = [load.to_dict(config) for config in both]
  modes = [config["gauss_newton"].pop("mode") for config in plain]
  assert modes == ["quadratic", "nonlinear"]
  assert plain[0] == plain[1]


def test_what_cannot_be():
  with pytest.raises(ValueError, match="batch=19 rows cannot be cut"):
    _resolved(METHODS["gauss_newton"], 19)
  with pytest.raises(ValueError, match="have no 'learning_rate'"):
    methods.changes(METHODS["soap"], {"b2": 0.9}, 4e-3, 16)
  with pytest.raises(ValueError, match="not an argument of soap"):
    _resolved(METHODS["soap"], beta=0.9)


def test_an_entry_is_not_changed_by_a_run():
  before = copy.deepcopy(METHODS)
  for method in METHODS.values():
    made = methods.changes(method, {RATE: 1.0, "b1": 0.5}, 4e-3, 16)
    made["optim.kwargs"]["b2"] = 0.5
  assert before == METHODS


# Entry here -> name in `ml_collections_configs/optimizers.py`. Not the same:
# averages and warm-ups in updates (AdEMAMix, Schedule-Free), decay (Signum),
# and refreshes in turns (MOSO).
_DOCUMENTED = {
  name: name
  for name in (
    "adamw", "lion", "adafactor", "mars", "muon", "normuon", "muon_h",
    "shampoo", "soap", "soap_h", "kl_soap", "kl_shampoo",
  )
} | {
  "soap_1": "soap_every_step",
  "soap_muon": "soap_muon_staggered",
  "soap_muon_1": "soap_muon",
}  # fmt: skip


@pytest.mark.parametrize("name", _DOCUMENTED)
def test_defaults_are_those_of_the_documented_configuration(name):
  config = _resolved(METHODS[name])
  own = dict(config.optim.kwargs)
  if not METHODS[name].whole:
    own = _roles(config)["hidden"]["kwargs"]
  c = optimizers.get_config(_DOCUMENTED[name])
  role = c.optim.by_role.get("hidden", c.optim)
  assert role.name == METHODS[name].factory
  taken = factories.parameters(factories.find(role.name))
  defaults = {key: p.default for key, p in taken.items()}
  assert defaults | own == defaults | dict(role.kwargs)


def test_a_key_of_the_configuration_can_be_tuned():
  lotion = METHODS["adamw"]._replace(
    tuned={RATE: Log(1e-3), "quant.strength": (0.0, 10.0)},
    overrides={"quant.method": "lotion"},
  )
  assert _resolved(lotion).quant.strength == 0
  config = _resolved(lotion, **{"quant.strength": 10.0})
  assert (config.quant.method, config.quant.strength) == ("lotion", 10)
  assert "quant.strength" not in dict(config.optim.kwargs)


def test_another_method_is_one_entry():
  tuned = {RATE: Log(3e-3), AUXILIARY: (1.0, 2.0), "b2": (0.95, 0.99)}
  entry = Method("optax.contrib.acprop", {"b1": 0.9}, tuned)
  assert _roles(_resolved(entry, b2=0.99))["hidden"]["kwargs"] == {
    "b1": 0.9, "b2": 0.99,
  }  # fmt: skip
  roles = _roles(_resolved(entry._replace(whole=True), auxiliary=2.0))
  assert roles["input"][RATE] == 6e-3


def test_schedule_free_is_scored_at_its_average():
  # With two rates there are two states, for different parameters.
  config = _resolved(METHODS["schedule_free"], auxiliary=0.5)
  assert config.schedule.name == "constant"  # The cell's decay is replaced.
  known = {"vocab_size": 300, "eos_id": 1, "pad_id": 0, "platform": "cpu"}
  parts = build.build(load.resolve(config, **known), jax.devices()[:1])
  read = sum(points.find(parts).reads)
  # The momentum of every parameter, and of each state where x is.
  assert read == len(jax.tree.leaves(parts.abstract_state.params)) + 2
