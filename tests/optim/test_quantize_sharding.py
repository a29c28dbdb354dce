"""Eight fake devices: the same numbers, and no traffic for aligned blocks."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optim

COLLECTIVE = re.compile(
  r"(all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)"
  r"(?:-start)?\("
)
# [512, 16], 64 rows a device.
SHAPE, ROWS, COLUMNS = (512, 16), P("x", None), P(None, "x")


@pytest.fixture(scope="module")
def mesh():
  if len(jax.devices()) < 8:
    pytest.fail("Run with 8 CPU devices; tests/conftest.py asks for them.")
  return jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))


def _array(seed):
  x = np.random.default_rng(seed).normal(size=SHAPE)
  return jnp.asarray(x, jnp.float32)


def _penalty_step(quantizer):
  tx = optim.lotion_adamw(1e-2, quantizer, 1.0)

  def step(w, g):
    updates, _ = tx.update(g, tx.init(w), w)
    return updates

  return step


def _functions(quantizer):
  key = jax.random.key(0)
  return dict(
    nearest=lambda w, g: optim.round_nearest(w, quantizer),
    random=lambda w, g: optim.round_random(key, w, quantizer),
    straight=lambda w, g: jax.grad(
      lambda w: jnp.sum(
        g * optim.straight_through(w, quantizer, scale_gradient=True)
      )
    )(w),
    codes=lambda w, g: optim.quantize(w, quantizer),
    penalty=_penalty_step(quantizer),
  )


@pytest.mark.parametrize("spec", [ROWS, COLUMNS])
@pytest.mark.parametrize(("block_size", "aligned"), [(32, True), (None, False)])
def test_sharded_is_unsharded(mesh, spec, block_size, aligned):
  axis = 0 if block_size else None
  quantizer = optim.Quantizer(optim.INT4, axis, block_size)
  place = NamedSharding(mesh, spec)
  w, g = _array(0), _array(1)
  for name, fn in _functions(quantizer).items():
    sharded = jax.jit(fn, in_shardings=(place, place))
    compiled = sharded.lower(w, g).compile()
    actual = compiled(jax.device_put(w, place), jax.device_put(g, place))
    wanted = jax.jit(fn)(w, g)
    for a, b in zip(
      jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True
    ):
      if name in ("nearest", "random", "codes"):
        np.testing.assert_array_equal(a, b)
      else:  # The sums over a block are added up in another order.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    found = {match[0] for match in COLLECTIVE.finditer(compiled.as_text())}
    if aligned:
      assert not found, name
      assert jax.tree.leaves(actual)[0].sharding.is_equivalent_to(place, 2)
    else:  # One scale for the array: numbers travel, not the array.
      assert found == {"all-reduce("}, name


def test_blocks_across_devices_do_travel(mesh):
  # Guards the test above: the text does show traffic where there is some.
  place = NamedSharding(mesh, ROWS)
  quantizer = optim.Quantizer(optim.INT4, 0, 128)
  fn = jax.jit(_functions(quantizer)["nearest"], in_shardings=(place, place))
  text = fn.lower(_array(0), _array(1)).compile().as_text()
  assert COLLECTIVE.search(text)


def test_factor_curvature_gathers_diagonals_only(mesh):
  axes = optim.DimensionNumbers(sides=(1, 2), stack=0)
  options = dict(
    dimension_numbers=axes, placement=optim.Placement("x", 8, P(None, "x"))
  )
  tx = optim.scale_by_soap(precondition_frequency=4, **options)
  w = jax.ShapeDtypeStruct((8, 32, 24), jnp.float32)
  shapes = jax.eval_shape(tx.init, w)
  specs = optim.state_specs(shapes, options["placement"])
  places = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), specs,
    is_leaf=lambda x: isinstance(x, P),
  )  # fmt: skip
  place = NamedSharding(mesh, P(None, "x"))

  def curvature(state, w):
    return optim.factor_diagonal(state, w, decay=0.95, **options)

  with jax.set_mesh(mesh):
    compiled = (
      jax.jit(curvature, in_shardings=(places, place), out_shardings=place)
      .lower(shapes, w)
      .compile()
    )
  text = compiled.as_text()
  sizes = re.findall(r"= f32\[([\d,]+)\][^=]*all-gather\(", text)
  assert sorted(sizes) == ["8,24", "8,32"]
  assert len(COLLECTIVE.findall(text)) == 2
