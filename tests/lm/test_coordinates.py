"""The coordinate check: the rules of every method, and the program."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.config import load
from lm.config.errors import ConfigError
from lm.model import params as param_table
from lm.step import build
from lm.tools import coordinates, width_decoder, width_mlp

# The layer that shows most what a missing rule does.
_SHOWS = dict.fromkeys(width_mlp.CASES, "hidden 2")
_SHOWS |= dict.fromkeys(("muon", "normuon", "soap_muon"), "logits")
_SHOWS |= {"shampoo_traced": "input"}
_FAST = ("adam", "muon")
_FAILING = ("soap", "soap_as_adam")  # Asserted to fail, or to undershoot.


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=() if name in _FAST else pytest.mark.slow)
    for name in width_mlp.CASES
    if name not in _FAILING
  ],
)
def test_hidden_layers_move_alike_with_the_rule_only(name):
  case = width_mlp.CASES[name]
  with_rule, without = (
    dict(
      zip(
        width_mlp.LAYERS,
        width_mlp.check(case, scaled=scaled).slopes,
        strict=True,
      )
    )
    for scaled in (True, False)
  )
  print(f"{name}: {with_rule}; without: {without}")
  assert abs(with_rule["hidden 1"]) < 0.15
  assert abs(with_rule["hidden 2"]) < 0.15
  # Whitening flattens SOAP-Muon's singular values further.
  assert abs(without[_SHOWS[name]]) > (0.25 if name == "soap_muon" else 0.3)


@pytest.mark.slow
def test_the_published_rule_of_soap_fails_without_blocks():
  slopes = width_mlp.check(width_mlp.CASES["soap"], scaled=True).slopes
  assert np.all(slopes[1:3] > 0.4)


@pytest.mark.slow
def test_adams_rule_undershoots_for_soap():
  case = width_mlp.CASES["soap_as_adam"]
  slopes = width_mlp.check(case, scaled=True).slopes
  assert np.all(slopes[1:3] > -0.25)
  assert np.all(slopes[1:3] < 0)


def test_factors_of_the_network_by_hand():
  def rates(name, width):
    found = width_mlp.multipliers(width_mlp.CASES[name], width)
    return [m.rate for m in found]

  # Input 32 x D, hidden D x D twice, head D x 10; the base has D = 64.
  for name, wanted in (
    ("sgd", (16, 1, 1, 1 / 16)),
    ("adam", (1, 1 / 16, 1 / 16, 1 / 16)),
    ("muon", (1, 1, 1, 1 / 4)),
    ("muon_consistent_rms", (1, 1 / 4, 1 / 4, 1 / 16)),
    ("soap", (4, 1, 1, 1 / 4)),
    ("soap_blocks", (1, 1 / 16, 1 / 16, 1 / 16)),
    ("soap_spectral", (1, 1, 1, 1)),
    ("shampoo", (1, 1 / 16, 1 / 16, 1 / 16)),
    ("shampoo_traced", (4, 1, 1, 1 / 4)),
  ):
    np.testing.assert_allclose(rates(name, 1024), wanted, err_msg=name)
    assert rates(name, 64) == [1] * 4


def _untied(tiny, **changes):
  return tiny.config_dict(
    model__tied=False, model__embed_init_std=1.0, data__batch_size=4, **changes
  )


def _resolved(config_dict):
  config = load.from_config_dict(config_dict)
  return build.resolve(config, build.find_data(config))


def _optimizer(name, **kwargs):
  return dict(optim__name=name, optim__kwargs=kwargs)


def _by_role(config, width, rule):
  """{role: (init, rate) of one of its leaves}, D = 32 being the base's."""
  model, base = (width_decoder.at_width(config, d) for d in (width, 32))
  factors = width_decoder.multipliers(model, base, rule)
  specs = param_table.param_specs(model.model)
  found = {}
  jax.tree.map(
    lambda spec, m: found.setdefault(spec.role, (m.init, m.rate)),
    specs,
    factors,
  )
  return found


