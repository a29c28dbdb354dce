"""What a study says of planted losses."""

import json
import math

import numpy as np
import planted_study as planted
import pytest

_FASTER = {"claim": "faster", "threshold": 1 / 1.1}


def _claims(found):
  return {(c["arm"], c["cell"], c["claim"]): c for c in found["claims"]}


def _speed_study(arms):
  return planted.study(
    arms=arms, horizons=planted.HORIZONS, claims=(_FASTER,), seeds=range(5)
  )


@pytest.mark.parametrize(
  "replicates", [5, pytest.param(100, marks=pytest.mark.slow)]
)
def test_intervals_of_speed_ups_cover_and_equals_are_not_faster(replicates):
  """Paired sd .01, through all steps from the trials to the verdicts."""
  speeds = {"muon": 1.3, "soap": 1.0}
  study = _speed_study(("adamw", "muon", "soap"))
  covered, faster = dict.fromkeys(speeds, 0), dict.fromkeys(speeds, 0)
  for replicate in range(replicates):
    train = planted.losses(
      speeds=speeds, sd=0.01 / math.sqrt(2), shared=0.01, bend=0,
      replicate=replicate,
    )  # fmt: skip
    found = planted.Memory(study, train).finish().results()
    for row in found["table"]:
      if ends := row.get("speed"):
        true = speeds[row["arm"]]
        covered[row["arm"]] += ends["low"] <= true <= ends["high"]
    for claim in found["claims"]:
      faster[claim["arm"]] += claim["verdict"] == "reproduced"
  assert min(covered.values()) >= 0.8 * replicates
  assert faster["muon"] >= 0.9 * replicates
  assert faster["soap"] <= 0.05 * replicates


def test_speed_ups_beyond_the_curve_are_bounds():
  study = _speed_study(("adamw", "muon", "soap", "lion"))
  speeds = {"muon": 6.0, "soap": 0.2}

  def train(method, settings, horizon, batch, seed):
    points = planted.losses(speeds=speeds)(
      method, settings, horizon, batch, seed
    )
    lost = method == "lion" and seed < 5
    return points + [0, math.nan] if lost else points

  made = planted.Memory(study, train).finish()
  rows = {arm: made.row(arm) for arm in study.arms}
  assert {bound for *_, bound in rows["muon"]["speeds"]} == {">"}
  assert {bound for *_, bound in rows["soap"]["speeds"]} == {"<"}
  assert {bound for *_, bound in rows["lion"]["speeds"]} == {"<"}
  assert rows["lion"]["losses"]["loss"] == ["inf"] * 5
  verdicts = {arm: v for (arm, *_), v in _claims(made.results()).items()}
  assert verdicts["muon"]["raw"] == "reproduced"
  assert verdicts["soap"]["verdict"] == "not reproduced"
  assert verdicts["lion"]["verdict"] == "not reproduced"
  assert "the method succeeded in 0 of 5" in verdicts["lion"]["rule"]


def test_a_claim_against_another_arm_is_about_this_arm():
  arms = ("adamw", "muon", "soap")
  study = planted.study(
    arms=arms,
    horizons=planted.HORIZONS,
    claims=(
      {"claim": "faster", "threshold": 0.9, "arm": "muon", "than": "soap"},
    ),
  )
  made = planted.Memory(
    study, planted.losses(speeds={"muon": 1.3, "soap": 2.0})
  ).finish()
  (claim,) = made.results()["claims"]
  assert claim["estimate"] == pytest.approx(2 / 1.3, rel=0.01)
  assert claim["verdict"] == "not reproduced"


@pytest.mark.parametrize(
  ("to", "unit", "ratio"),
  [
    (5.5, "tokens", 0.5), (5.5, "updates", 0.5), (5.5, "depth", 0.5),
    ("adamw", "updates", 0.5), ("lion", "updates", None),
  ],
)  # fmt: skip
def test_updates_to_a_loss_are_counted_on_curves(to, unit, ratio):
  claim = {
    "claim": "faster", "arm": "muon", "threshold": 0.8, "to": to, "unit": unit,
  }  # fmt: skip
  study = planted.study(arms=("adamw", "muon", "lion"), claims=(claim,))
  half = planted.losses(speeds={"muon": 2.0})

  def train(method, settings, horizon, batch, seed):
    points = half(method, settings, horizon, batch, seed)
    return points + [0, math.inf] if method == "lion" else points

  (found,) = planted.Memory(study, train).finish().results()["claims"]
  if ratio is None:  # Nobody reaches the loss of a run that diverged.
    assert found["verdict"] == "undecided"
    return
  assert found["verdict"] == "reproduced"
  assert found["estimate"] == pytest.approx(ratio, rel=0.02)


