"""Spheres and their relatives: what each rule keeps, whatever the direction."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optim

_DIMS = dict(
  w=optim.DimensionNumbers(),
  stack=optim.DimensionNumbers(sides=(0, 2), stack=1),
  b=None,
)


def _params(seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  shapes = dict(w=(12, 7), stack=(4, 3, 6), b=(5,))
  return {
    k: jnp.asarray(rng.normal(size=s) * scale, jnp.float32)
    for k, s in shapes.items()
  }


def _norms(params):
  """Of each matrix, in float64."""
  w, stack = (np.asarray(params[k], np.float64) for k in ("w", "stack"))
  return np.append(np.sqrt((stack**2).sum((0, 2))), np.sqrt((w**2).sum()))


def test_norms_stay_over_a_thousand_steps():
  direction = optim.scale_by_shampoo(
    dimension_numbers=_DIMS, block_size=4, precondition_frequency=100
  )
  tx = optim.on_sphere(direction, 0.02, dimension_numbers=_DIMS)
  start = _params()

  @jax.jit
  def run(params):
    def step(carry, key):
      params, state = carry
      grads = jax.tree.map(lambda x: jax.random.normal(key, x.shape), params)
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), 1000)
    return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

  end = run(start)
  np.testing.assert_allclose(_norms(end) / _norms(start), 1, atol=1e-6)
  assert np.abs(end["w"] - start["w"]).max() > 0.1
  # The blocks of a cut matrix do not keep their own norms.
  top = [np.linalg.norm(x["w"][:4]) for x in (start, end)]
  assert abs(top[1] / top[0] - 1) > 1e-3


def test_the_scale_of_gradients_does_not_matter():
  grads, params = _params(1), _params()
  wanted = None
  for scale in (1.0, 1e-6, 1e3):
    tx = optim.muon_h(0.02, dimension_numbers=_DIMS, ns_eps=1e-15)
    tiny = jax.tree.map(lambda x, s=scale: s * x, grads)
    updates, _ = tx.update(tiny, tx.init(params), params)
    wanted = updates if wanted is None else wanted
    for name in ("w", "stack"):
      np.testing.assert_allclose(updates[name], wanted[name], atol=1e-6)


def _step(rule, rate=0.1, **options):
  """(W, U, X) of the leaf w after a step along U on any rule."""
  params, grads = _params(), _params(1)
  tx = optim.on_sphere(
    optax.identity(), rate, rule=rule, dimension_numbers=_DIMS, **options
  )
  updates, _ = tx.update(grads, tx.init(params), params)
  return tuple(
    np.asarray(x, np.float64)
    for x in (params["w"], grads["w"], params["w"] + updates["w"])
  )


def test_the_angle_of_a_step_is_the_rate():
  w, u, x = _step("hyperball", 1e-2)
  across = u - (u * w).sum() / (w * w).sum() * w
  sine = np.linalg.norm(across) / np.linalg.norm(u)
  angle = np.arccos((w * x).sum() / (w * w).sum())
  np.testing.assert_allclose(angle, 1e-2 * sine, rtol=2e-2)


def test_relative_steps_have_the_length_of_the_rate():
  w, _, x = _step(optim.relative_step)
  np.testing.assert_allclose(np.linalg.norm(x - w), 0.1 * np.linalg.norm(w))


def test_a_fixed_radius_is_taken_from_the_first_step_on():
  _, _, x = _step(optim.fixed_radius(2.5))
  np.testing.assert_allclose(np.linalg.norm(x), 2.5, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.1, -0.1])
def test_the_brake_acts_outwards_only(rate):
  w, u, x = _step("brake", lambda count: rate)
  free, old = np.linalg.norm(w - rate * u), np.linalg.norm(w)
  share = 0.5 if free > old else 1.0
  wanted = old + share * (free - old)
  np.testing.assert_allclose(np.linalg.norm(x), wanted, rtol=1e-6)


def test_the_control_of_norms_follows_the_radial_part_alone():
  w, u, x = _step(optim.norm_control(outward=1.0, floor=0.0))
  n = np.linalg.norm(w)
  wanted = n - 0.1 * (u * w).sum() / n
  np.testing.assert_allclose(np.linalg.norm(x), wanted, rtol=1e-6)


def test_short_directions_are_lengthened_to_the_floor():
  params, grads = _params(), _params(1, scale=1e-3)
  moved = {}
  for rule in ("record", "record_rows"):
    tx = optim.on_sphere(
      optax.identity(), 0.01, rule=rule, dimension_numbers=_DIMS
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    moved[rule] = np.asarray(updates["w"])
  w = np.asarray(params["w"])
  shares = np.linalg.norm(moved["record"]) / np.linalg.norm(w)
  np.testing.assert_allclose(shares, 0.01 * 0.3825, rtol=0.03)
  by_output = np.linalg.norm(moved["record_rows"], axis=0)
  shares = by_output / np.linalg.norm(w, axis=0)
  np.testing.assert_allclose(shares, 0.01 * 0.3825, rtol=0.1)


def test_a_matrix_of_zeros_is_an_error_where_it_could_not_move():
  params = dict(_params(), b=jnp.zeros(5))
  params["stack"] = params["stack"].at[:, 1].set(0)
  tx = optim.muon_h(0.1, dimension_numbers=_DIMS)
  with pytest.raises(ValueError, match=r"\['stack'\].*matrix of zeros"):
    tx.init(params)
  state = jax.jit(tx.init)(params)
  updates, _ = jax.jit(tx.update)(_params(1), state, params)
  assert all(np.all(np.isfinite(x)) for x in updates.values())
  np.testing.assert_array_equal(updates["stack"][:, 1], 0)
  optim.muon_h(0.1, dimension_numbers=_DIMS, rule="brake").init(params)


def test_other_leaves_take_an_ordinary_step_at_their_own_rate():
  params, grads = _params(), _params(1)
  tx = optim.on_sphere(
    optax.identity(), 0.1, adam_learning_rate=0.3, dimension_numbers=_DIMS,
    weight_decay=0.5, mask=dict(w=False, stack=False, b=True),
  )  # fmt: skip
  updates, _ = tx.update(grads, tx.init(params), params)
  wanted = -0.3 * (grads["b"] + 0.5 * params["b"])
  np.testing.assert_allclose(updates["b"], wanted, rtol=1e-5)
  moved = _norms(optax.apply_updates(params, updates))
  np.testing.assert_allclose(moved, _norms(params), rtol=1e-6)


def test_decay_before_the_rule_and_after():
  w, _, x = _step(
    "relative", weight_decay=optim.Decay(0.1, coupling="none"),
    decay_order="optax",
  )  # fmt: skip
  # The length of the step is that of the decayed weights.
  length = np.linalg.norm(x - 0.9 * w)
  np.testing.assert_allclose(length, 0.09 * np.linalg.norm(w), rtol=1e-5)
  w, _, x = _step(
    "hyperball", weight_decay=optim.Decay(0.1, coupling="none"),
    decay_order="official",
  )  # fmt: skip
  wanted = 0.9 * np.linalg.norm(w)
  np.testing.assert_allclose(np.linalg.norm(x), wanted, rtol=1e-6)


@pytest.mark.parametrize(
  "kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit]
)
def test_a_sharded_matrix_has_one_norm(kind):
  mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
  w = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), jnp.float32)
  g = jnp.asarray(np.random.default_rng(1).normal(size=(16, 8)), jnp.float32)
  tx = optim.on_sphere(optax.identity(), 0.1)
  wanted, _ = tx.update(g, tx.init(w), w)
  with jax.set_mesh(mesh):
    place = NamedSharding(mesh, P("d"))
    w, g = jax.device_put((w, g), place)
    updates, _ = jax.jit(tx.update)(g, tx.init(w), w)
    np.testing.assert_allclose(updates, wanted, atol=1e-6)


def test_unknown_rules_and_missing_parameters_are_errors():
  with pytest.raises(ValueError, match="rule='ball' is not known"):
    optim.muon_h(0.1, rule="ball")
  params = _params()
  tx = optim.adam_h(0.1, dimension_numbers=_DIMS)
  with pytest.raises(ValueError, match="pass them"):
    tx.update(params, tx.init(params))
