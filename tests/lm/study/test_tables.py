"""The page and the pictures of planted studies whose numbers are known."""

import json
import pathlib

import numpy as np
import pytest
from matplotlib import image

from lm.study import (
  batches,
  declare,
  pictures,
  plan,
  reading,
  results,
  tables,
)
from lm.study.session import Session

# A run of D tokens has the loss 3 + (s D / (256 (1000 B + 8000)))^-1/2, +- .01
# by the seed: a speed-up is s, and b / a is 8 rows.
_SPEEDS = {"adamw": 1.0, "soap": 2.0, "lion": 0.25, "muon": 8.0}


def train(method, settings, horizon, batch, seed):
  """The planted trainer."""
  tokens = np.linspace(0, 1, 41)[1:] * horizon
  data = _SPEEDS[method] * tokens / (256 * (1000 * batch + 8000))
  best = 0.0006 if method == "lion" else 0.006
  off = np.log2(settings["learning_rate"] / best)
  bend = 1e-6 * (-off if method == "muon" else off**2)  # No best rate of Muon.
  return np.stack([tokens, 3 + data**-0.5 + bend + 0.01 * (-1) ** seed], 1)


# D = 1 at the end of 2 and 8 rows; D = 1/2 at the end of 32 rows.
_TOKENS = {2: 2_560_000, 8: 4_096_000, 32: 5_120_000}
_STUDY = {
  "title": "Planted",
  "text": "All numbers are known.",
  "cells": {
    **{f"{b} rows": {"batch": b, "tokens": t} for b, t in _TOKENS.items()},
    "held": {
      "batch": 2, "tokens": _TOKENS[2], "settings_of": "2 rows",
      "group": "code",
    },
  },
  "arms": (
    "adamw", "soap", {"method": "lion", "cells": ("2 rows",)},
    {"method": "muon", "cells": ("2 rows",)},
  ),
  "seeds": (0, 1),
  "trials": 3,
  "horizons": (0.5, 1, 2, 4),
  "targets": (0.25, 0.5),
  "claims": (
    {"claim": "faster", "threshold": 1 / 1.1},
    {"claim": "equal", "margin": 0.01, "arm": "soap", "cells": ("2 rows",)},
  ),
}  # fmt: skip


@pytest.fixture(scope="module")
def study():
  """A study with all that a page can show."""
  return declare.study(_STUDY, "planted", "small")


@pytest.fixture(scope="module")
def result(study, tmp_path_factory):
  """NAME.json when nothing is missing."""
  root = tmp_path_factory.mktemp("runs")
  session = Session(study, root, f"{pathlib.Path(__file__)}:train")
  while wave := session.planned().missing(session.find):
    session.make(wave, 1)
  return _json(results.results(study, session.planned(), session.find))


def _json(found):
  """What the report adds, by way of JSON."""
  made_by = {
    "command": "python -m lm.study planted", "commit": "0123456789",
    "versions": {"jax": "0.10.2"}, "devices": ["planted"],
  }  # fmt: skip
  plain = {"study": "planted", "tier": "small", "made_by": made_by, **found}
  return json.loads(json.dumps(plain | {"foreign": ["old-1234"]}))


@pytest.fixture
def times():
  """NAME.times.json: an update of SOAP takes 1.6 times as long."""
  cost = {"bytes_per_parameter": 12.5, "flop_per_token": 3.2e6, "depth": 1.0}
  return {
    "run_seconds": 3725.0,
    "update_ms": {"adamw in 2 rows": 10.0, "soap in 2 rows": 16.0},
    "measured": "2026-11-29",
    "costs": {"soap in 2 rows": cost},
  }


def _rows(page: str, title: str) -> list[dict[str, str]]:
  """Rows of the table below a heading."""
  section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
  lines = [line for line in section.splitlines() if line.startswith("|")]
  cells = [[cell.strip() for cell in line.split("|")] for line in lines]
  return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def test_page_has_what_made_it(result, times):
  page = tables.page(result, times)
  assert page.startswith("# Planted\n\nAll numbers are known.\n")
  # Trials: 3 in 8 tuned places, and at 9 other horizons of AdamW. Reports: 2
  # seeds in these; the runs of "held" are those of "2 rows".
  assert "85 runs, 51 to tune and 34 to report" in page
  assert "1 h 2 min of all runs together" in page
  assert "on planted. The page was made by commit 0123456789 with jax" in page
  assert _rows(page, "Foreign runs: 1")[0]["run"] == "old-1234"
  assert "Missing" not in page