def test_a_censored_run_is_counted():
  claim = {"claim": "faster", "arm": "muon", "threshold": 0.8, "to": 5.5}
  study = planted.study(claims=(claim,), seeds=range(6))

  def change(run, points):
    lost = run.arm == "muon" and run.seed == 2
    return points + [0, 3] if lost else points

  train = planted.losses(speeds={"muon": 2.0}, sd=1e-4)
  made = planted.Memory(study, train, change).finish()
  (found,) = made.results()["claims"]
  assert "the method succeeded in 5 of 6" in found["rule"]
  assert found["high"] == "inf"
  assert found["verdict"] == "undecided"


@pytest.mark.parametrize(
  ("n", "sd", "gap", "verdict"),
  [
    (3, 0.02, 0.0, "undecided"),
    (8, 0.002, 0.0, "reproduced"),
    (8, 0.002, 0.03, "not reproduced"),
  ],
)
def test_equal_is_more_than_not_different(n, sd, gap, verdict):
  claim = {"claim": "equal", "arm": "muon", "margin": 0.01}
  study = planted.study(claims=(claim,), seeds=range(n))
  for replicate in range(4):
    made = planted.Memory(
      study,
      planted.losses(sd=sd / math.sqrt(2), replicate=replicate, bend=0),
      lambda run, points: points + [0, gap * (run.arm == "muon")],
    ).finish()
    (found,) = made.results()["claims"]
    assert found["verdict"] == verdict


def test_lower_takes_the_score_that_is_asked_for():
  claims = (
    {"claim": "lower", "arm": "muon", "threshold": -0.1, "score": "loss"},
    {"claim": "lower", "arm": "muon", "threshold": -0.1, "score": "age"},
  )
  scores = {"loss": "loss", "age": "avg/*/loss"}
  study = planted.study(claims=claims, scores=scores)
  made = planted.Memory(
    study,
    planted.losses(sd=1e-3),
    lambda run, points: points - [0, 0.2 * (run.arm == "muon")],
  ).finish()
  for id_, record in made.found.items():
    losses = record.losses | {"age": 4.0 + 0.001 * (len(id_) % 3)}
    made.found[id_] = record._replace(losses=losses)
  found = [claim["verdict"] for claim in made.results()["claims"]]
  assert found == ["reproduced", "not reproduced"]


def test_many_equal_methods_are_corrected():
  arms = ("adamw", "muon", "soap", "lion", "signum")
  study = planted.study(
    arms=arms, claims=({"claim": "lower", "threshold": 0.0},)
  )
  found = planted.Memory(study, planted.losses(sd=0.01)).finish().results()
  assert len(found["claims"]) == 4
  for claim in found["claims"]:
    assert claim["p_holm"] >= claim["p"]
    assert "raw: " in claim["rule"] or claim["raw"] == claim["verdict"]


def test_results_are_json_and_say_what_is_missing():
  study = _speed_study(("adamw", "muon"))
  made = planted.Memory(study, planted.losses())
  for _ in range(3):
    found = made.results()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["missing"]
    assert not found["claims"]
    for run in made.planned().missing(made.find):
      made.make(run)
  found = made.finish().results()
  assert not found["missing"]
  uses = [use for run in found["runs"] for use in run["uses"]]
  assert {use["horizon"] for use in uses} == {*planted.HORIZONS}
  assert found["runs"][0]["command"].startswith("python -m lm.main --config=")
  row = made.row("muon")
  assert row["vertex"] == pytest.approx(row["settings"]["learning_rate"])


# --- The critical batch.

_A, _B = 100.0, 1600.0
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


def _cbs_study(seeds, batches=_BATCHES, **changes):
  rows = 256
  cells = {
    f"{batch} rows": {
      "batch": batch, "tokens": int(4 * (_B + _A * batch) * rows),
    }
    for batch in batches
  }  # fmt: skip
  return planted.study(
    cells=cells, arms=("adamw",), seeds=seeds, trials=3,
    targets=(0.125, 0.25), **changes,
  )  # fmt: skip