def test_factors_of_the_decoder_by_hand(tiny):
  # Embedding, head and gains are Adam's for a method of matrices.
  rest = {"input": (1, 1), "output": (1 / 8, 1 / 8), "gain": (1, 1)}
  for name, kwargs, rule, rate in (
    ("adamw", {}, "adamw", 1 / 8),
    ("muon", {}, "muon", 1),
    ("muon", {"consistent_rms": 0.2}, "muon_consistent_rms", 8**-0.5),
    ("shampoo", {}, "shampoo", 1 / 8),
    ("shampoo", {"grafting": "none"}, "shampoo_traced", 1),
    ("soap", {}, "soap", 1),
    ("soap", {"block_size": 32}, "soap", 1 / 8),
    ("soap", {"max_precond_dim": 16}, "soap", 1 / 8),
  ):
    config = _resolved(_untied(tiny))
    chosen = dataclasses.replace(
      config.optim, name=name, kwargs=tuple(sorted(kwargs.items()))
    )
    config = dataclasses.replace(config, optim=chosen)
    hidden = width_decoder.choice_of(config, "hidden")
    assert width_decoder.rule_of(hidden) == rule
    found = _by_role(config, 256, rule)
    assert found.pop("hidden") == pytest.approx((8**-0.5, rate)), kwargs
    assert found == {role: pytest.approx(pair) for role, pair in rest.items()}


def test_each_role_has_the_rule_of_its_optimiser(tiny):
  config = _resolved(_untied(tiny))
  roles = (("hidden", (("name", "muon"),)), ("output", (("name", "sgd"),)))
  config = dataclasses.replace(
    config, optim=dataclasses.replace(config.optim, by_role=roles, kwargs=())
  )
  found = _by_role(config, 256, "muon")
  assert found["hidden"][1] == pytest.approx(1)
  assert found["input"] == (1, 1)  # AdamW's.
  assert found["output"] == (1 / 8, 1 / 8)  # That of SGD: o / i.


def test_what_has_no_rule_is_named(tiny):
  config = _resolved(_untied(tiny))
  with pytest.raises(ConfigError, match="model.H would be 1.5"):
    width_decoder.at_width(config, 24)
  tied = dataclasses.replace(config.model, tied=True)
  with pytest.raises(ConfigError, match="tied=True"):
    width_decoder.at_width(dataclasses.replace(config, model=tied), 64)
  quant = dataclasses.replace(config.quant, method="qat")
  with pytest.raises(ConfigError, match="quant.method='qat'"):
    width_decoder.at_width(dataclasses.replace(config, quant=quant), 64)
  novel = dataclasses.replace(config.optim, name="novograd")
  config = dataclasses.replace(config, optim=novel)
  hidden = width_decoder.choice_of(config, "hidden")
  with pytest.raises(ConfigError, match=r"'novograd' has no rule.*--rule="):
    width_decoder.rule_of(hidden)


def _flags(tiny, **changes):
  settings = dict(model__tied=False, model__embed_init_std=1.0) | changes
  words = tiny.flags("unused", **settings)
  return [word for word in words if not word.startswith("--workdir")]


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ((), "Give --method=NAME"),
    (("--method=mun",), "Did you mean 'muon'"),
    (("--method=sgd", "--rule=adam"), "--rule=adam is for the decoder"),
    (("--method=sgd", "--widths=64"), "--widths=64 must be two widths"),
    (("--method=sgd", "--widths=64,32"), "from small to large"),
    (("--method=sgd", "--widths=64,x"), "whole numbers"),
  ],
)
def test_bad_flags_are_told(words, message, capsys):
  assert coordinates.main(list(words)) == 2
  assert message in capsys.readouterr().err


def test_the_program_prints_both_tables(tiny, capsys):
  few = ["--widths=32,64", "--seeds=1", "--steps=2"]
  assert coordinates.main([*_flags(tiny, model__N=1), *few]) == 0
  header, _, first, second, last = capsys.readouterr().out.splitlines()
  assert header.split("  ")[0] == "adamw"
  # At the base width the rule changes nothing.
  sizes = first.removeprefix("D = 32").split()
  assert sizes[:2] == sizes[2:]
  assert second.startswith("D = 64")
  assert len(last.removeprefix("last / first").split()) == 4
  assert coordinates.main(["--method=sgd", *few]) == 0
  _, _, without, scaled = capsys.readouterr().out.splitlines()
  assert without.startswith("sgd, no rule")
  assert scaled.startswith("sgd, rule sgd")


@pytest.mark.slow
def test_adamw_of_the_decoder_moves_alike_with_the_rule_only(tiny):
  config = _untied(
    tiny, model__D=64, model__H=4, model__G=4, model__F=256,
    optim__learning_rate=1e-2,
  )  # fmt: skip
  without, with_rule = width_decoder.check(
    _resolved(config), (None, "adam"), widths=(64, 512), seeds=3, steps=4
  )
  print(f"without: {without.ratios}; with the rule: {with_rule.ratios}")
  assert without.ratios[1] >= 1.5
  assert with_rule.ratios[1] <= 1.2
