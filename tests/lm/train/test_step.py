"""The update: accumulation, clipping, averaging, and refusing bad numbers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from lm.objectives import view
from lm.probes import leaf_statistics as leaves
from lm.probes import noise_scale
from lm.step import build, state, update

_PAD = 0


class _Sums(NamedTuple):
  loss: jax.Array
  z_loss: jax.Array
  weight: jax.Array
  correct: jax.Array
  aux: dict = {}


def _loss(params, rows):
  """Summed squared error of a linear model; pads weigh nothing."""
  tokens = rows.tokens
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


def _count(tokens):
  return jnp.sum(tokens[:, 1:] != _PAD, axis=1)


def _make(tx=None, loss=_loss, z_loss=0.0, **options):
  tx = optax.with_extra_args_support(tx or optax.sgd(0.01))
  train_step = update.make_train_step(
    update.Loss(loss, _count, z_loss), tx, lambda count: 0.01, **options
  )

  def on_tokens(state, tokens, n):
    index = jnp.arange(tokens[..., 0].size).reshape(tokens.shape[:2])
    return train_step(state, view.Batch(tokens, index), n)

  return jax.jit(on_tokens), state.init_state(_PARAMS, tx)


def _objective(params, rows, z_loss=0.0):
  sums = _loss(params, view.Batch(rows, None))
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
  assert train_step._cache_size() <= 1  # 0: JAX kept no entry.


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_loss_is_divided_by_the_count_of_the_microbatches_that_count(n):
  rows = np.array(_rows((4, 2, 6)))
  for i in range(4):
    rows[i, 0, 6 - i :] = _PAD  # 10, 9, 8, 7 targets.
  train_step, begin = _make()
  _, metrics = train_step(begin, jnp.asarray(rows), np.int32(n))
  x, y = rows[:n, :, :-1].astype(np.float64), rows[:n, :, 1:]
  errors = (0.5 * x + 0.1 - y) ** 2
  assert np.sum(y != _PAD) == [10, 19, 27][n - 1]
  wanted = np.sum(errors[y != _PAD]) / np.sum(y != _PAD)
  np.testing.assert_allclose(metrics["train/loss"], wanted, rtol=1e-6)


def _gradients(rows):
  """NumPy: the gradient (w, b) of the mean loss of some rows."""
  x, y = rows[..., :-1].astype(np.float64), rows[..., 1:]
  slope = 2 * (0.5 * x + 0.1 - y) * (y != _PAD)
  both = np.array([np.sum(slope * x), np.sum(slope)])
  return both / max(np.sum(y != _PAD), 1)


@pytest.mark.parametrize("devices", [1, 2])
def test_squared_norms_of_the_gradients_of_microbatches(devices):
  rows = np.array(_rows((4, 2, 6)))
  rows[1, 0, 3:] = _PAD
  probe = update.Probing(("micro",), noise_scale.measure)
  mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
  with jax.set_mesh(jax.sharding.Mesh(mesh.devices, ("data",))):
    train_step, begin = _make(probing=probe, clip_norm=1e-3)
    plain, _ = _make(clip_norm=1e-3)
    for n in (2, 3):
      after, found = train_step(begin, jnp.asarray(rows), np.int32(n))
      without, _ = plain(begin, jnp.asarray(rows), np.int32(n))
      squares = [np.sum(_gradients(rows[i]) ** 2) for i in range(n)]
      np.testing.assert_allclose(
        found["train/micro_grad_sq"], np.mean(squares), rtol=1e-5
      )
      np.testing.assert_allclose(
        found["train/grad_norm"] ** 2,
        np.sum(_gradients(rows[:n]) ** 2),
        rtol=1e-5,
      )
      assert state.digest(after.params) == state.digest(without.params)
    empty = jnp.asarray(rows).at[2, :, 1:].set(_PAD)  # Has no gradient.
    _, found = train_step(begin, empty, np.int32(3))
    squares = [np.sum(_gradients(rows[i]) ** 2) for i in range(2)]
    np.testing.assert_allclose(
      found["train/micro_grad_sq"], np.mean(squares), rtol=1e-5
    )


def test_frozen_weights_and_rank_one_by_hand():
  """The loss sees W + a b^T; a and b are trained, W is carried."""
  rng = np.random.default_rng(0)
  w, a, b = (rng.normal(size=s) for s in ((4, 3), (4,), (3,)))
  x, y = rng.normal(size=(5, 4)), rng.normal(size=(5, 3))

  def loss(weights, rows):
    del rows
    error = jnp.float32(x) @ weights - jnp.float32(y)
    zero = jnp.zeros(())
    return _Sums(jnp.sum(error**2), zero, zero, zero)

  def seen(params, now):
    return now.frozen + jnp.outer(params["a"], params["b"])

  tx = optax.with_extra_args_support(optax.sgd(0.1))
  train_step = jax.jit(
    update.make_train_step(
      update.Loss(loss, _count), tx, lambda c: 0.1, seen_weights=seen
    )
  )
  trained = {"a": jnp.float32(a), "b": jnp.float32(b)}
  begin = state.init_state(trained, tx, jnp.float32(w))
  batch = view.Batch(_rows((1, 4, 6)), jnp.zeros((1, 4), jnp.int32))
  after, metrics = train_step(begin, batch, np.int32(1))
  count = 4 * 5
  slope = 2 * x.T @ (x @ (w + np.outer(a, b)) - y) / count
  np.testing.assert_allclose(
    after.params["a"], a - 0.1 * slope @ b, rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(
    after.params["b"], b - 0.1 * a @ slope, rtol=1e-5, atol=1e-6
  )
  np.testing.assert_array_equal(after.frozen, begin.frozen)
  norm = np.sqrt(np.sum((slope @ b) ** 2) + np.sum((a @ slope) ** 2))
  np.testing.assert_allclose(metrics["train/grad_norm"], norm, rtol=1e-5)


def test_clipping_bounds_the_gradient_and_reports_it():
  rows = _rows((1, 4, 6))
  grads = jax.grad(_objective)(_PARAMS, rows[0])
  norm = optax.tree.norm(grads)
  details = update.Probing(("state", "grads", "updates"), leaves.measure)
  train_step, begin = _make(clip_norm=float(norm) / 4, probing=details)
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

  def bad_loss(params, rows):
    sums = _loss(params, rows)
    nan = jnp.where(rows.tokens[0, 0] == 77, jnp.nan, 0.0)
    return sums._replace(loss=sums.loss + nan * params["w"])

  train_step, _ = _make(tx, loss=bad_loss, clip_norm=1.0)
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
  found = leaves.leaves(params={"a": {"b": jnp.asarray(values)}})
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