def _steps(noise, slow=()):
  """4 (unit / updates)^.5 above 3: to any loss in a + b / B units."""

  def train(method, settings, horizon, batch, seed):
    rng = np.random.default_rng([seed, batch])
    units = (_A + _B / batch) * math.exp(noise * rng.normal())
    units *= 100 if (batch, seed) in slow else 1
    tokens = np.linspace(0.01, 1, 200) * horizon
    updates = tokens / batch / 256
    off = math.log2(settings["learning_rate"] / 6e-3)
    loss = 3 + 4 * (units / updates) ** 0.5 + 0.05 * off**2
    return np.stack([tokens, loss], 1)

  return train


def test_the_critical_batch_of_exact_steps():
  made = planted.Memory(_cbs_study((0,)), _steps(0)).finish()
  found = made.results()["critical_batch"]["adamw"]
  for fit in found["fits"]:
    assert fit["ratio"]["estimate"] == pytest.approx(_B / _A, rel=0.01)
    assert fit["samples_min"] / fit["steps_min"] == pytest.approx(16, rel=0.01)
    assert fit["paper"]["estimate"] == pytest.approx(1.2 + 0.2 * 16, rel=0.02)


def test_a_tiny_run_of_the_largest_batch_has_exact_updates():
  """Six updates of 64 rows; 12 points lie at halves of updates."""
  cells = {
    f"{b} rows": {"batch": b, "tokens": 6 * 64 * 256 if b == 64 else 10**6}
    for b in (1, 8, 64)
  }
  study = planted.study(
    cells=cells, arms=("adamw",), seeds=(0,), trials=3, targets=(0.1,)
  )
  made = planted.Memory(study, _steps(0)).finish()
  assert made.row("adamw", "64 rows")["updates"] == 6


@pytest.mark.parametrize("replicate", range(3))
def test_the_interval_of_the_critical_batch_covers(replicate):
  seeds = tuple(range(5 * replicate, 5 * replicate + 5))
  claim = {"claim": "exponent", "centre": 0.0, "tolerance": 9.0}
  study = _cbs_study(seeds, claims=(claim,))
  made = planted.Memory(study, _steps(0.03)).finish()
  found = made.results()
  for fit in found["critical_batch"]["adamw"]["fits"]:
    assert fit["ratio"]["low"] <= _B / _A <= fit["ratio"]["high"]
    assert fit["ratio"]["high"] / fit["ratio"]["low"] < 1.5
  assert found["claims"][0]["claim"] == "exponent"


@pytest.mark.parametrize("power", [0.0, 0.4])
def test_the_critical_batch_in_the_size(power):
  """b / a = 16 N^power at equal data; sizes 1, 2 and 4."""
  cells = {}
  for size in (1, 2, 4):
    for batch in _BATCHES:
      rows = 256 * (_B + _A * batch)
      cells[f"{size}, {batch} rows"] = {
        "batch": batch, "tokens": int(4 * rows), "group": f"N = {size}",
        "size": size, "overrides": {"model.D": 32 * size},
      }  # fmt: skip
  claims = [
    {"claim": "exponent", "centre": 0.0, "tolerance": 0.2, "against": "size"}
  ]
  study = planted.study(
    cells=cells, arms=("adamw",), seeds=tuple(range(5)), trials=3,
    targets=(0.125, 0.25), claims=claims,
  )  # fmt: skip

  def train(run, points):
    """The planted run of `_steps`, with a = A N^-power."""
    size = study.cells[run.cell].size
    scale = _A * size**-power + _B / run.batch
    scale /= _A + _B / run.batch
    tokens, loss = points.T
    return np.stack([tokens, 3 + (loss - 3) * scale**0.5], 1)

  found = planted.Memory(study, _steps(0.01), train).finish().results()
  law = found["batch_by_size"]["adamw"]
  assert law["groups"] == ["N = 1", "N = 2", "N = 4"]
  want = [16 * size**power for size in (1, 2, 4)]
  assert law["batch"] == pytest.approx(want, rel=0.1)
  slope = law["slope"]["ratio"]
  assert slope["low"] - 0.01 <= power <= slope["high"] + 0.01
  assert slope["estimate"] == pytest.approx(power, abs=0.06)
  (claim,) = found["claims"]
  assert claim["verdict"] == ("not reproduced" if power else "reproduced")


def test_a_censored_batch_says_k_of_n():
  study = _cbs_study((0, 1, 2, 3, 4))
  slow = {(16, 3)}
  found = planted.Memory(study, _steps(0.03, slow)).finish().results()
  (fit, _) = found["critical_batch"]["adamw"]["fits"]
  assert fit["notes"][0] == "batch 16: 4 of 5 reached"
  assert fit["ratio"]["low"] <= _B / _A <= fit["ratio"]["high"]
