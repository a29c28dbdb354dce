"""Gradients of rounding, real storage types, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import rounding

import optim

NAMES = (*rounding.FLOATS, "INT4", "INT8", "MXINT8")
RULES = ("absmax", "pow2_floor")
nearest = jax.jit(optim.round_nearest, static_argnums=1)
random = jax.jit(optim.round_random, static_argnums=2)


def _quantizer(name, *args, **kwargs):
  return optim.Quantizer(getattr(optim, name), *args, **kwargs)


def _numbers(shape, decades):
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape) * 10.0 ** rng.uniform(-decades, decades, shape)
  return x.astype(np.float32)


def _equal(actual, wanted):
  np.testing.assert_array_equal(np.asarray(actual), wanted)


@pytest.mark.parametrize("key", [None, 0])
def test_straight_through_gradients(key):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(5, 12)).astype(np.float32)
  slope = rng.normal(size=x.shape).astype(np.float32)
  q = _quantizer("INT4", -1)
  key = None if key is None else jax.random.key(key)
  rounded = nearest(x, q) if key is None else random(key, x, q)

  @functools.partial(jax.jit, static_argnums=1)
  def grad(x, scale_gradient):
    def loss(x):
      y = optim.straight_through(x, q, key=key, scale_gradient=scale_gradient)
      return jnp.sum(y * slope), y

    return jax.grad(loss, has_aux=True)(x)

  plain, y = grad(x, False)
  _equal(y, rounded)
  _equal(plain, slope)
  moving, _ = grad(x, True)
  s = np.abs(x).max(axis=1, keepdims=True) / 7
  extra = np.sum((np.asarray(rounded) - x) / s * slope, axis=1) / 7
  largest = np.abs(x) == np.abs(x).max(axis=1, keepdims=True)
  wanted = slope + largest * np.sign(x) * extra[:, None]
  np.testing.assert_allclose(moving, wanted, rtol=1e-5, atol=1e-6)
  assert np.abs(extra).min() > 1e-3


def test_straight_through_details():
  # Ties share the scale's gradient; powers of two have none.
  x = jnp.asarray([2.0, -2.0, 0.7])

  def grad(q, **options):
    loss = lambda x: optim.straight_through(x, q, **options)[2]  # noqa: E731
    return jax.jit(jax.grad(loss))(x)

  share = (2 - 0.7 / (2 / 7)) / 7 / 2
  np.testing.assert_allclose(
    grad(_quantizer("INT4"), scale_gradient=True),
    [share, -share, 1],
    rtol=1e-5,
  )
  _equal(
    grad(_quantizer("INT4", scale="pow2_ceil"), scale_gradient=True), [0, 0, 1]
  )


def test_straight_through_under_checkpoint_and_vmap():
  x, q = jnp.linspace(-1, 1, 40), _quantizer("INT4")

  def loss(key):
    y = optim.straight_through(x, q, key=key)
    return jnp.sum(y * jnp.cos(100 * x))

  keys = jax.random.split(jax.random.key(0), 4)
  many = jax.jit(jax.vmap(loss))(keys)
  assert len(set(many.tolist())) == 4
  single = jnp.stack([jax.jit(loss)(key) for key in keys])
  np.testing.assert_allclose(many, single, rtol=1e-6)

  def square(x):
    return jnp.sum(optim.straight_through(x, q, key=keys[0]) ** 2)

  np.testing.assert_array_equal(
    jax.jit(jax.grad(jax.checkpoint(square)))(x), jax.jit(jax.grad(square))(x)
  )


def test_step_size_is_differentiable():
  x = jnp.asarray([0.5, -2.0, 2.0])
  grad = jax.grad(lambda x: optim.step_size(x, _quantizer("INT4"))[0])(x)
  np.testing.assert_allclose(grad, [0, -0.5 / 7, 0.5 / 7], rtol=1e-6)
  power = _quantizer("INT4", scale="pow2_ceil")
  _equal(jax.grad(lambda x: optim.step_size(x, power)[0])(x), 0)
  _equal(optim.step_size(jnp.zeros(4), _quantizer("INT4")), 1)


# --- Storage -----------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NAMES)
def test_storage_round_trip(name, rule):
  x = _numbers((6, 40), decades=2)
  x[0], x[1, 2] = 0, np.inf
  q = _quantizer(name, -1, 16, rule)
  codes, scale = jax.jit(optim.quantize, static_argnums=1)(x, q)
  assert codes.shape == x.shape
  assert scale.shape == (6, 3)
  wanted = dict(
    INT4="int4", INT8="int8", MXINT8="int8", E2M1="float4_e2m1fn",
    E4M3="float8_e4m3fn", E5M2="float8_e5m2",
  )  # fmt: skip
  assert codes.dtype == wanted.get(name, "uint8")
  assert scale.dtype == ("float32" if rule == "absmax" else "float8_e8m0fnu")
  _equal(jax.jit(optim.dequantize, static_argnums=2)(codes, scale, q),
         nearest(x, q))  # fmt: skip
  if name in ("E2M3", "E3M2") and rule == "pow2_floor":
    dtype, _ = rounding._FLOATS[name]
    with np.errstate(invalid="ignore"):
      y = nearest(x, q) / np.repeat(scale.astype(np.float32), 16, 1)[:, :40]
    bits = np.asarray(y)[2:].astype(dtype).view(np.uint8)
    _equal(codes[2:], bits)


def test_nvfp4():
  x = 1e-3 * _numbers((4, 64), decades=1)
  x[0, :16], x[1, 16:32] = 0, x[1, 16:32] * 1e-9
  x[1, 20] = 0
  q = _quantizer("E2M1", -1, 16, "nvfp4")
  codes, (block, tensor) = jax.jit(optim.quantize, static_argnums=1)(x, q)
  assert (block.dtype, tensor.dtype) == ("float8_e4m3fn", "float32")
  assert (block.shape, tensor.shape) == ((4, 4), (1, 1))
  y = np.asarray(nearest(x, q))
  back = jax.jit(optim.dequantize, static_argnums=2)
  _equal(back(codes, (block, tensor), q), y)
  # The definition, in float64, for the blocks that are not zero.
  t = np.abs(x).max() / (448 * 6)
  blocks = x.reshape(4, 4, 16).astype(np.float64)
  wanted = np.abs(blocks).max(axis=-1) / (6 * t)
  s = [[max(rounding.nearest(v, "E4M3"), 2.0**-9) for v in r] for r in wanted]
  s = np.array(s)[..., None] * t
  codes = [rounding.nearest(v, "E2M1") for v in np.ravel(blocks / s)]
  np.testing.assert_allclose(
    y.reshape(blocks.shape), np.reshape(codes, blocks.shape) * s, rtol=1e-6
  )
  one = optim.step_size(np.zeros((2, 16), np.float32), q)
  _equal(one, 1)
  # No scale is 0, however small a block is.
  tiny = np.outer(2.0 ** np.arange(-126, 0, dtype=np.float32), np.ones(16))
  tiny = np.stack([tiny, tiny / 2**10], axis=1).astype(np.float32)
  stacked = dataclasses.replace(q, batch_axes=1)
  assert np.all(optim.step_size(tiny, stacked) >= 2.0**-126)


# --- Bad input ---------------------------------------------------------------


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: optim.Quantizer("INT4"), "grid='INT4' must be a Grid"),
    (lambda: _quantizer("INT4", scale="max"), "scale='max'.*absmax"),
    (lambda: _quantizer("INT4", -1, 0), "block_size=0 must be an int >= 1"),
    (lambda: _quantizer("INT4", -1, 2.5), "block_size=2.5 must be an int >= 1"),
    (lambda: _quantizer("INT4", None, 32), "block_size=32 needs the axis"),
    (lambda: _quantizer("INT4", batch_axes=-1), "batch_axes=-1 must be an int"),
    (lambda: _quantizer("INT4", batch_axes=1.0), "batch_axes=1.0 must be"),
    (lambda: _quantizer("INT4", (0, 1, 2)), r"axis=\(0, 1, 2\) must be"),
    (lambda: _quantizer("INT4", (0, 1.0)), r"axis=1.0 must be an int"),
    (
      lambda: optim.round_nearest(np.ones((3, 2)), _quantizer("INT4", (1, -1))),
      r"axis=\(1, -1\) of x of shape \(3, 2\) must be two different axes",
    ),
    (lambda: _quantizer("INT4", "x"), "axis='x' must be an int"),
    (lambda: _quantizer("INT4", 1.0), "axis=1.0 must be an int"),
    (lambda: _quantizer("INT4", scale="nvfp4"), "grid=E2M1 only, got INT4"),
    (
      lambda: optim.round_nearest(jnp.ones(3), _quantizer("INT4", 1)),
      r"axis=1 of x of shape \(3,\)",
    ),
    (
      lambda: optim.step_size(jnp.ones(3), _quantizer("INT4", batch_axes=2)),
      r"batch_axes=2 but x of shape \(3,\)",
    ),
    (
      lambda: optim.round_nearest(jnp.ones((3, 2)), _quantizer("INT4", 0,
      batch_axes=1)), r"axis=0 of x of shape \(3, 2\).*batch_axes=1",
    ),
    (
      lambda: optim.round_nearest(jnp.arange(3), _quantizer("INT4")),
      "type int32",
    ),
  ],
)  # fmt: skip
def test_bad_input(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_quantizers_are_static():
  a, b = _quantizer("INT4", -2, 32), _quantizer("INT4", -2, 32)
  assert a == b
  assert hash(a) == hash(b)
  assert a != _quantizer("INT8", -2, 32)
