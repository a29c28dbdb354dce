"""The update: accumulation, clipping, averaging, and refusing bad numbers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from lm.step import build, state, update

_PAD = 0


class _Sums(NamedTuple):
  loss: jax.Array
  z_loss: jax.Array
  weight: jax.Array
  correct: jax.Array


def _loss(params, tokens):
  """Summed squared error of a linear model; pads weigh nothing."""
  x, y = tokens[:, :-1].astype(jnp.float32), tokens[:, 1:]
  error = jnp.square(params["w"] * x + params["b"] - y)
  weight = (y != _PAD).astype(jnp.float32)
  z_loss = jnp.square(params["b"]) * jnp.sum(weight)
  return _Sums(
    jnp.sum(error * weight), z_loss, jnp.sum(weight), jnp.sum(weight * 0)
  )


_PARAMS = {"w": jnp.float32(0.5), "b": jnp.float32(0.1)}


def _rows(shape, pads=0, seed=0):
  rows = np.random.default_rng(seed).integers(1, 5, shape).astype(np.int32)
  if pads:
    rows[0, 0, -pads:] = _PAD
  return jnp.asarray(rows)


def _make(tx=None, **changes):
  options = {"clip_norm": 0.0, "z_loss": 0.0, "pad_id": _PAD}
  tx = optax.with_extra_args_support(tx or optax.sgd(0.01))
  config = update.StepConfig(**options | changes)
  train_step = update.make_train_step(_loss, tx, lambda count: 0.01, config)
  return jax.jit(train_step), state.init_state(_PARAMS, tx)


def _objective(params, rows, z_loss=0.0):
  sums = _loss(params, rows)
  return (sums.loss + z_loss * sums.z_loss) / sums.weight


@pytest.mark.parametrize("pads", [0, 3])
@pytest.mark.parametrize("shape", [(1, 4, 6), (2, 2, 6), (4, 1, 6)])
def test_update_is_that_of_the_whole_batch(shape, pads):
  """Unequal weights of the microbatches must not matter."""
  rows = _rows((1, 4, 6), pads).reshape(shape)
  train_step, begin = _make(z_loss=0.3)
  after, metrics = train_step(begin, rows, np.int32(shape[0]))
  flat = rows.reshape(-1, 6)
  value, grads = jax.value_and_grad(_objective)(_PARAMS, flat, 0.3)
  expected = jax.tree.map(lambda p, g: p - 0.01 * g, _PARAMS, grads)
  for name, leaf in expected.items():
    np.testing.assert_allclose(after.params[name], leaf, rtol=1e-6)
  total = metrics["train/loss"] + 0.3 * metrics["train/z_loss"]
  np.testing.assert_allclose(total, value, rtol=1e-6)
  np.testing.assert_allclose(
    metrics["train/grad_norm"], optax.tree.norm(grads), rtol=1e-6
  )


def test_only_the_first_n_microbatches_count_and_n_compiles_nothing():
  train_step, begin = _make()
  rows = _rows((4, 2, 6))
  for n in (1, 2, 3):
    poisoned = rows.at[n:].set(1000)
    got, _ = train_step(begin, poisoned, np.int32(n))
    want, _ = train_step(begin, rows, np.int32(n))
    assert state.digest(got.params) == state.digest(want.params)
  assert train_step._cache_size() == 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_divisor_counts_the_targets_of_the_first_n_microbatches(n):
  """Against NumPy: a buffer larger than the batch must not shrink gradients."""
  rows = _rows((4, 2, 6), pads=2)
  train_step, begin = _make()
  after, metrics = train_step(begin, rows, np.int32(n))
  used = np.asarray(rows[:n], np.float64).reshape(-1, 6)
  x, y = used[:, :-1], used[:, 1:]
  w, b = (float(_PARAMS[name]) for name in ("w", "b"))
  weight, error = y != _PAD, w * x + b - y
  total = weight.sum()
  gradient = 2 * (weight * error * x).sum() / total
  loss = (weight * error**2).sum() / total
  np.testing.assert_allclose(metrics["train/loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(after.params["w"], w - 0.01 * gradient, rtol=1e-5)


def test_the_logged_rate_is_the_one_that_moved_the_weights():
  """Against NumPy: plain SGD moves by rate times gradient, nothing else."""
  rates = np.array([0.0, 0.01, 0.03, 0.02])
  schedule = lambda count: jnp.asarray(rates, jnp.float32)[count]  # noqa: E731
  tx = optax.with_extra_args_support(optax.sgd(schedule))
  config = update.StepConfig(0.0, 0.0, 0.0, _PAD, details=True)
  train_step = jax.jit(update.make_train_step(_loss, tx, schedule, config))
  now = state.init_state(_PARAMS, tx, 0.0)
  for k, rate in enumerate(rates):
    before = np.array([now.params[name] for name in "wb"], np.float64)
    now, metrics = train_step(now, _rows((1, 4, 6), seed=k), np.int32(1))
    moved = np.array([now.params[name] for name in "wb"], np.float64) - before
    applied = np.linalg.norm(moved) / metrics["train/grad_norm"]
    np.testing.assert_allclose(applied, rate, rtol=1e-3)
    np.testing.assert_allclose(metrics["train/learning_rate"], rate, rtol=1e-6)


def test_clipping_bounds_the_gradient_and_reports_it():
  rows = _rows((1, 4, 6))
  grads = jax.grad(_objective)(_PARAMS, rows[0])
  norm = optax.tree.norm(grads)
  train_step, begin = _make(clip_norm=float(norm) / 4, details=True)
  after, metrics = train_step(begin, rows, np.int32(1))
  np.testing.assert_allclose(metrics["train/update_norm"], 0.01 * norm / 4)
  assert metrics["train/clip_fraction"] == 1
  np.testing.assert_allclose(
    after.params["w"], _PARAMS["w"] - 0.01 * grads["w"] / 4, rtol=1e-6
  )


@pytest.mark.parametrize(
  "tx",
  [
    optax.adamw(1e-2),
    optim.average_weights(optax.sgd(1e-2, 0.9), names=("ema:0.9", "age:3")),
  ],
)
def test_a_bad_number_changes_nothing_and_stops_all_later_updates(tx):
  train_step, begin = _make(tx)
  good = _rows((1, 4, 6))
  state_1, _ = train_step(begin, good, np.int32(1))

  def bad_loss(params, tokens):
    sums = _loss(params, tokens)
    nan = jnp.where(tokens[0, 0] == 77, jnp.nan, 0.0)
    return sums._replace(loss=sums.loss + nan * params["w"])

  config = update.StepConfig(clip_norm=1.0, z_loss=0.0, pad_id=_PAD)
  tx = optax.with_extra_args_support(tx)
  train_step = jax.jit(
    update.make_train_step(bad_loss, tx, lambda c: 0.0, config)
  )
  state_2, metrics = train_step(state_1, good.at[0, 0, 0].set(77), np.int32(1))
  assert bool(metrics["halted"])
  assert int(metrics["step"]) == 1
  sound = state_2._replace(halted=state_1.halted)
  assert state.digest(sound) == state.digest(state_1)
  state_3, metrics = train_step(state_2, good, np.int32(1))
  assert state.digest(state_3) == state.digest(state_2)
  assert bool(metrics["halted"])


def test_leaf_statistics():
  values = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)
  found = update.leaf_statistics(params={"a": {"b": jnp.asarray(values)}})
  np.testing.assert_allclose(found["leaf/params/a/b/mean"], values.mean())
  np.testing.assert_allclose(found["leaf/params/a/b/std"], values.std())
  rms = np.sqrt(np.mean(values**2))
  np.testing.assert_allclose(found["leaf/params/a/b/rms"], rms, rtol=1e-6)


def test_the_model_learns_and_the_state_is_donated(tiny):
  config = build.resolve(
    tiny.config(mesh__data=1), build.find_data(tiny.config())
  )
  parts = build.build(config, jax.devices()[:1])
  with jax.set_mesh(parts.mesh):
    now = build.init_state(parts)
    train_step = build.compile_step(parts)
    rows = np.random.default_rng(0).integers(3, 90, parts.buffer_shape)
    buffer = build.put_buffer(parts, rows.astype(np.int32))
    losses = []
    for _ in range(6):
      before = now
      now, metrics = train_step(before, buffer, np.int32(1))
      losses.append(float(metrics["train/loss"]))
  assert losses[-1] < losses[0] - 0.01
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
