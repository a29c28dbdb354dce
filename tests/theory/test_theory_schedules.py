"""Schedules and stages against loops over single updates."""

import math

import numpy as np
import pytest

import theory

T = 40

FORMULAS = {
  "constant": (lambda: theory.constant(0.3, T), lambda t: 0.3),
  "cosine": (
    lambda: theory.cosine(0.3, T),
    lambda t: 0.15 * (1 + math.cos(math.pi * t / T)),
  ),
  "quarter cosine": (
    lambda: theory.quarter_cosine(0.3, T),
    lambda t: 0.3 * math.cos(math.pi * t / T / 2),
  ),
  "linear": (lambda: theory.linear(0.3, T), lambda t: 0.3 * (T - t) / T),
  "power": (
    lambda: theory.power(0.3, T, 2.5),
    lambda t: 0.3 * ((T - t) / T) ** 2.5,
  ),
  "anytime": (
    lambda: theory.anytime(0.3, T, 0.4),
    lambda t: 0.3 / (t + 1) ** 0.4,
  ),
  "inverse root": (
    lambda: theory.inv_sqrt(0.3, T, 7.0),
    lambda t: 0.3 * math.sqrt(7 / (t + 1 + 7)),
  ),
  "wsd": (
    lambda: theory.wsd(0.3, T, 0.25, warmup=0.2),
    # 8 updates up, 22 flat, 10 down to one tenth.
    lambda t: 0.3 * ((t + 1) / 8 if t < 8 else min(1, (T - t) / 10)),
  ),
  "wsd without ends": (lambda: theory.wsd(0.3, T, 0.0), lambda t: 0.3),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_schedule_is_its_formula(name):
  make, formula = FORMULAS[name]
  eta = make()
  assert eta.shape == (T,)
  assert eta.dtype == np.float64
  np.testing.assert_allclose(eta, [formula(t) for t in range(T)], rtol=1e-13)


@pytest.mark.parametrize(
  ("warmup", "decay"), [(-0.1, 0.2), (0.9, 0.2), (0.0, 1.1), (0.0, -0.1)]
)
def test_wsd_refuses_fractions_that_do_not_fit(warmup, decay):
  with pytest.raises(ValueError, match=f"warmup={warmup} and decay={decay}"):
    theory.wsd(1.0, 10, decay, warmup=warmup)


def test_step_decay_counts_its_steps():
  eta = theory.step_decay(0.8, [3, 1, 2], 4.0)
  np.testing.assert_allclose(eta, [0.8, 0.8, 0.8, 0.2, 0.05, 0.05])


def test_schedule_pairs_and_checks():
  one = theory.schedule([0.1, 0.2], 4)
  np.testing.assert_array_equal(one.batch, [4, 4])
  two = theory.schedule([0.1, 0.2], [4, 8])
  np.testing.assert_array_equal(two.batch, [4, 8])
  with pytest.raises(ValueError, match="batch=0.0 is below 1"):
    theory.schedule([0.1, 0.2], [4, 0])
  with pytest.raises(ValueError, match="eta=-0.1"):
    theory.schedule([-0.1, 0.2], 4)


def _discretised(eta, batch, factor):
  """The same rule, one update at a time."""
  groups = [[0]]
  for t in range(1, len(eta)):
    first = groups[-1][0]
    moved = max(
      abs(math.log(eta[t] / eta[first])), abs(math.log(batch[t] / batch[first]))
    )
    if moved > math.log(factor):
      groups.append([])
    groups[-1].append(t)
  mean = lambda x: sum(x) / len(x)  # noqa: E731
  return [
    (
      mean([eta[t] for t in g]),
      1 / mean([1 / batch[t] for t in g]),
      len(g),
    )
    for g in groups
  ]


@pytest.mark.parametrize("factor", [1.05, 1.5, 1e9])
def test_discretise_cuts_where_eta_or_batch_has_moved(factor):
  rng = np.random.default_rng(0)
  eta = 0.3 * np.exp(np.cumsum(0.1 * rng.standard_normal(60)))
  batch = np.repeat([4.0, 8.0, 64.0], 20)
  stages = theory.discretise(theory.schedule(eta, batch), factor)
  wanted = _discretised(eta, batch, factor)
  assert len(wanted) > 1 or factor > 1e6
  np.testing.assert_allclose(np.stack(stages, 1), wanted, rtol=1e-12)
  # Steps and the sums of eta and of 1 / B are kept.
  assert stages.steps.sum() == 60
  assert stages.eta @ stages.steps == pytest.approx(eta.sum())
  assert stages.steps @ (1 / stages.batch) == pytest.approx(np.sum(1 / batch))


def test_discretise_survives_a_zero_and_refuses_a_factor_of_one():
  stages = theory.discretise(theory.schedule([0.2, 0.2, 0.0], 2), 1.5)
  np.testing.assert_array_equal(stages.eta, [0.2, 0.0])
  np.testing.assert_array_equal(stages.steps, [2, 1])
  with pytest.raises(ValueError, match="factor=1.0"):
    theory.discretise(theory.schedule([0.2], 2), 1.0)


def test_unroll_repeats_and_wants_whole_steps():
  stages = theory.stages_of_steps([0.3, 0.1], [2, 5], [2, 3])
  flat = theory.unroll(stages)
  np.testing.assert_array_equal(flat.eta, [0.3, 0.3, 0.1, 0.1, 0.1])
  np.testing.assert_array_equal(flat.batch, [2, 2, 5, 5, 5])
  with pytest.raises(ValueError, match="whole numbers"):
    theory.unroll(stages._replace(steps=np.array([2.5, 3])))


def test_stages_of_steps_broadcasts():
  stages = theory.stages_of_steps(0.3, [2, 4, 8], 10)
  np.testing.assert_array_equal(stages.eta, [0.3, 0.3, 0.3])
  np.testing.assert_array_equal(stages.batch, [2, 4, 8])
  np.testing.assert_array_equal(stages.steps, [10, 10, 10])
  with pytest.raises(ValueError, match="stages.steps=-1"):
    theory.stages_of_steps(0.3, 2, -1)


def _carried(samples, batches):
  """Whole steps of each stage: what does not fill a batch moves on."""
  steps, left = [], 0
  for size, batch in zip(samples, batches, strict=True):
    left += size
    steps.append(left // batch)
    left %= batch
  return steps, left


@pytest.mark.parametrize("steps", [15, 16, 23, 100, 1001])
def test_whole_seesaw_carries_the_samples_that_fill_no_batch(steps):
  decay = theory.stages_of_steps(0.5 ** np.arange(4), 5, steps)
  whole = theory.seesaw(decay, 2.0, whole=True)
  batches = [5, 10, 20, 40]
  wanted, left = _carried([5 * steps] * 4, batches)
  np.testing.assert_array_equal(whole.batch, batches)
  np.testing.assert_array_equal(whole.steps, wanted)
  assert whole.batch @ whole.steps == 4 * 5 * steps - left
  if steps == 15:  # Without the carry the third stage has a step less.
    assert wanted[2] == 4
    assert 5 * steps // 20 == 3


def test_whole_seesaw_rounds_batches_first_and_carries_carries():
  factor = [1.0, 0.7, 0.5, 0.3, 0.2]
  decay = theory.stages_of_steps(factor, 5, 10)
  whole = theory.seesaw(decay, 2.0, whole=True)
  batches = [round(5 / x) for x in factor]
  np.testing.assert_array_equal(whole.batch, batches)
  wanted, _ = _carried([50] * 5, batches)
  np.testing.assert_array_equal(whole.steps, wanted)
  np.testing.assert_allclose(whole.eta, np.sqrt(factor))


def test_stages_without_a_step_are_said():
  decay = theory.stages_of_steps(0.5 ** np.arange(4), 5, 6)
  # Batches 5, 10, 20, 40 on 30 samples each: 6, 3, 1 (10 left), 1.
  whole = theory.seesaw(decay, 2.0, whole=True)
  np.testing.assert_array_equal(whole.steps, [6, 3, 1, 1])
  short = theory.stages_of_steps(0.5 ** np.arange(4), 5, 3)
  # On 15 samples: 3, 1 (5 left), 1, and 15 of 40.
  with pytest.warns(UserWarning, match=r"1 of 4 stages \(the first is stage 3"):
    whole = theory.seesaw(short, 2.0, whole=True)
  np.testing.assert_array_equal(whole.steps, [3, 1, 1])
  np.testing.assert_array_equal(whole.batch, [5, 10, 20])
  np.testing.assert_allclose(whole.eta, 0.5 ** (np.arange(3) / 2))
  with pytest.raises(ValueError, match="1 of 1 stages .*more samples"):
    theory.seesaw(theory.stages_of_steps(0.5, 4, 0.5), 2.0, whole=True)
  with pytest.raises(ValueError, match="must be > 0: a step size of 0"):
    theory.seesaw(theory.stages_of_steps([1.0, 0.0], 4, 9), 2.0)
  with pytest.raises(ValueError, match=r"1 of 2 stages \(the first is stage 1"):
    theory.unroll(theory.stages_of_steps([1.0, 0.5], 4, [9, 0]))
  with pytest.raises(ValueError, match="1 of 3 stages"):
    theory.step_decay(1.0, [3, 0, 2], 2.0)
  with pytest.raises(ValueError, match="whole numbers of updates"):
    theory.step_decay(1.0, [3, 1.5], 2.0)
  for options in ({"decay": 0.05}, {"warmup": 0.09}):
    with pytest.raises(ValueError, match="of T=10 updates is less than one"):
      theory.wsd(1.0, 10, **options)
  assert theory.wsd(1.0, 10, 0.1, warmup=0.1).size == 10


@pytest.mark.parametrize("rule", ["nsgd", "sgd"])
@pytest.mark.parametrize("lr_power", [0.0, 0.3, 1.0, None])
def test_seesaw_keeps_its_invariant_and_the_samples(rule, lr_power):
  factor = np.array([1.0, 0.5, 0.2, 0.1])
  decay = theory.stages_of_steps(0.4 * factor, 8, 100)
  ramp = theory.seesaw(decay, 2.0, rule=rule, lr_power=lr_power)
  shrunk, grown = ramp.eta / ramp.eta[0], ramp.batch / ramp.batch[0]
  # "sgd" keeps eta / B, "nsgd" eta / sqrt(B), of the decay it replaces.
  exponent = {"sgd": 1.0, "nsgd": 0.5}[rule]
  np.testing.assert_allclose(shrunk / grown**exponent, factor, rtol=1e-12)
  share = 0.5 if lr_power is None else lr_power
  np.testing.assert_allclose(shrunk, factor**share, rtol=1e-12)
  np.testing.assert_allclose(ramp.batch * ramp.steps, 800, rtol=1e-12)
  fraction = theory.serial_fraction(decay, ramp)
  assert fraction == pytest.approx(np.mean(1 / grown), rel=1e-12)


def test_seesaw_of_noise_dominated_sgd_has_the_risk_of_the_decay():
  """For small eta lam the risk depends on eta / B and samples alone."""
  lam, m0, eta, batch = 0.02, 1.0, 0.05, 4

  def end(stages):  # One direction, the recursion as a loop.
    z = m0
    for e, B, n in zip(*stages, strict=True):
      for _ in range(int(n)):
        z += -2 * e * lam * z + (1 + 1 / B) * (e * lam) ** 2 * z
        z += e**2 / B * lam * (lam * z + 1.0)
    return z * lam / 2

  decay = theory.stages_of_steps(eta * 0.5 ** np.arange(4), batch, 4096)
  ramp = theory.seesaw(decay, 2.0, rule="sgd", lr_power=0.0)
  assert end(ramp) == pytest.approx(end(decay), rel=5e-3)
  wrong = theory.seesaw(decay, 2.0, rule="nsgd", lr_power=0.0)
  assert abs(end(wrong) / end(decay) - 1) > 0.02


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"alpha": 1.0}, "alpha=1.0"),
    ({"alpha": 2.0, "rule": "adam"}, "rule='adam'"),
  ],
)
def test_bad_ramps_are_named(options, message):
  decay = theory.stages_of_steps([1.0, 0.5], 8, 100)
  with pytest.raises(ValueError, match=message):
    theory.seesaw(decay, **options)
