"""Growing batches: phases, Seesaw's published counts, rates, and whole runs."""

import math
import signal

import jax
import numpy as np
import pytest
import waiting
from hypothesis import given
from hypothesis import strategies as st

from lm.config import ramp as batches
from lm.config.errors import ConfigError
from lm.methods import schedule
from lm.runs import checkpoint, metrics, resume
from lm.step import build

_L = 1024
# 20 tokens a parameter, as the authors count them; their (rows, steps).
_PUBLISHED = {
  3_300_000_000: ((128, 15_524), (256, 7756), (512, 3877)),
  6_600_000_000: ((128, 31_046), (256, 15_511), (512, 7752)),
  13_200_000_000: ((256, 31_021), (512, 15_502), (1024, 7751)),
}


@pytest.mark.parametrize("tokens", _PUBLISHED)
def test_seesaw_needs_the_published_numbers_of_updates(tokens):
  for rows, steps in _PUBLISHED[tokens]:
    milestones = batches.seesaw(rows, tokens, 0.1 * tokens)
    assert len(milestones) == 1 + 24
    # Their data loader cannot have 1 row more than a multiple of 32.
    milestones = [
      m._replace(rows=m.rows + (m.rows % 32 == 1)) for m in milestones
    ]
    last = batches.phases(milestones, tokens, _L)[-1]
    assert last.step + last.updates == steps


def test_seesaw_ends_where_the_paper_says():
  last = batches.seesaw(256, 3_300_000_000, 330_000_000)[-1]
  assert last.rows == int(256 * 1.1**24)
  assert last.rate == pytest.approx(0.319, abs=5e-4)


@pytest.mark.parametrize(("alpha", "saved"), [(1.1, 0.384), (2.0, 0.281)])
def test_seesaw_saves_the_stated_share_of_updates(alpha, saved):
  tokens = 3_300_000_000
  milestones = batches.seesaw(256, tokens, 0.1 * tokens, alpha=alpha)
  last = batches.phases(milestones, tokens, _L)[-1]
  share = (last.step + last.updates) / (tokens / (256 * _L))
  assert 1 - share == pytest.approx(saved, abs=2e-3)


def test_at_the_largest_batch_the_rate_falls_as_the_cosine():
  found = batches.seesaw(64, 10**9, 0, alpha=2.0, max_rows=128)
  assert [m.rows for m in found] == [64, 128, 128, 128]
  half = math.sqrt(0.5)
  rates = [1.0, half, half / 2, half / 4]
  assert [m.rate for m in found] == pytest.approx(rates)


@given(
  st.lists(st.tuples(st.integers(1, 400), st.integers(1, 9)), max_size=5),
  st.integers(1, 9),
  st.integers(1, 2000),
)
def test_phases_are_a_loop_over_updates(steps, first, total):
  milestones, start = [batches.Milestone(0, first)], 0
  for gap, rows in steps:
    start += gap
    milestones.append(batches.Milestone(start, rows))
  found = batches.phases(milestones, total, 3)
  tokens, k, step = 0, 0, 0
  while tokens < total:
    if step and k + 1 < len(milestones) and tokens >= milestones[k + 1].tokens:
      k += 1
    assert batches.tokens_at(found, 3, step) == tokens
    assert batches.phase_at(found, step).rows == milestones[k].rows
    tokens, step = tokens + 3 * milestones[k].rows, step + 1
  assert found[-1].step + found[-1].updates == step


_RAMP = {
  "data__batch_size": 4,
  "train__microbatch_size": 2,
  "train__num_steps": 0,
  "train__num_tokens": 32 * 60,
  "data__batch_schedule": ((0, 4), (32 * 12, 8), (32 * 36, 2)),
}
_ROWS = [4, 4, 4, 8, 8, 8] + 12 * [2]


def _parts(tiny, **changes):
  config = tiny.config(**changes)
  config = build.resolve(config, build.find_data(config))
  return build.build(config, jax.devices()[:1])


def test_rates_follow_tokens(tiny):
  ramp, plain = (
    _parts(tiny, **(_RAMP | changes))
    for changes in ({}, {"data__batch_schedule": ()})
  )
  seen, tokens = [], 0
  for rows in _ROWS:
    seen.append(tokens / (4 * 32))
    tokens += rows * 32
  got = schedule.learning_rate(ramp.config)(np.arange(len(_ROWS)))
  wanted = schedule.learning_rate(plain.config)(np.array(seen, np.float32))
  np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_seesaw_rates_are_warmed_up_and_stepped(tiny):
  parts = _parts(
    tiny, schedule__name="seesaw", schedule__alpha=2.0,
    data__batch_size=4, train__microbatch_size=1, train__num_steps=0,
    train__num_tokens=32 * 4 * 100,
  )  # fmt: skip
  found = batches.of_config(parts.config)
  assert [phase.rows for phase in found] == [4, 8, 16, 32]
  peak = parts.config.optim.learning_rate
  rate = schedule.learning_rate(parts.config)
  assert rate(5) == pytest.approx(0.5 * peak)
  for k, phase in enumerate(found):
    last = phase.step + phase.updates - 1
    assert rate(last) == pytest.approx(peak * 2 ** (-k / 2), rel=1e-5)


