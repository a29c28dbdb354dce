"""Schedules against their formulas, in float64."""

import math

import numpy as np
import pytest

from lm.config import load
from lm.methods import schedule
from ml_collections_configs import base

_PEAK, _STEPS = 0.3, 200


def _config(name, unit="steps", warmup=20.0, decay=40.0, start=0.1, end=0.2):
  c = base.get_config()
  c.optim.learning_rate = _PEAK
  c.train.num_tokens, c.train.num_steps = 0, _STEPS
  c.schedule.name, c.schedule.unit = name, unit
  c.schedule.warmup, c.schedule.decay = warmup, decay
  c.schedule.start_factor, c.schedule.end_factor = start, end
  return load.from_config_dict(c)


def _expected(name, t, w=20.0, d=40.0, a=0.1, z=0.2, total=_STEPS):
  t = min(t, total)
  if t < w:
    return _PEAK * (a + (1 - a) * t / w)
  s = (t - w) / (total - w)
  return (
    _PEAK
    * {
      "constant": 1.0,
      "cosine": z + (1 - z) * (1 + math.cos(math.pi * s)) / 2,
      "linear": 1 - (1 - z) * s,
      "wsd": 1 - (1 - z) * max(0.0, t - (total - d)) / d,
      "inverse_sqrt": math.sqrt(w / t),
    }[name]
  )


@pytest.mark.parametrize(
  "name", ["constant", "cosine", "linear", "wsd", "inverse_sqrt"]
)
def test_formula_at_every_step_and_beyond(name):
  rate = schedule.learning_rate(_config(name))
  steps = range(_STEPS + 50)
  found = [float(rate(t)) for t in steps]
  expected = [_expected(name, t) for t in steps]
  np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("warmup", [0.0, 20.0])
@pytest.mark.parametrize("offset", [1.0, 7.5, 20.0, 500.0])
@pytest.mark.parametrize("unit", ["steps", "tokens", "fraction"])
def test_inverse_square_root_with_an_offset(warmup, offset, unit):
  scale = {"steps": 1, "tokens": 4 * 256, "fraction": 1 / _STEPS}[unit]
  c = base.get_config()
  c.optim.learning_rate = _PEAK
  c.train.num_tokens, c.train.num_steps = 0, _STEPS
  c.schedule.name, c.schedule.unit = "inverse_sqrt", unit
  c.schedule.warmup, c.schedule.offset = warmup * scale, offset * scale
  rate = schedule.learning_rate(load.from_config_dict(c))
  t = np.arange(_STEPS)
  rise = t / max(warmup, 1)
  fall = np.sqrt(offset / (np.maximum(t - warmup, 0) + offset))
  expected = _PEAK * np.where(t < warmup, rise, fall)
  np.testing.assert_allclose(rate(t), expected, rtol=2e-5)


def test_units_name_the_same_schedule():
  tokens = 4 * 256
  configs_ = [
    _config("wsd"),
    _config("wsd", "tokens", 20.0 * tokens, 40.0 * tokens),
    _config("wsd", "fraction", 0.1, 0.2),
  ]
  for t in (0, 7, 20, 100, 170, 199):
    values = [float(schedule.learning_rate(c)(t)) for c in configs_]
    np.testing.assert_allclose(values, values[0], rtol=1e-6)


def test_no_warmup_begins_at_the_peak():
  rate = schedule.learning_rate(_config("cosine", warmup=0.0))
  assert float(rate(0)) == pytest.approx(_PEAK)
