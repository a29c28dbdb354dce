"""SOAP where float32 ends: round-off, equal gradients, one large gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.adam import adam_directions

import optim
from optim.matrices import linalg, round_off

BASES_FIRST = dict(weight_decay=0.0, first_step="skip")


def _run(tx, grads, params=None):
  """Updates for a list of trees."""
  params = jax.tree.map(jnp.zeros_like, grads[0]) if params is None else params
  state, update, result = tx.init(params), jax.jit(tx.update), []
  for g in grads:
    updates, state = update(g, state, params)
    result.append(updates)
  return result


def _low_rank(shape, rank, steps=30, scale=1.0):
  """Gradients A B_t with one A, and an orthonormal basis of A's range."""
  rng = np.random.default_rng(rank)
  left = np.linalg.qr(rng.normal(size=(shape[0], rank)))[0]
  grads = [
    (scale * left @ rng.normal(size=(rank, shape[1]))).astype(np.float32)
    for _ in range(steps)
  ]
  return grads, left


def _off(total, left):
  """The share of a sum of updates that leaves the range of the gradients."""
  total = np.asarray(total, np.float64)
  off = total - left @ (left.T @ total)
  return np.linalg.norm(off) / np.linalg.norm(total)


@pytest.mark.parametrize("first_step", ["skip", "use_current"])
@pytest.mark.parametrize(
  "options",
  [
    dict(),
    dict(one_sided=True),
    dict(factorized=True),
    dict(refresh="cholesky", stagger=False, precondition_frequency=4),
    dict(square_fields=()),
    dict(inner=optax.scale_by_lion(0.9, 0.99)),
    dict(inner=optax.scale_by_adam(0.95, 0.95)),
  ],
  ids=[
    "adam",
    "one_sided",
    "factorized",
    "cholesky",
    "squares_left",
    "lion",
    "optax_adam",
  ],
)
def test_nothing_moves_where_no_gradient_is(options, first_step):
  # The left bases are all that matters, so the right side is long.
  grads, left = _low_rank((12, 16), rank=1)
  tx = optim.soap(1e-2, first_step=first_step, weight_decay=0.0, **options)
  assert _off(sum(_run(tx, grads)), left) < 1e-4


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e18])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_nothing_moves_off_any_rank_at_any_scale(rank, scale):
  grads, left = _low_rank((12, 16), rank, scale=scale)
  tx = optim.soap(1e-2, **BASES_FIRST)
  total = sum(_run(tx, grads))
  assert np.all(np.isfinite(total))
  assert _off(total, left) < 1e-4


def test_nothing_moves_in_blocks_and_tensors():
  grads, left = _low_rank((12, 16), rank=1)
  tensor = dict(dimension_numbers=optim.DimensionNumbers(sides=(0, 1, 2)))
  tx = optim.soap(1e-2, **BASES_FIRST, **tensor)
  updates = sum(_run(tx, [g.reshape(12, 4, 4) for g in grads]))
  assert _off(np.reshape(updates, (12, 16)), left) < 1e-4
  tx = optim.soap(1e-2, **BASES_FIRST, block_size=6)
  updates = np.asarray(sum(_run(tx, grads)))
  for half in (slice(0, 6), slice(6, 12)):
    part = left[half] / np.linalg.norm(left[half])
    assert _off(updates[half], part) < 1e-4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rounded_gradients_move_nothing_either(dtype):
  # Their rounding is a gradient in every direction, of a size that is known.
  grads, left = _low_rank((48, 64), rank=1)
  tx = optim.soap(1e-2, **BASES_FIRST)
  total = sum(
    np.asarray(u, np.float64)
    for u in _run(tx, [jnp.asarray(g, dtype) for g in grads])
  )
  # What is left is the rounding of the updates.
  assert _off(total, left) < 0.01


@pytest.mark.parametrize(("rows", "columns"), [(12, 16), (64, 64), (40, 200)])
def test_round_off_is_below_a_third_of_the_threshold(rows, columns):
  # The threshold of the docstring in float64, against the error itself.
  rng, worst = np.random.default_rng(0), 0.0
  for rank in (1, 3):
    a, b = rng.normal(size=(rows, rank)), rng.normal(size=(rank, columns))
    g = jnp.asarray(a @ b, jnp.float32)
    left = linalg.eigenbasis((g @ g.T)[None])
    right = linalg.eigenbasis((g.T @ g)[None])
    turned = np.asarray(left[0].T @ g @ right[0], np.float64)
    square = turned**2
    power = square.sum(0, keepdims=True) + square.sum(1, keepdims=True)
    power = power + square.sum() / min(rows, columns)
    # Directions in the range of neither side's gradients.
    square[:rank, :rank] = 0
    worst = max(worst, np.max(np.sqrt(square / power)) / 2.0**-23)
    kept = round_off.without_round_off(jnp.asarray(turned[None]), (left, right))
    np.testing.assert_array_equal(
      np.asarray(kept[0] != 0), turned**2 >= (16 * 2.0**-23) ** 2 * power
    )
  assert 0.1 < worst < 16 / 3


