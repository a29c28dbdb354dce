"""A run made longer: refused where its past would have been another."""

import numpy as np
import pytest

from lm.config import errors
from lm.config.errors import ConfigError
from lm.runs import length, metrics, resume
from lm.step import build

_OLD, _NEW = 40, 60
_STEPS = {"schedule__unit": "steps", "schedule__warmup": 4.0}
_GN = {
  "optim__name": "gauss_newton", "optim__kwargs": {},
  "gauss_newton__inner_steps": 2, "schedule__name": "constant",
  "schedule__warmup": 0.0, "data__batch_size": 24, "train__microbatch_size": 8,
}  # fmt: skip
_MICRO = _GN | {
  "optim__name": "gauss_newton_microsteps", "data__batch_size": 8,
  "train__microbatch_size": 0,
}  # fmt: skip
_LOTION = {
  "quant__method": "lotion", "quant__strength": 2.0, "schedule__name":
  "constant",
} | _STEPS  # fmt: skip


def _inner(kind):
  return {"gauss_newton__inner_schedule": kind}


# Changes of the tiny run, updates made, and whether 60 instead of 40 updates
# are refused.
_CASES = [
  ({"schedule__name": "cosine"}, 20, True),
  ({"schedule__name": "cosine"}, _OLD, True),
  ({"schedule__name": "cosine"} | _STEPS, 20, True),
  ({"schedule__name": "cosine"} | _STEPS, 3, False),  # Both warm up until 4.
  ({"schedule__name": "linear"} | _STEPS, 20, True),
  ({"schedule__name": "wsd", "schedule__decay": 8.0} | _STEPS, 38, True),
  ({"schedule__name": "wsd", "schedule__decay": 8.0} | _STEPS, 20, False),
  ({"schedule__name": "wsd"}, 20, True),  # A warm-up of a tenth.
  ({"schedule__name": "constant"}, 20, True),
  ({"schedule__name": "constant", "schedule__warmup": 0.0}, 20, False),
  ({"schedule__name": "constant"} | _STEPS, _OLD, False),
  ({"schedule__name": "inverse_sqrt"} | _STEPS, _OLD, False),
  ({"schedule__name": "inverse_sqrt"}, 20, True),
  (
    {"schedule__name": "inverse_sqrt", "schedule__offset": 9.0} | _STEPS,
    _OLD, False,
  ),
  (_GN | _inner("constant_with_inner_cosine"), 20, False),
  (_GN | _inner("constant_with_inner_cosine") | {"schedule__warmup": 0.2},
   20, True),
  (_GN | _inner("constant_with_inner_cosine") | _STEPS, 20, False),
  (_GN | _inner("constant"), 20, False),
  (_GN | _inner("global_cosine"), 1, True),
  (_GN | _inner("cosine_with_global_schedule"), 20, True),
  (_MICRO | _inner("global_cosine"), 20, True),
  (_MICRO | _inner("constant"), 20, False),
  (_LOTION, 20, True),
  (_LOTION, 1, False),
  (_LOTION | {"quant__warmup": 0.0}, 20, False),
]  # fmt: skip


def _resolved(tiny, changes, **more):
  config = tiny.config(**(changes | more))
  return build.resolve(config, build.find_data(config))


def _saved(config, step):
  tokens = step * config.tokens_per_step
  clock = resume.Clock(step, step * config.data.batch_size, tokens)
  return resume.to_json(clock, config, "x")


@pytest.mark.parametrize(("changes", "step", "refused"), _CASES)
def test_what_follows_from_the_length_is_not_changed_silently(
  tiny, capsys, changes, step, refused
):
  then = _resolved(tiny, changes, train__num_steps=_OLD)
  now = _resolved(tiny, changes, train__num_steps=_NEW)
  saved = _saved(then, step)
  assert resume.check(saved, then, "x").step == step
  assert capsys.readouterr().out == ""
  if not refused:
    assert resume.check(saved, now, "x").step == step
    return
  with pytest.raises(ConfigError, match=f"num_steps={_NEW}, was .*={_OLD}:"):
    resume.check(saved, now, "x")
  allowed = _resolved(
    tiny, changes, train__num_steps=_NEW, schedule__allow_new_length=True
  )
  assert resume.check(saved, allowed, "x").step == step
  said = capsys.readouterr().out
  assert said.count("\n") == 1
  assert f"update {step - 1} was" in said