def test_lengths_in_tokens_are_of_the_whole_ramp(tiny):
  schedule_ = ((0, 4), (32 * 12, 8))
  run = {
    "data__batch_size": 4, "train__microbatch_size": 2,
    "data__batch_schedule": schedule_, "train__num_steps": 0,
    "train__num_tokens": 32 * 400, "schedule__name": "wsd",
    "schedule__unit": "tokens", "schedule__warmup": 32.0 * 100,
  }  # fmt: skip
  parts = _parts(tiny, **run, schedule__decay=32.0 * 300)
  rate = schedule.learning_rate(parts.config)
  peak = rate(3 + 11)  # 12 + 88 rows.
  assert rate(3 + 10) < peak > rate(3 + 13)
  with pytest.raises(ConfigError, match="exceeds the run, 12800 tok"):
    _parts(tiny, **run, schedule__decay=32.0 * 301)


@pytest.mark.parametrize(
  "changes", [{"train__num_tokens": 32 * 600}, {"train__microbatch_size": 4}]
)
def test_a_ramp_that_would_have_been_another_is_not_resumed(tiny, changes):
  run = {
    "schedule__name": "seesaw", "schedule__alpha": 1.3, "data__batch_size": 4,
    "train__microbatch_size": 1, "train__num_steps": 0,
    "train__num_tokens": 32 * 400,
  }  # fmt: skip
  config = _parts(tiny, **run).config
  step = 60
  tokens = batches.tokens_at(batches.of_config(config), 32, step)
  saved = resume.to_json(resume.Clock(step, tokens // 32, tokens), config, "x")
  assert resume.check(saved, config, "x").tokens == tokens
  other = _parts(tiny, **(run | changes)).config
  with pytest.raises(ConfigError, match=f"num_tokens={32 * 400} and"):
    resume.check(saved, other, "x")


def test_a_literal_ramp_can_be_made_longer(tiny):
  run = _RAMP | {"schedule__name": "constant", "schedule__warmup": 0.0}
  config = _parts(tiny, **run).config
  saved = resume.to_json(resume.Clock(5, 28, 28 * 32), config, "x")
  longer = _parts(tiny, **(run | {"train__num_tokens": 32 * 90})).config
  assert resume.check(saved, longer, "x").step == 5
  saved = resume.to_json(
    resume.Clock(5, 28, 28 * 32), _parts(tiny, **_RAMP).config, "x"
  )
  cosine = _parts(tiny, **(_RAMP | {"train__num_tokens": 32 * 90})).config
  with pytest.raises(ConfigError, match="decides the learning rate"):
    resume.check(saved, cosine, "x")


def test_the_ramp_is_described(tiny):
  run = {"train__num_steps": 0, "train__num_tokens": 32 * 400}
  seesaw = {"schedule__name": "seesaw", "data__batch_size": 4}
  rounded = _parts(tiny, **run, **seesaw, train__microbatch_size=2).config
  exact = _parts(tiny, **run, **seesaw, train__microbatch_size=1).config
  line = batches.describe(rounded)
  assert line.startswith("Batches of 4 to ")
  assert "multiples of 2 " in line
  assert f"{batches.num_steps(rounded)} updates" in line
  assert line.endswith(f"would need {batches.num_steps(exact)}.")
  assert batches.num_steps(exact) < batches.num_steps(rounded)
  assert batches.describe(_parts(tiny, **_RAMP).config).startswith(
    "Batches of 2 to 8 rows in 3 phases"
  )
  assert batches.describe(_parts(tiny).config) == ""


def test_batches_of_all_sizes_are_one_compiled_update(tiny, tmp_path):
  code, output = tiny.run(tmp_path / "run", **_RAMP)
  assert code == 0, output
  columns = metrics.read(tmp_path / "run")
  sizes = columns["train/batch_size"].values.astype(int).tolist()
  assert sizes == _ROWS
  assert columns["tokens"].values[-1] == 32 * sum(_ROWS)
  run = (tmp_path / "run" / "run.json").read_text()
  assert '"compiles_in_loop": 0' in run


def test_a_growing_batch_is_the_sum_of_its_microbatches(tiny):
  """The same rows at once and two at a time."""
  losses = []
  for rows in (2, 8):
    schedule_ = ((0, 8),) if rows == 2 else ()
    parts = _parts(
      tiny, data__batch_size=8, train__microbatch_size=rows,
      data__batch_schedule=schedule_, train__num_steps=0,
      train__num_tokens=32 * 8 * 4,
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(2, 256, (8, 33))
    with jax.set_mesh(parts.mesh):
      now = build.init_state(parts)
      update = build.compile_step(parts)
      buffer = tokens.reshape(parts.buffer_shape).astype(np.int32)
      buffer = build.put_buffer(parts, buffer)
      for _ in range(3):
        now, metrics = update(now, buffer, np.int32(8 // rows))
    losses.append(float(metrics["train/loss"]))
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_a_run_killed_on_the_ramp_goes_on_to_the_same_bits(tiny, tmp_path):
  assert tiny.run(tmp_path / "whole", **_RAMP)[0] == 0
  stopped = tmp_path / "stopped"
  process = tiny.start(stopped, **_RAMP, checkpoint__every=1)
  waiting.until(lambda: checkpoint.list_steps(stopped), process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert tiny.run(stopped, **_RAMP)[0] == 0
  a, b = metrics.read(tmp_path / "whole"), metrics.read(stopped)
  for key in ("train/loss", "train/batch_size", "tokens", "train/grad_norm"):
    assert a[key].values.tolist() == b[key].values.tolist()
