"""`config.gauss_newton` in the trainer: the same program, saves and metrics."""

import signal

import jax
import numpy as np
import pytest
import waiting

import optim
from lm.config import load
from lm.config.errors import ConfigError
from lm.runs import checkpoint, metrics
from lm.step import build
from ml_collections_configs import base

# N = 4 microbatches of 8 rows, and one more for the line search.
_OUTER = {
  "optim__name": "gauss_newton",
  "optim__kwargs": {},
  "optim__learning_rate": 0.01,
  "gauss_newton__inner_steps": 4,
  "schedule__name": "constant",
  "schedule__warmup": 0.0,
  "data__batch_size": 40,
  "train__microbatch_size": 8,
}
_MICRO = _OUTER | {
  "optim__name": "gauss_newton_microsteps",
  "data__batch_size": 8,
  "train__microbatch_size": 0,
}
_AVERAGED = {"optim__averages": ("ema:0.9",)}
_VARIANTS = {
  "full": {},
  "layerwise": {
    "gauss_newton__scope": "layerwise", "model__layers": "unroll",
  },
  "chunked prox-linear": {
    "gauss_newton__mode": "prox_linear", "model__loss_chunk": 64,
  },
  "quadratic search": {"gauss_newton__line_search": "quadratic"},
  "no search": {
    "gauss_newton__line_search": "none", "data__batch_size": 32,
  },
}  # fmt: skip


def _parts(tiny, changes, devices=1, **mesh):
  sizes = {"mesh__data": devices, "mesh__fsdp": 1, "mesh__tensor": 1} | mesh
  config = tiny.config(**(changes | sizes))
  config = build.resolve(config, build.find_data(config))
  return build.build(config, jax.devices()[:devices])


def _rows(parts, first, count):
  """Rows of a stream that does not depend on the size of a batch."""
  length = parts.buffer_shape[2]
  rows = [
    np.random.default_rng(i).integers(2, 256, length)
    for i in range(first, first + count)
  ]
  return np.array(rows, np.int32)


def _train(parts, steps):
  with jax.set_mesh(parts.mesh):
    now = build.init_state(parts)
    train_step = build.compile_step(parts)
    count = parts.buffer_shape[0] * parts.buffer_shape[1]
    lines = []
    for step in range(steps):
      rows = _rows(parts, step * count, count).reshape(parts.buffer_shape)
      buffer = build.put_buffer(parts, rows)
      now, metrics = train_step(now, buffer, np.int32(1))
      lines.append({key: float(value) for key, value in metrics.items()})
    return now, lines


@pytest.mark.parametrize("name", _VARIANTS)
def test_every_variant_learns(tiny, name):
  _, lines = _train(_parts(tiny, _OUTER | _VARIANTS[name]), steps=4)
  assert lines[-1]["train/loss"] < lines[0]["train/loss"] - 0.1
  assert lines[-1]["step"] == 4
  searched = 0 if name == "no search" else 256
  assert lines[-1]["gn/solve_tokens"] == 4 * 256
  assert lines[-1]["gn/search_tokens"] == searched
  assert 0 < lines[-1]["gn/alpha"] <= 1


def test_a_chunked_head_changes_nothing(tiny):
  whole, parts = (
    _train(_parts(tiny, _OUTER | {"model__loss_chunk": chunk}), 2)[1]
    for chunk in (0, 64)
  )
  for a, b in zip(whole, parts, strict=True):
    assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-5)


