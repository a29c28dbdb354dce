"""The penalty and the smoothed loss against differences and exact sums."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import rounding, vertices

import optim

INT4 = optim.Quantizer(optim.INT4)
penalty_and_grad = jax.jit(
  jax.value_and_grad(optim.rounding_penalty),
  static_argnums=2,
  static_argnames="scale_gradient",
)


@functools.partial(jax.jit, static_argnums=(0, 2))
def vertex_gradient(loss_fn, params, quantizer):
  return vertices.vertex_gradient(
    loss_fn, params, *optim.neighbours(params, quantizer)
  )


def _quantizer(name, *args, **kwargs):
  return optim.Quantizer(getattr(optim, name), *args, **kwargs)


def _scales(w, name, size):
  """s of each entry of a vector cut into blocks, in NumPy."""
  top = rounding.table(name)[-1]
  blocks = np.abs(w).reshape(-1, size)
  return np.repeat(blocks.max(axis=1) / top, size)


def _differences(fn, w, width=1e-7):
  """Central differences."""
  result = np.zeros_like(w)
  for i in range(len(w)):
    moved = np.zeros_like(w)
    moved[i] = width
    result[i] = (fn(w + moved) - fn(w - moved)) / (2 * width)
  return result


# --- The penalty and its gradient --------------------------------------------


@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("name", ["INT4", "INT8", "E2M1", "E2M3", "E4M3"])
def test_gradient_is_that_of_differences(name, moving):
  rng = np.random.default_rng(0)
  w, g = rng.normal(size=12), rng.uniform(0.5, 2, size=12)
  fixed = _scales(w, name, 6)

  def penalty(w):
    s = _scales(w, name, 6) if moving else fixed
    return rounding.penalty(w, g, name, s)

  with jax.enable_x64(True):
    q = _quantizer(name, 0, 6)
    value, grad = penalty_and_grad(
      jnp.asarray(w), jnp.asarray(g), q, scale_gradient=moving
    )
    naive = jax.jit(
      jax.grad(lambda w: jnp.sum(g * optim.rounding_variance(w, q)) / 2)
    )(jnp.asarray(w))
  np.testing.assert_allclose(value, penalty(w), rtol=1e-13)
  wanted = _differences(penalty, w)
  largest = np.abs(w) == fixed * rounding.table(name)[-1]
  assert largest.sum() == 2
  if moving:
    np.testing.assert_allclose(grad, naive, atol=1e-14)
  else:
    # On the grid there are two slopes, and the penalty takes neither.
    wanted[largest] = 0
  np.testing.assert_allclose(grad, wanted, atol=1e-8)


def test_gradient_by_hand():
  # s = 2: -3.4 is between -4 and -2, 0.5 between 0 and 2; 14 is the largest.
  w = jnp.asarray([14.0, -3.4, 0.5, 4.0])
  g = jnp.asarray([9.0, 10.0, 1.0, 9.0])
  value, (grad, by_g) = jax.value_and_grad(
    optim.rounding_penalty, argnums=(0, 1)
  )(w, g, INT4)
  variance = [0, 1.4 * 0.6, 1.5 * 0.5, 0]
  np.testing.assert_allclose(value, (10 * 0.84 + 0.75) / 2, rtol=1e-6)
  np.testing.assert_allclose(by_g, np.array(variance) / 2, rtol=1e-6)
  # dR/ds: (g / 2) [c+ (w - l) - c- (u - w)], c = (-2, -1) and (0, 1).
  slope = 5 * (-1 * 0.6 + 2 * 1.4) + 0.5 * (1 * 0.5)
  snap = [0, 5 * (-4 - 2 + 6.8), 0.5 * (2 - 1), 0]
  wanted = np.array(snap) + [slope / 7, 0, 0, 0]
  np.testing.assert_allclose(grad, wanted, rtol=1e-5)


def test_ties_share_the_shrinking_and_keep_their_signs():
  w, g = jnp.asarray([2.0, -2.0, 0.5]), jnp.ones(3)
  grad = jax.grad(optim.rounding_penalty)(w, g, INT4)
  alone = jax.grad(optim.rounding_penalty)(w.at[1].set(0), g, INT4)
  np.testing.assert_allclose(
    grad, [alone[0] / 2, -alone[0] / 2, alone[2]], rtol=1e-6
  )


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_gets_no_snap(sign):
  # A thousand maxima: of amax / (amax / 7) in float32 some miss the 7.
  rng = np.random.default_rng(0)
  w = rng.uniform(-1, 1, size=(1000, 4)).astype(np.float32)
  w[:, 2] = sign * rng.uniform(1, 4, size=1000)
  q = _quantizer("INT4", -1)
  grad = jax.jit(
    jax.grad(lambda w: optim.rounding_penalty(w, jnp.ones_like(w), q,
                                              scale_gradient=False))
  )(w)  # fmt: skip
  assert np.count_nonzero(grad[:, 2]) == 0
  assert np.count_nonzero(grad) == 3000


@pytest.mark.parametrize("rule", ["absmax", "pow2_ceil"])
def test_powers_of_two_do_not_move(rule):
  w = jnp.asarray([0.9, 0.33, -0.2])
  q = _quantizer("INT4", scale=rule)
  moving, fixed = (
    jax.grad(optim.rounding_penalty)(w, jnp.ones(3), q, scale_gradient=moves)
    for moves in (True, False)
  )
  assert np.array_equal(moving, fixed) == (rule == "pow2_ceil")


def test_masks_and_trees_of_quantizers():
  params = dict(a=jnp.asarray([7.0, 2.5]), b=dict(c=jnp.asarray([7.0, 1.5])))
  ones = jax.tree.map(jnp.ones_like, params)
  both = optim.rounding_penalty(params, ones, INT4)
  np.testing.assert_allclose(both, 0.25, rtol=1e-6)
  for options in (
    dict(quantizer=INT4, mask=dict(a=True, b=False)),
    dict(quantizer=INT4, mask=lambda p: dict(a=True, b=dict(c=False))),
    dict(quantizer=dict(a=INT4, b=None)),
    dict(quantizer=lambda p: dict(a=INT4, b=dict(c=None))),
  ):
    value, grad = jax.value_and_grad(optim.rounding_penalty)(
      params, ones, **options
    )
    np.testing.assert_allclose(value, 0.125, rtol=1e-6)
    assert not np.any(grad["b"]["c"])
    assert np.any(grad["a"])
    rounded = optim.quantize_params(params, **options)
    assert rounded["b"]["c"][1] == 1.5
    assert rounded["a"][1] == 2


# --- The smoothed loss -------------------------------------------------------


def _vertex_sum(loss_fn, w, s):
  """E L(R(w)) at a fixed integer grid, over all 2^d roundings."""
  low = np.floor(w / s)
  chance = w / s - low
  total = 0.0
  for up in itertools.product([0, 1], repeat=len(w)):
    up = np.array(up)
    weight = np.prod(np.where(up, chance, 1 - chance))
    total += weight * loss_fn(s * (low + up)) if weight else 0.0
  return total


def _loss(w):
  """Not quadratic; for NumPy and for jax."""
  shift = np.array([0.4, -1.3, 0.2, 0.9, -0.6, 0.1])
  mix = np.random.default_rng(3).normal(size=(6, 6)) / 2
  r = mix @ (w - shift)
  return (r**2).sum() / 2 + (r**4).sum() / 20 + r.sum() ** 3 / 50


def _hessian_diagonal(w, width=1e-3):
  values = []
  for i in range(len(w)):
    e = np.zeros_like(w)
    e[i] = width
    values.append(_loss(w + e) - 2 * _loss(w) + _loss(w - e))
  return np.array(values) / width**2


def _start(s):
  """Five free entries, and a largest that pins the scale to s."""
  rng = np.random.default_rng(5)
  return np.append(rng.uniform(-3, 3, size=5), 7 * s)


def test_smoothed_loss_is_the_vertex_sum():
  s = 0.5
  w = _start(s)
  exact = _vertex_sum(_loss, w, s)
  draws = 20_000
  smoothed = jax.jit(
    optim.smoothed_loss(
      lambda params, batch: batch * _loss(params), INT4, num_draws=draws
    )
  )
  mean = smoothed(jnp.asarray(w, jnp.float32), jax.random.key(0), 1.0)
  square = _vertex_sum(lambda v: _loss(v) ** 2, w, s)
  error = np.sqrt((square - exact**2) / draws)
  assert abs(mean - exact) < 4.5 * error
  # The loss itself is ten errors away, so that this is seen.
  assert abs(_loss(w) - exact) > 10 * error


def test_vertex_gradient_is_that_of_differences():
  s = 0.5
  w = _start(s)

  def smoothed(free):
    return _vertex_sum(_loss, np.append(free, w[-1]), s)

  wanted = _differences(smoothed, w[:5], 1e-6)
  with jax.enable_x64(True):
    grad = vertex_gradient(_loss, jnp.asarray(w), INT4)
    # The last is on the grid: the mean slope of the loss at the roundings.
    at_roundings = jax.jit(jax.grad(_loss))
    last = _vertex_sum(lambda v: at_roundings(v)[5], w, s)
  np.testing.assert_allclose(grad[:5], wanted, atol=1e-8)
  np.testing.assert_allclose(grad[5], last, rtol=1e-10)


def test_penalty_is_the_second_order_of_the_smoothed_loss():
  errors, places = [], np.random.default_rng(5).uniform(-0.6, 0.6, (20, 5))
  for s in (0.4, 0.2, 0.1):
    gaps = []
    for w in np.append(places, np.full((20, 1), 7 * s), axis=1):
      with jax.enable_x64(True):
        penalty = optim.rounding_penalty(
          jnp.asarray(w), jnp.asarray(_hessian_diagonal(w)), INT4
        )
      expansion = _loss(w) + float(penalty)
      gaps.append(_vertex_sum(_loss, w, s) - expansion)
    errors.append(np.sqrt(np.mean(np.square(gaps))))
  assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_penalty_is_exact_for_quadratics():
  rng = np.random.default_rng(0)
  root = rng.normal(size=(5, 5))
  h, shift = root @ root.T, rng.normal(size=5)
  w = np.append(rng.uniform(-1, 1, size=4), 1.4)

  def loss(w):
    return (w - shift) @ h @ (w - shift) / 2

  with jax.enable_x64(True):
    w_jax, diagonal = jnp.asarray(w), jnp.asarray(np.diag(h))
    penalty, force = penalty_and_grad(
      w_jax, diagonal, INT4, scale_gradient=False
    )
    whole = vertex_gradient(loss, w_jax, INT4)
  np.testing.assert_allclose(
    loss(w) + float(penalty), _vertex_sum(loss, w, 0.2), rtol=1e-12
  )
  slope = h @ (w - shift) + np.asarray(force)
  np.testing.assert_allclose(slope, whole, rtol=1e-9)
