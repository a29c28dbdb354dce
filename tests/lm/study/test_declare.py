"""A declaration is checked whole before the first run."""

import pathlib

import planted_study as planted
import pytest

from lm.config.errors import InputError
from lm.study import declare, plan
from lm.study.tuning import Log

_FASTER = {"claim": "faster", "threshold": 0.9}
_ONE = {"batch": 4, "tokens": 1024}
_CELLS = {"one": _ONE, "two": {**_ONE, "batch": 8}}


def _claim(**changes):
  return {"claims": ({"claim": "lower", "threshold": 0.0, **changes},)}


def _cell(**changes):
  return {"cells": {"one": _ONE, "two": {**_ONE, **changes}}}


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"colour": 3}, r"unknown keys \['colour'\].*it takes \['arms'"),
    ({"cells": {"one": {"batch": 4}}}, r"'one'.*missing keys \['tokens'\]"),
    (_cell(rows=3), r"cells\['two'\]: unknown keys \['rows'\]"),
    (_cell(batch=0), "cell two: batch=0 must be > 0"),
    (_cell(tokens=-1), "cell two: tokens=-1 must be > 0"),
    (_cell(settings_of="three"), "settings_of='three' is not one of"),
    (_cell(settings_of="two"), "settings_of='two' must stand above"),
    (_cell(start_of="two"), "start_of='two' must stand above"),
    (_cell(trials=2), "trials=2; a rate needs 3"),
    ({"cells": {}}, "cells must not be empty"),
    ({"arms": ()}, "arms must not be empty"),
    ({"arms": ("adamw", "adamv")}, r"method='adamv' is not one of \['adamw'"),
    ({"arms": ("adamw", "adamw")}, "two arms have the name 'adamw'"),
    ({"arms": ({"name": "x"},)}, r"missing keys \['method'\]"),
    ({"arms": ({"method": "adamw", "rate": 1},)}, r"unknown keys \['rate'\]"),
    ({"arms": ("muon",)}, "reference='adamw' is not one of"),
    ({"arms": ("muon",), "reference": "muon"}, "must have all parameters"),
    (
      {"arms": ("adamw", {"method": "lion", "tuned": {"b2": (0.9,)}})},
      "arm lion: tuned=.*needs 'learning_rate'",
    ),
    (
      {"arms": ("adamw", {"method": "lion", "cells": ("six",)})},
      "cells='six' is not one of",
    ),
    (
      {"arms": ("adamw", {"method": "lion", "in_cell": {"six": {}}})},
      "in_cell='six' is not one of",
    ),
    (
      {
        "cells": _CELLS,
        "arms": ({"method": "adamw", "cells": ("one",)}, "muon"),
      },
      "arm muon: in the cell two it needs adamw",
    ),
    (
      {"arms": ("adamw", {"method": "muon", "settings_of": ("sgd", "one")})},
      "settings_of='sgd' is not one of",
    ),
    (
      {"arms": ("adamw", {"method": "muon", "settings_of": ("adamw", "two")})},
      "settings_of='two' is not one of",
    ),
    (
      {
        "arms": (
          "adamw",
          {"method": "muon", "name": "a", "settings_of": ("b", "one")},
          {"method": "muon", "name": "b", "settings_of": ("a", "one")},
        )
      },
      "arm a: settings_of=.*must be tuned itself",
    ),
    (
      {
        "cells": {"one": _ONE, "two": {**_ONE, "settings_of": "one"}},
        "arms": ("adamw", {"method": "muon", "cells": ("two",)}),
      },
      "arm muon: cells: settings_of of two='one' is not one of",
    ),
    ({"seeds": ()}, "seeds must not be empty"),
    ({"seeds": (0, 100)}, r"no seed in common; both have \[100\]"),
    ({"seeds": (0, 0, 1)}, r"seeds=\(0, 0, 1\) must be distinct"),
    ({"trials": 2}, "trials=2; a rate needs 3"),
    ({"horizons": (1, 2, 4)}, "horizons.*4 at least, with 1"),
    ({"horizons": (0.5, 2, 4, 8)}, "horizons.*4 at least, with 1"),
    ({"horizons": (1, 1, 2, 4)}, "horizons.*distinct"),
    ({"targets": (0.5, 1.5)}, r"targets.*must be in \(0, 1\]"),
    ({"targets": (0.5,), "cells": _CELLS}, "targets need 3 batches"),
    (_claim(claim="better"), "claim='better' is not one of"),
    (_claim(sure=True), r"claims\[0\]: unknown keys \['sure'\]"),
    (_claim(arm="soap"), "arm='soap' is not one of"),
    (_claim(than="soap"), "than='soap' is not one of"),
    (_claim(than="*"), r"than='\*' is not one of"),
    (_claim(claim="faster", to="soap"), "to='soap' is not one of"),
    (_claim(score="avg"), "score='avg' is not one of"),
    (_claim(unit="seconds"), "unit='seconds' is not one of"),
    (_claim(cells=("two",)), "cells='two' is not one of"),
    (_claim(threshold="low"), "threshold='low' must be of the kind Real"),
    ({"arms": "adamw"}, "arms='adamw' must be of the kind tuple"),
    ({"seeds": 3}, "seeds=3 must be of the kind tuple"),
    ({"cells": ("one",)}, "cells=.*must be of the kind Mapping"),
    (_cell(overrides=3), "overrides=3 must be of the kind Mapping"),
    (_claim(claim="equal"), "equal needs a number 'margin' > 0; it is nan"),
    (_claim(claim="equal", margin=-1), "'margin' > 0; it is -1"),
    (_claim(claim="faster", threshold=0), "'threshold' > 0; it is 0"),
    (_claim(claim="faster", threshold=0.9), "faster needs `to`, or `horizons`"),
    (
      _claim(claim="exponent", centre=0.5, tolerance=0.1),
      "exponent needs `targets`",
    ),
    (_claim(claim="exponent", of="b"), "of='b' is not one of"),
    (
      _claim(claim="exponent", against="depth"),
      "against='depth' is not one of",
    ),
    (
      {
        "cells": _CELLS,
        "arms": (
          "adamw",
          {"method": "lion", "cells": ("one",)},
          {"method": "signum", "cells": ("two",)},
        ),
        **_claim(arm="lion", than="signum"),
      },
      r"claims\[0\]: its arms meet in no cell",
    ),
  ],
)
def test_a_mistake_is_named_with_what_is_allowed(changes, words):
  with pytest.raises(InputError, match=words):
    planted.study(**changes)