def test_small_gradients_are_kept():
  # One part in 10^5 is far above round-off; at first they are Adam's steps.
  g = np.diag(10.0 ** -np.arange(6.0)).astype(np.float32)
  updates = _run(optim.scale_by_soap(eps=0.0, first_step="use_current"), [g])[0]
  np.testing.assert_allclose(updates, np.eye(6), atol=1e-4)
  # A basis that is the identity still has no round-off to remove.
  g = np.outer(10.0 ** -np.arange(8.0), np.ones(4)).astype(np.float32)
  updates = _run(optim.scale_by_soap(first_step="identity", eps=0.0), [g])[0]
  np.testing.assert_allclose(updates, np.ones((8, 4)), rtol=1e-5)


def test_a_first_step_of_round_off_is_damped():
  # In float64 a part of 1e-9 is no round-off of the rotation.
  with jax.enable_x64(True):
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    g = jnp.asarray(turn @ np.diag([1, 1e-2, 1e-5, 1e-9]) @ turn.T)
    tx = optim.scale_by_soap(eps=0.0, first_step="use_current")
    first, second = map(np.asarray, _run(tx, [g, g]))
  inside = turn.T @ first @ turn
  np.testing.assert_allclose(inside, np.diag([1, 1, 1, 1e-3]), atol=1e-5)
  np.testing.assert_allclose(np.diag(turn.T @ second @ turn), 1, atol=0.2)


@pytest.mark.parametrize("power", [-0.5, -1.0])
def test_diagonal_preconditioners_move_nothing_off_the_gradients(power):
  grads, left = _low_rank((8, 6), rank=1)
  rest = np.random.default_rng(0).normal(size=(8, 7))
  basis = np.linalg.qr(np.concatenate([left, rest], axis=1))[0]
  whole = jnp.asarray(np.kron(basis, np.eye(6)), jnp.float32)
  tx = optim.scale_by_diagonal_preconditioner(power, whole)
  assert _off(sum(_run(tx, grads)), left) < 1e-4


@pytest.mark.parametrize("options", [dict(), dict(factorized=True)], ids=str)
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("spike", [30.0, 1e2, 1e4])
def test_updates_after_a_spike_are_not_longer_than_adams(spike, size, options):
  rng, at = np.random.default_rng(size), 15
  grads = [rng.normal(size=(size, size)).astype(np.float32) for _ in range(30)]
  grads[at] *= spike
  soap = _run(optim.scale_by_soap(first_step="identity", **options), grads)
  adam = adam_directions(grads, 0.95, 0.95, 1e-8)
  longest = [
    max(np.sqrt(np.mean(np.square(u))) for u in run[at:])
    for run in (soap, adam)
  ]
  assert longest[0] < 1.1 * longest[1]


def _full_batch(dtype, steps=20, sharding=None, **options):
  """Updates of a small network from one batch again and again, and its loss."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(64, 24)), rng.normal(size=(64, 8))
  params = dict(a=rng.normal(size=(24, 48)) / 5, b=rng.normal(size=(48, 8)) / 7)
  x, y, params = jax.tree.map(lambda v: jnp.asarray(v, dtype), (x, y, params))
  if sharding is not None:
    x, y = jax.device_put((x, y), sharding)
  tx = optim.soap(1e-2, weight_decay=0.0, **options)

  def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)

  @jax.jit
  def step(params, state, x, y):  # Closed over, x and y would not be sharded.
    updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state, updates

  state, result = tx.init(params), []
  for _ in range(steps):
    params, state, updates = step(params, state, x, y)
    flat = [np.ravel(u) for u in jax.tree.leaves(updates)]
    result.append(np.concatenate(flat).astype(np.float64))
  return result, float(loss(params, x, y))


def test_full_batches_are_those_of_float64():
  single, loss = _full_batch(jnp.float32)
  with jax.enable_x64(True):
    double, wanted = _full_batch(jnp.float64)
  for a, b in zip(single, double, strict=True):
    assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)
  assert loss == pytest.approx(wanted, rel=5e-3)


def test_full_batches_on_eight_devices_are_those_of_one():
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  one, eight = (_full_batch(jnp.float32, sharding=s)[0] for s in (None, rows))
  # Of sums of 20 steps of the rate 0.01; with the first gradient's bases, a
  # weight differs by 0.26.
  assert np.max(np.abs(sum(one) - sum(eight))) < 0.05


def test_equal_gradients_accumulated_are_the_gradient():
  # The mean of two gradients that differ is the third but for its round-off.
  grads, _ = _low_rank((12, 16), rank=5, steps=1)
  noise = np.random.default_rng(1).normal(size=(12, 16)).astype(np.float32)
  halves = [grads[0] + noise, grads[0] - noise]
  tx = optim.soap(1e-2, weight_decay=0.0)
  plain = _run(tx, grads * 20)
  multi = _run(optax.MultiSteps(tx, 2), halves * 20)[1::2]
  for a, b in zip(plain, multi, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_normalized_updates_have_the_length_that_is_written():
  rng = np.random.default_rng(0)
  grads = [rng.normal(size=(8, 8)).astype(np.float32) for _ in range(12)]
  for corrected in (True, False):
    tx = optim.scale_by_soap(normalize=True, bias_correction=corrected)
    for t, u in enumerate(_run(tx, grads), start=1):
      decay = 0.95**t
      wanted = np.sqrt(1 - decay) / (1 - decay) if corrected else 1.0
      np.testing.assert_allclose(np.sqrt(np.mean(u**2)), wanted, rtol=1e-4)