def test_speed_ups_and_edges(result, times):
  page = tables.page(result, times)
  rows = _rows(page, "2 rows")
  # Best first, but a rate at an edge is not ranked and last.
  assert [row["method"] for row in rows] == ["soap", "adamw", "lion", "muon"]
  soap, adamw, lion, muon = rows
  assert adamw["final loss"] == "4.0000 ± 0.0100"
  assert soap["final loss"] == "3.7071 ± 0.0100"
  assert soap["speed-up [90 %]"] == "2 [2, 2]"
  assert lion["speed-up [90 %]"] == "< 0.5 [< 0.5, > 4]"
  assert muon["speed-up [90 %]"] == "> 4 [< 0.5, > 4]"
  assert muon["trials"] == "3 (edge, not ranked)"
  assert soap["trials"] == "3"
  assert soap["vertex"] == "0.006"
  assert soap["time of an update"] == "1.6"
  assert soap["speed-up in seconds"] == "1.25 [1.25, 1.25]"
  assert soap["bytes a parameter"] == "12.5"
  assert soap["FLOP a token"] == "3.20M"
  assert "depth" not in soap  # All are 1.
  assert soap["verdict"].startswith("faster: reproduced; equal: not reprod")


def test_speed_ups_in_other_units():
  row = {
    "speeds": [[0, 2.0, ""], [1, "inf", ">"], [2, "nan", ""]],
    "speed": {"estimate": 3.0, "low": 1.5, "high": "inf"},
  }
  assert tables.speed(row, (0.5, 4)) == "3 [1.5, > 4]"
  assert tables.speed(row, (0.5, 4), 0.5) == "1.5 [0.75, > 2]"
  assert tables.speed(row, (0.5, 4), float("nan")) == ""


def test_losses_of_runs_that_diverged():
  assert tables.mean([4.0, "inf", "nan"]) == "diverged in 2 of 3"
  assert tables.mean([4.0]) == "4.0000"
  assert tables.mean([]) == ""


def test_critical_batches(result):
  page = tables.page(result, {})
  steps = _rows(page, "Steps of adamw to each target")
  # D = 1/4 takes (1000 + 8000 / B) / 4 steps.
  assert steps[0]["run"] == "0.25"
  assert [float(steps[0][f"{b} rows"]) for b in (2, 8, 32)] == pytest.approx(
    [1250, 500, 312.5], rel=2e-3
  )
  # 1/2 is the end of 32 rows: the seed with the lower loss reaches the target.
  assert "(1 of 2)" in steps[1]["32 rows"]
  fit = _rows(page, "Critical batch of adamw")[0]
  for kind, rows in (("ratio", 8), ("free", 1.6), ("paper", 1.2 * 2 + 1.6)):
    assert float(fit[kind].split()[0]) == pytest.approx(rows, rel=2e-3)


def test_nothing_is_left_out_silently(result):
  partly = result | {"missing": ["soap_seed=1-abc"], "waiting": 7}
  page = tables.page(partly, {})
  assert "About 7 follow from the runs that can go now." in page
  assert _rows(page, "Missing runs: 1")[0]["run"] == "soap_seed=1-abc"
  tried = _rows(page, "What was tried")
  assert len(tried) == 10 + 12  # Arms in cells, and other horizons.
  assert tried[0]["rate: loss"] == (
    "0.003: 4.0100, **0.006: 4.0100**, 0.012: 4.0100"
  )
  assert "time of an update" not in page


def test_before_the_first_run_has_ended(study, tmp_path):
  def find(id_):
    return None

  first = _json(results.results(study, plan.plan(study, find), find))
  page = tables.page(first, {})
  assert "0 runs, 0 to tune and 0 to report" in page
  assert "## Missing runs: 9" in page  # Rates of AdamW in three cells.
  assert not pictures.draw(first, {}, tmp_path)


def test_pictures_show_something(result, times, tmp_path):
  files = pictures.draw(result, times, tmp_path)
  kinds = ["speed", "profile", "curves", "batch"]
  assert [file.name for file in files] == [f"planted_{k}.png" for k in kinds]
  for file in files:
    assert image.imread(file)[..., :3].std() > 0.05
    assert f"({file.name})" in tables.page(result, times)


@pytest.mark.slow
def test_theory_curve_is_the_exact_one():
  exact = batches.theory_curve(2.0 ** np.arange(6, 16), 2.0 ** np.arange(9))
  known = exact[np.isfinite(exact)]
  np.testing.assert_allclose(known, pictures.THEORY, rtol=1e-6)


_KEPT = pathlib.Path(__file__).parents[3] / "docs/results"


@pytest.mark.parametrize(
  "page", sorted(_KEPT.glob("*.md")), ids=lambda page: page.stem
)
def test_a_kept_page_is_what_its_json_says(page):
  name, folder = page.stem, page.parent
  result, times = (
    json.loads((folder / f"{name}.{end}").read_text())
    for end in ("json", "times.json")
  )
  assert page.read_text() == tables.page(result, times)
  for kind in reading.pictures(result):
    assert (folder / f"{name}_{kind}.png").is_file()
  selects, reports = (
    {run["seed"] for run in result["runs"] for use in run["uses"] if test(use)}
    for test in (
      lambda use: use["role"] == "tuning", lambda use: use["role"] == "report",
    )
  )  # fmt: skip
  assert selects
  assert reports
  assert not selects & reports