@pytest.mark.parametrize(
  "name", ["full", pytest.param("layerwise", marks=pytest.mark.slow)]
)
def test_microsteps_are_the_outer_step_in_parts(tiny, name):
  """The same rows, one microbatch an update: the same weights."""
  changes = _VARIANTS[name] | _AVERAGED
  outer, _ = _train(_parts(tiny, _OUTER | changes), steps=3)
  parts = _parts(tiny, _MICRO | changes | {"train__num_steps": 5 * 6})
  micro, lines = _train(parts, steps=15)
  for name in (None, "ema:0.9"):
    points = [
      optim.eval_params(now.opt_state, now.params, name)
      for now in (outer, micro)
    ]
    for a, b in zip(*map(jax.tree.leaves, points), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  assert int(micro.opt_state.count) == int(outer.opt_state.count) == 3
  assert lines[-1]["gn/outer_steps"] == 3
  assert lines[-2]["gn/outer_steps"] == 2
  assert lines[-1]["gn/solve_tokens"] == 4 * 256


def test_the_logged_rate_is_that_of_the_first_inner_step_made(tiny):
  """Against NumPy: a cosine of the inner steps, over outer ones of 4 + 1."""
  cosine = {"gauss_newton__inner_schedule": "global_cosine"}
  steps = {"train__num_steps": 3}
  _, lines = _train(_parts(tiny, _OUTER | cosine | steps), steps=3)
  end = 0.1 * 0.01
  wave = 1 + np.cos(np.pi * np.arange(12) / 12)
  rates = end + (0.01 - end) * wave / 2
  found = [line["train/learning_rate"] for line in lines]
  np.testing.assert_allclose(found, rates[::4], rtol=1e-5)
  steps = {"train__num_steps": 3 * 5}
  _, lines = _train(_parts(tiny, _MICRO | cosine | steps), steps=9)
  found = [line["train/learning_rate"] for line in lines]
  solved = [0, 1, 2, 3, 5, 6, 7, 8]  # The fifth searches.
  np.testing.assert_allclose(np.array(found)[solved], rates[:8], rtol=1e-5)


def test_the_displacement_lies_as_the_weights_do(tiny):
  sizes = {"model__D": 64, "model__F": 128}
  parts = _parts(tiny, _OUTER | sizes, 8, mesh__data=4, mesh__fsdp=2)
  delta = parts.shardings.opt_state.delta["blocks"]["0"]["mlp"]["in"]
  assert delta == parts.shardings.params["blocks"]["0"]["mlp"]["in"]
  assert delta.spec != jax.sharding.PartitionSpec()


def test_a_loss_that_is_not_finite_halts_with_sound_weights(tiny):
  parts = _parts(tiny, _OUTER)
  with jax.set_mesh(parts.mesh):
    now = build.init_state(parts)
    poisoned = jax.tree.map(lambda x: x * np.nan, now.params)
    bad = jax.device_put(poisoned, parts.shardings.params)
    train_step = build.compile_step(parts)
    rows = _rows(parts, 0, 40).reshape(parts.buffer_shape)
    buffer = build.put_buffer(parts, rows)
    now, metrics = train_step(now._replace(params=bad), buffer, np.int32(1))
    assert bool(metrics["halted"])
    assert int(now.step) == 0
    now, metrics = train_step(now, buffer, np.int32(1))
    assert bool(metrics["halted"])
    assert np.isnan(metrics["train/loss"])


@pytest.mark.parametrize(
  "changes",
  [
    pytest.param(_OUTER, id="outer", marks=pytest.mark.slow),
    pytest.param(_MICRO, id="micro"),
    pytest.param(
      _MICRO | _VARIANTS["layerwise"],
      id="layerwise micro",
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_stopped_run_goes_on_to_the_same_bits(tiny, tmp_path, changes):
  """Within an outer step too: 13 microsteps are two of them and a half."""
  steps = 5 if changes is _OUTER else 13
  changes = changes | {"train__num_steps": steps} | _AVERAGED
  assert tiny.run(tmp_path / "whole", **changes)[0] == 0
  stopped = tmp_path / "stopped"
  process = tiny.start(stopped, **changes, checkpoint__every=1)
  waiting.until(lambda: checkpoint.list_steps(stopped), process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  code, output = tiny.run(stopped, **changes)
  assert code == 0, output
  a, b = metrics.read(tmp_path / "whole"), metrics.read(stopped)
  for key in ("train/loss", "gn/alpha", "gn/grad_norm"):
    assert a[key].values.tolist() == b[key].values.tolist()
  ema = next(key for key in a if "/avg/ema:0.9/" in key)
  assert a[ema].values.tolist() == b[ema].values.tolist()


_WRONG = {
  "rows": (_OUTER | {"data__batch_size": 32}, "batch_size=32 must be 5"),
  "microbatch": (_OUTER | {"train__microbatch_size": 0}, "microbatch_size=8"),
  "schedule": (_OUTER | {"schedule__name": "cosine"}, "schedule.name"),
  "scan": (
    _OUTER | _VARIANTS["layerwise"] | {"model__layers": "scan"}, "unroll",
  ),
  "inner": (_OUTER | {"gauss_newton__optimizer": "gauss_newton"}, "own inner"),
  "argument": (_OUTER | {"optim__kwargs": {"b3": 1}}, "argument of muon"),
  "streamed": (
    _MICRO | {"gauss_newton__line_search": "quadratic"}, "'grid' or 'none'",
  ),
  "rounded": (_OUTER | {"quant__method": "qat"}, "config.quant.method"),
}  # fmt: skip


@pytest.mark.parametrize("case", _WRONG)
def test_a_wrong_configuration_is_refused(tiny, case):
  changes, words = _WRONG[case]
  found = build.problems(tiny.config(**changes))
  assert any(words in problem for problem in found), found


def test_negative_damping_is_refused():
  c = base.get_config()
  c.gauss_newton.damping = -1.0
  with pytest.raises(ConfigError, match=r"gauss_newton.damping=-1"):
    load.from_config_dict(c)