def test_the_rates_before_and_after_are_those_of_the_cosines(tiny):
  then = _resolved(tiny, {}, train__num_steps=_OLD)
  now = _resolved(tiny, {}, train__num_steps=_NEW)

  def cosine(t, total):
    share = (t - 0.1 * total) / (0.9 * total)
    return 1e-3 * (0.1 + 0.9 * (1 + np.cos(np.pi * share)) / 2)

  before, after = cosine(_OLD - 1, _OLD), cosine(_OLD, _NEW)
  words = f"update 39 was {before:.2g}, that of update 40 is now {after:.2g}"
  assert "0.0001," in words
  with pytest.raises(ConfigError, match=words):
    length.check(then, now, _OLD)
  assert length.check(then, now, 0) == ""


def test_shorter_is_no_better_than_longer(tiny):
  changes = {"schedule__name": "linear"} | _STEPS
  then = _resolved(tiny, changes, train__num_steps=_NEW)
  now = _resolved(tiny, changes, train__num_steps=_OLD)
  for step in (20, 50):
    with pytest.raises(ConfigError, match="learning rate"):
      length.check(then, now, step)


def test_a_tail_that_has_begun_is_of_the_old_length(tiny):
  changes = {"schedule__name": "constant"} | _STEPS
  then, now = (
    _resolved(tiny, changes, train__num_steps=n) for n in (_OLD, _NEW)
  )
  for config in (then, now):
    object.__setattr__(config.optim, "averages", ("tail:0.5", "age:25"))
  assert "'tail:0.5' of update 19 was 0" in length.check(then, now, 20)
  with pytest.raises(ConfigError, match="update 24 was 5, .* is now 0"):
    length.check(then, now, 25)


def test_a_cosine_run_is_made_longer_only_if_told(tiny, tmp_path):
  cosine = {"schedule__name": "cosine"}
  assert tiny.run(tmp_path, **cosine, train__num_steps=6)[0] == 0
  code, output = tiny.run(tmp_path, **cosine, train__num_steps=9)
  assert code == errors.BAD_INPUT
  assert "--config.schedule.allow_new_length=True" in output
  assert "train.init_from" in output
  code, output = tiny.run(
    tmp_path, **cosine, train__num_steps=9, schedule__allow_new_length=True
  )
  assert code == 0, output
  line = "config.train.num_steps=9, was config.train.num_steps=6: the learning "
  assert line in output
  column = metrics.read(tmp_path)["train/learning_rate"]
  rates = column.values  # Of update k, the k + 1st, in the line of step k + 1.
  assert column.steps.tolist() == list(range(1, 10))
  share = np.array([5 - 0.6, 6 - 0.9]) / np.array([5.4, 8.1])
  wave = (1 + np.cos(np.pi * share)) / 2
  np.testing.assert_allclose(rates[5:7], 1e-3 * (0.1 + 0.9 * wave), rtol=1e-4)


@pytest.mark.slow
def test_two_processes_make_a_run_longer(group, tmp_path):
  constant = {"schedule__name": "constant"} | _STEPS
  for steps in (6, 9):
    group.run(tmp_path, 2, 1, train__num_steps=steps, **constant)
  wsd = {"train__num_steps": 12, "schedule__name": "cosine"} | _STEPS
  _, outputs = group.join(group.start(tmp_path / "w", 2, 1, **wsd))
  codes, outputs = group.join(
    group.start(tmp_path / "w", 2, 1, **wsd | {"train__num_steps": 15})
  )
  assert codes == [errors.BAD_INPUT] * 2, outputs
  assert all("allow_new_length" in output for output in outputs)
