"""Laws of SOAP in front of Muon; the authors' runs are in test_authors.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim
from optim.matrices.stacks import Squares, Stacks

STACK = optim.DimensionNumbers((1, 2), stack=0)
SHAPES = dict(wide=(3, 6, 24), tall=(3, 24, 6), square=(2, 16, 16))
DIMENSIONS = dict.fromkeys(SHAPES, STACK)


def _grads(seed, shapes=SHAPES, dtype=jnp.float32):
  """Normal matrices with a spectrum that falls by 3 over the rows."""
  rng = np.random.default_rng(seed)

  def matrix(shape):
    scale = 3.0 ** -np.linspace(0, 1, shape[-2])[:, None]
    return jnp.asarray(scale * rng.normal(size=shape), dtype)

  return {k: matrix(shape) for k, shape in shapes.items()}


def _run(tx, grads):
  state, update, result = tx.init(grads[0]), jax.jit(tx.update), []
  for g in grads:
    updates, state = update(g, state)
    result.append(updates)
  return result, state


def _values(x):
  return np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)


def test_all_singular_values_are_one_number_at_every_scale():
  # Far from square: a matrix of signs, as the second update has, may be
  # singular; see below.
  shapes = {k: SHAPES[k] for k in ("wide", "tall")}
  tx = optim.scale_by_soap_muon(dimension_numbers=dict.fromkeys(shapes, STACK))
  update = jax.jit(tx.update)
  for scale in (1e-6, 1e-3, 1.0, 1e3):
    state = tx.init(_grads(0, shapes))
    for step in range(6):
      grads = jax.tree.map(lambda g, s=scale: s * g, _grads(step, shapes))
      updates, state = update(grads, state)
      for name, u in updates.items():
        size = max(1, u.shape[-1] / u.shape[-2]) ** 0.5
        np.testing.assert_allclose(_values(u), size, rtol=0.01, err_msg=name)


def test_products_in_few_bits_leave_one_percent():
  grads = _grads(0, dict(tall=SHAPES["tall"]))
  tx = optim.scale_by_soap_muon(
    ns_dtype=jnp.bfloat16, dimension_numbers=dict(tall=STACK)
  )
  (updates,), _ = _run(tx, [grads])
  assert updates["tall"].dtype == jnp.float32
  np.testing.assert_allclose(_values(updates["tall"]), 1, rtol=0.01)


def test_the_second_update_sees_signs_only():
  # V = (1 - b2) N'^2 there. A matrix of signs may be singular, so we take one
  # that is not.
  tx, rng = optim.scale_by_soap_muon(), np.random.default_rng(3)
  grads = [jnp.asarray(rng.normal(size=(5, 5)), jnp.float32) for _ in range(2)]
  state = tx.init(grads[0])
  _, state = tx.update(grads[0], state)
  left, right = (np.asarray(q[0]) for q in state.kronecker["5x5_01"].derived)
  m = 0.05 * np.asarray(grads[0]) * 0.95 + 0.05 * np.asarray(grads[1])
  signs = np.sign(left.T @ (0.95 * m + 0.05 * np.asarray(grads[1])) @ right)
  assert _values(signs)[-1] > 0.1
  u, _, vt = np.linalg.svd(signs)
  updates, _ = tx.update(grads[1], state)
  np.testing.assert_allclose(updates, left @ u @ vt @ right.T, atol=1e-4)


def test_scale_of_the_gradients_does_not_matter():
  # Of full rank: the basis of a null space is round-off.
  shapes = dict(square=SHAPES["square"])
  tx = optim.scale_by_soap_muon(dimension_numbers=dict(square=STACK), eps=0.0)
  plain = [_grads(i, shapes) for i in range(4)]
  small = jax.tree.map(lambda g: g * 2.0**-20, plain)
  for a, b in zip(_run(tx, plain)[0], _run(tx, small)[0], strict=True):
    np.testing.assert_allclose(a["square"], b["square"], atol=2e-3)


def test_in_no_basis_and_with_equal_squares_it_is_muon():
  # A decay of 1 - 1e-12 is 1 in float32: V stays what it is put to. The two
  # start from another norm, so that both have to converge.
  shared = dict(ns_coeffs="record", ns_steps=24, dimension_numbers=DIMENSIONS)
  tx = optim.scale_by_soap_muon(
    0.9, 1 - 1e-12, precondition_frequency=100, **shared
  )
  muon = optim.scale_by_muon(0.9, **shared)
  grads = [_grads(i) for i in range(4)]
  state = tx.init(grads[0])
  ones = Squares({k: jnp.ones_like(v) for k, v in state.squares.items()})
  state = state._replace(count=state.count + 1, squares=ones)
  update = jax.jit(tx.update)
  for g, wanted in zip(grads, _run(muon, grads)[0], strict=True):
    updates, state = update(g, state)
    for name, u in updates.items():
      np.testing.assert_allclose(u, wanted[name], atol=2e-4, err_msg=name)


def test_directions_without_gradient_get_no_step():
  rng = np.random.default_rng(0)
  left, right = rng.normal(size=(12, 3)), rng.normal(size=(3, 10))
  left, right = np.linalg.qr(left)[0], np.linalg.qr(right.T)[0].T
  grads = [
    jnp.asarray(left @ rng.normal(size=(3, 3)) @ right, jnp.float32)
    for _ in range(12)
  ]
  for u in _run(optim.scale_by_soap_muon(), grads)[0]:
    values = _values(u)
    np.testing.assert_allclose(values[:3], 1, rtol=0.01)
    assert values[3] < 1e-3
    np.testing.assert_allclose(
      left @ (left.T @ u) @ right.T @ right, u, atol=1e-3
    )


def test_staggered_each_matrix_is_refreshed_once_a_period():
  shapes = dict(many=(7, 4, 4), few=(2, 6, 6))
  tx = optim.scale_by_soap_muon(
    precondition_frequency=10, dimension_numbers=dict.fromkeys(shapes, STACK)
  )
  update, state = jax.jit(tx.update), tx.init(_grads(0, shapes))
  _, state = update(_grads(0, shapes), state)
  for period in range(2):
    before = state.kronecker
    changes = {k: np.zeros((2, len(b.failures))) for k, b in before.items()}
    for step in range(10):
      old = state.kronecker
      _, state = update(_grads(1 + 10 * period + step, shapes), state)
      for name, bucket in state.kronecker.items():
        for side, new in enumerate(bucket.derived):
          moved = np.abs(new - old[name].derived[side]).max(axis=(1, 2)) > 0
          changes[name][side] += moved
    for name, count in changes.items():
      np.testing.assert_array_equal(count, 1, err_msg=name)


def _four_devices(placement_axes):
  """Trajectory of a staggered run in float64; its stacks in four parts."""
  shapes = dict(a=(8, 4, 4), b=(6, 5, 5))  # Square: no null spaces.
  tx = optim.scale_by_soap_muon(
    precondition_frequency=10, dimension_numbers=dict.fromkeys(shapes, STACK),
    placement=optim.Placement(placement_axes, 4),
  )  # fmt: skip
  grads = [_grads(i, shapes, jnp.float64) for i in range(23)]
  if placement_axes is None:
    return _run(tx, grads)[0]
  mesh = jax.make_mesh(
    (4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:4],
  )  # fmt: skip
  with jax.set_mesh(mesh):
    return _run(tx, grads)[0]


def test_staggered_four_devices_are_one_device():
  with jax.enable_x64():
    one, four = _four_devices(None), _four_devices(("d",))
    for a, b in zip(one, four, strict=True):
      for name, u in a.items():
        np.testing.assert_allclose(b[name], u, rtol=0, atol=1e-12)


def test_parts_of_a_stack_only_say_who_is_refreshed_when():
  with jax.enable_x64():
    runs = []
    for shards in (1, 4):
      tx = optim.scale_by_soap_muon(
        dimension_numbers=DIMENSIONS, placement=optim.Placement(None, shards)
      )
      grads = [_grads(i, dtype=jnp.float64) for i in range(4)]
      runs.append(_run(tx, grads)[0])
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), *runs
    )


def test_turned_squares_are_the_diagonals_in_the_new_bases():
  shapes = dict(square=(1, 5, 5))
  tx = optim.scale_by_soap_muon(
    b2=1 - 1e-12, turn_squares=True, dimension_numbers=dict(square=STACK)
  )
  grads = [_grads(i, shapes) for i in range(3)]
  state, update = tx.init(grads[0]), jax.jit(tx.update)
  _, state = update(grads[0], state)
  v = np.random.default_rng(0).uniform(1, 2, size=(1, 5, 5))
  squares = Squares({"5x5_01": jnp.asarray(v, jnp.float32)})
  state = state._replace(squares=squares)
  _, new = update(grads[1], state)
  overlaps = [
    np.square(np.swapaxes(np.asarray(a), 1, 2) @ np.asarray(b))
    for a, b in zip(
      state.kronecker["5x5_01"].derived, new.kronecker["5x5_01"].derived,
      strict=True,
    )
  ]  # fmt: skip
  wanted = np.swapaxes(overlaps[0], 1, 2) @ v @ overlaps[1]
  assert np.abs(wanted - v).max() > 0.05
  np.testing.assert_allclose(new.squares["5x5_01"], wanted, atol=1e-5)


def test_bad_gradients_are_counted_and_do_no_harm():
  tx = optim.scale_by_soap_muon(dimension_numbers=DIMENSIONS)
  update, state = jax.jit(tx.update), tx.init(_grads(0))
  bad = _grads(1)
  bad["wide"] = bad["wide"].at[1, 2, 3].set(jnp.nan)
  for g in (_grads(0), bad, _grads(2)):
    updates, state = update(g, state)
  assert all(np.all(np.isfinite(u)) for u in updates.values())
  counts = optim.refresh_counts(state)
  assert counts is not None
  assert (counts.rejections, counts.failures) == (1, 0)


def test_other_leaves_get_adam_at_their_own_rate():
  grads = dict(w=jnp.eye(3), b=jnp.asarray([3.0, -2.0]))
  tx = optim.soap_muon(0.1, adam_learning_rate=0.01)
  updates, state = tx.update(grads, tx.init(grads), grads)
  np.testing.assert_allclose(updates["b"], [-0.01, 0.01], rtol=1e-5)
  np.testing.assert_allclose(updates["w"], -0.1 * np.eye(3), atol=1e-4)
  assert isinstance(state[0].kronecker, Stacks)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    (dict(b1=1.0), "b1=1.0 must be in"),
    (dict(ns_coeffs="keler"), "'keler' is not known"),
    (dict(ns_steps=0), "ns_steps=0 must be >= 1"),
    (dict(refresh="lu"), "refresh='lu' is not known"),
    (dict(eps=-1.0), "eps=-1.0 must be >= 0"),
    (dict(precondition_frequency=0), "precondition_frequency=0 must be"),
  ],
)
def test_bad_arguments_are_named(options, words):
  with pytest.raises(ValueError, match=words):
    optim.soap_muon(0.1, **options)


def test_tensors_are_refused():
  with pytest.raises(ValueError, match="SOAP-Muon needs matrices, but leaf"):
    optim.soap_muon(
      0.1, dimension_numbers=optim.DimensionNumbers((0, 1, 2))
    ).init(jnp.zeros((2, 3, 4)))
