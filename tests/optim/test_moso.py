"""Laws of MOSO; the authors' run is in test_authors.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def _grads(shape, steps=6, seed=0):
  rng = np.random.default_rng(seed)
  scale = 10.0 ** -np.linspace(0, 1, shape[-1])
  return [
    jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)
    for _ in range(steps)
  ]


def _run(tx, grads):
  state, update, result = tx.init(grads[0]), jax.jit(tx.update), []
  for g in grads:
    updates, state = update(g, state)
    result.append(np.asarray(updates))
  return result, state


@pytest.mark.parametrize(("shape", "side"), [((4, 6), 0), ((6, 4), 1)])
def test_the_factor_is_the_momentums_of_the_shorter_side(shape, side):
  grads = _grads(shape)
  _, state = _run(optim.scale_by_moso(0.8, 0.9), grads)
  m, factor = np.zeros(shape), 0.0
  for g in grads:
    m = 0.8 * m + 0.2 * np.asarray(g)
    factor = 0.9 * factor + 0.1 * (m @ m.T if side == 0 else m.T @ m)
  (bucket,) = state.kronecker.values()
  assert bucket.factors[1 - side] is None
  np.testing.assert_allclose(bucket.factors[side][0], factor, rtol=1e-4)


def test_turning_the_long_side_turns_the_update():
  # V belongs to each column of the long side, so only permutations do.
  grads, order = _grads((4, 6)), np.array([3, 0, 5, 1, 4, 2])
  turn = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
  plain, _ = _run(optim.scale_by_moso(), grads)
  turned, _ = _run(
    optim.scale_by_moso(),
    [jnp.asarray(turn @ g[:, order], jnp.float32) for g in grads],
  )
  for a, b in zip(plain, turned, strict=True):
    np.testing.assert_allclose(turn @ a[:, order], b, atol=2e-3)


def test_the_first_update_is_long_and_the_limit_is_one():
  grads = _grads((16, 24))
  rms = lambda u: np.sqrt(np.mean(np.square(u)))  # noqa: E731
  plain, _ = _run(optim.scale_by_moso(), grads)
  np.testing.assert_allclose(rms(plain[0]), 0.05**-0.5, rtol=0.01)
  limited, _ = _run(optim.scale_by_moso(max_update_rms=0.5), grads)
  for a, b in zip(plain, limited, strict=True):
    np.testing.assert_allclose(a * min(1, 0.5 / rms(a)), b, rtol=1e-4)


def test_refreshes_may_be_staggered():
  grads = [jnp.stack([g, 2 * g, -g]) for g in _grads((3, 4), steps=9)]
  tx = optim.scale_by_moso(
    precondition_frequency=4,
    dimension_numbers=optim.DimensionNumbers((1, 2), stack=0),
  )
  state, update = tx.init(grads[0]), jax.jit(tx.update)
  _, state = update(grads[0], state)
  changes = np.zeros(3)
  for g in grads[1:]:
    old = state.kronecker["3x4_0"].derived[0]
    _, state = update(g, state)
    new = state.kronecker["3x4_0"].derived[0]
    changes += np.abs(new - old).max(axis=(1, 2)) > 0
  np.testing.assert_array_equal(changes, 2)


def test_directions_without_gradient_get_no_step():
  rng = np.random.default_rng(0)
  left = np.linalg.qr(rng.normal(size=(6, 2)))[0]
  grads = [
    jnp.asarray(left @ rng.normal(size=(2, 9)), jnp.float32) for _ in range(12)
  ]
  for u in _run(optim.scale_by_moso(), grads)[0]:
    np.testing.assert_allclose(left @ (left.T @ u), u, atol=1e-4)


def test_other_leaves_get_adam():
  grads = dict(b=jnp.asarray([3.0, -2.0]))
  tx, adam = optim.scale_by_moso(), optax.scale_by_adam(0.95, 0.95)
  updates, _ = tx.update(grads, tx.init(grads))
  wanted, _ = adam.update(grads, adam.init(grads))
  np.testing.assert_allclose(updates["b"], wanted["b"], rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    (dict(max_update_rms=0.0), "max_update_rms=0.0 must be > 0"),
    (dict(refresh="lu"), "refresh='lu' is not known"),
    (dict(b2=1.0), "b2=1.0 must be in"),
  ],
)
def test_bad_arguments_are_named(options, words):
  with pytest.raises(ValueError, match=words):
    optim.moso(0.1, **options)
