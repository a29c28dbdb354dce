"""Half an hour of kills leaves no trace; and how that is measured."""

import os

import numpy as np
import pytest

from benchmarks import disturb, soak


@pytest.mark.slow  # SOAK_MINUTES=3 is a shorter one.
def test_a_run_that_is_killed_again_and_again_is_as_if_left_alone(tmp_path):
  minutes = float(os.environ.get("SOAK_MINUTES", "30"))
  every = (60.0, 180.0) if minutes >= 10 else (5.0, 30.0)
  result = soak.soak(tmp_path / "soak", minutes=minutes, every=every)
  print(soak.describe(result))
  soak.draw(result, tmp_path / "soak.png")
  assert result.same_state
  assert result.same_metrics
  assert max(s.files for s in result.samples + result.reference) < 64


def _samples(rng, rate, lives=4, noise=1e5):
  """Sizes that grow by `rate` bytes an hour from another start each life."""
  return [
    disturb.Sample(
      life, 0, 0.0, age, int(1e8 * (life + 1) + rate * age / 3600
                             + noise * rng.standard_normal()), 7
    )
    for life in range(lives)
    for age in np.arange(0.0, 150.0)
  ]  # fmt: skip


def test_the_slope_is_that_within_lives():
  rng = np.random.default_rng(0)
  for lives in (1, 4):
    values, errors = [], []
    for _ in range(60):
      found = soak.slope(_samples(rng, 5e6, lives), 0, "rss")
      values.append(found.value)
      errors.append(found.stderr)
    stderr = np.std(values) / np.sqrt(60)
    assert abs(np.mean(values) - 5e6) < 4 * stderr
    # Few clusters: the error is of the right size, not more.
    assert 0.3 < np.mean(errors) / np.std(values) < 1.5
  flat = soak.slope(_samples(rng, 0.0), 0, "files")
  assert flat == (0.0, 0.0)


def test_no_samples_have_no_slope():
  assert np.isnan(soak.slope([], 0, "rss")).all()


@pytest.mark.parametrize(
  ("signals", "victims", "codes", "good"),
  [
    ("TERM", (1,), (75, 75), True),
    ("TERM", (1,), (75, 76), False),
    ("KILL", (0,), (-9, 76), True),
    ("KILL", (0,), (-9, -6), False),  # The runtime's own way out.
    ("KILL", (0, 1), (-9, -9), True),
    ("TERM KILL", (0,), (-9, 76), True),
    ("TERM KILL", (0,), (75, 75), True),
    ("TERM KILL", (0,), (-9, 0), False),
  ],
)
def test_exit_codes_must_follow_from_what_was_done(
  signals, victims, codes, good
):
  event = disturb.Event(0, 0.0, signals, victims, codes, 1.0)
  if good:
    disturb.check(event)
  else:
    with pytest.raises(RuntimeError, match="Exit code"):
      disturb.check(event)


def test_metrics_are_compared_without_times_and_the_last_score(tmp_path):
  (tmp_path / "metrics.jsonl").write_text(
    '{"step": 1, "seconds": 3, "train/loss": 2, "perf/step_ms": 1}\n'
    '{"step": 1, "eval/a/loss": 4}\n{"step": 2, "eval/a/loss": 5}\n'
  )
  assert soak.metrics(tmp_path, 2) == {
    "train/loss": [(1, 2.0)],
    "eval/a/loss": [(1, 4.0)],
  }