def test_lists_are_tuples_and_rates_are_spaces():
  study = planted.study(
    arms=[
      "adamw",
      {"method": "muon", "name": "a", "tuned": {"learning_rate": (0.1, 4)}},
      {"method": "muon", "name": "b", "tuned": {"learning_rate": 0.1}},
    ],
    seeds=[3, 4],
    claims=[_FASTER | {"to": "a"}],
  )
  assert study.seeds == (3, 4)
  assert study.arms["a"].entry().tuned == {"learning_rate": Log(0.1, 4)}
  assert study.arms["b"].entry().tuned == {"learning_rate": Log(0.1, 2)}
  assert declare.claimants(study, study.claims[0]) == ["a", "b"]


def test_a_claim_is_made_where_its_arms_meet():
  study = planted.study(
    cells=_CELLS,
    arms=("adamw", "lion", {"method": "signum", "cells": ("two",)}),
    claims=(_FASTER | {"to": "signum"}, _FASTER | {"to": 3.5}),
  )
  to_signum, to_number = study.claims
  assert declare.meetings(study, to_signum, "lion") == ["two"]
  assert declare.meetings(study, to_number, "lion") == ["one", "two"]


def test_an_arm_that_changes_nothing_is_told_to_a_trainer_by_its_method():
  same = declare.Arm("muon", "other").trains
  changed = declare.Arm("muon", "other", overrides={"optim.ema": 0.9}).trains
  assert (same, changed) == ("muon", "other")


def test_a_study_is_found_by_name_or_file(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text('TIERS = {"full": {}}')
  with pytest.raises(InputError, match=r"--tier=small: .*has \['full'\]"):
    declare.load(str(file), "small")
  with pytest.raises(InputError, match=r"mine.*missing keys \['arms', 'cells'"):
    declare.load(str(file), "full")
  with pytest.raises(InputError, match=r"'board'.*there are \[.*'leaderboard'"):
    declare.load("board", "small")
  with pytest.raises(InputError, match="there is no"):
    declare.load(str(tmp_path / "none.py"), "small")


_ROOT = pathlib.Path(__file__).resolve().parents[3]
_SHIPPED = [
  path.stem for path in sorted((_ROOT / declare.FOLDER).glob("[!_]*.py"))
]


@pytest.mark.parametrize("name", _SHIPPED)
def test_shipped_studies_are_valid(name, monkeypatch):
  monkeypatch.chdir(_ROOT)
  tiers = declare.config_load.import_file(f"{declare.FOLDER}/{name}.py").TIERS
  assert "small" in tiers
  for tier in tiers:
    study = declare.load(name, tier)
    assert plan.places(study)
  study = declare.load(name, "small")
  for place in plan.places(study)[:3]:
    assert plan.first(study, place).tokens > 0
