"""The penalty against differences and exact sums; LOTION against its theory."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import rounding

import optim

INT4 = optim.Quantizer(optim.INT4)


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
    value, grad = jax.value_and_grad(optim.rounding_penalty)(
      jnp.asarray(w), jnp.asarray(g), q, scale_gradient=moving
    )
    naive = jax.grad(lambda w: jnp.sum(g * optim.rounding_variance(w, q)) / 2)(
      jnp.asarray(w)
    )
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
    grad = optim.vertex_gradient(_loss, jnp.asarray(w), INT4)
    # The last is on the grid: the mean slope of the loss at the roundings.
    at_roundings = jax.grad(_loss)
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
    penalty, force = jax.value_and_grad(optim.rounding_penalty)(
      w_jax, diagonal, INT4, scale_gradient=False
    )
    whole = optim.vertex_gradient(loss, w_jax, INT4)
  np.testing.assert_allclose(
    loss(w) + float(penalty), _vertex_sum(loss, w, 0.2), rtol=1e-12
  )
  slope = h @ (w - shift) + np.asarray(force)
  np.testing.assert_allclose(slope, whole, rtol=1e-9)


# --- The transforms ----------------------------------------------------------


def _tree(seed):
  rng = np.random.default_rng(seed)
  shapes = dict(kernel=(6, 4), gain=(4,))
  return {
    k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()
  }


def _run(tx, steps=50, params=None, **extra):
  params = _tree(0) if params is None else params
  update, state = jax.jit(tx.update), tx.init(params)
  for step in range(steps):
    updates, state = update(_tree(1 + step), state, params, **extra)
    params = optax.apply_updates(params, updates)
  return params, state


def test_strength_zero_is_adamw_bit_for_bit():
  plain, _ = _run(optax.adamw(1e-2, weight_decay=0.1))
  penalized, _ = _run(optim.lotion_adamw(1e-2, INT4, 0.0, weight_decay=0.1))
  jax.tree.map(np.testing.assert_array_equal, plain, penalized)
  other, _ = _run(optim.lotion_adamw(1e-2, INT4, 1.0, weight_decay=0.1))
  assert np.any(other["kernel"] != plain["kernel"])


def test_strength_zero_is_soap():
  options = dict(dimension_numbers=None, precondition_frequency=3)
  plain, _ = _run(optim.soap(1e-2, **options), 8)
  penalized, _ = _run(optim.lotion_soap(1e-2, INT4, 0.0, **options), 8)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    plain,
    penalized,
  )


def test_update_is_gradient_plus_strength_times_force():
  params, decay = _tree(0), 0.8
  tx = optim.add_rounding_penalty(
    INT4,
    lambda count: 0.5 * (count + 1),
    curvature_decay=decay,
    mask=dict(kernel=True, gain=False),
  )
  state, average = tx.init(params), np.zeros((6, 4))
  for step in range(4):
    grads = _tree(1 + step)
    updates, state = jax.jit(tx.update)(grads, state, params)
    square = np.square(grads["kernel"], dtype=np.float64)
    average = decay * average + (1 - decay) * square
    curvature = average / (1 - decay ** (step + 1))
    np.testing.assert_allclose(state.curvature["kernel"], curvature, rtol=1e-5)
    force = jax.grad(optim.rounding_penalty)(
      params["kernel"], jnp.asarray(curvature, jnp.float32), INT4
    )
    np.testing.assert_allclose(
      updates["kernel"],
      grads["kernel"] + 0.5 * (step + 1) * force,
      rtol=1e-4,
      atol=1e-5,
    )
    np.testing.assert_array_equal(updates["gain"], grads["gain"])
  assert len(jax.tree.leaves(state)) == 2  # The count and one average.


def test_supplied_curvature():
  params, grads = _tree(0), _tree(1)
  tx = optim.add_rounding_penalty(INT4, 1.0, curvature_decay=0.5)
  mine = dict(kernel=jnp.full((6, 4), 3.0))  # The gain falls back to squares.
  state = tx.init(params)
  for _ in range(3):
    updates, state = jax.jit(tx.update)(grads, state, params, curvature=mine)
  np.testing.assert_allclose(state.curvature["kernel"], 3.0, rtol=1e-6)
  np.testing.assert_allclose(
    state.curvature["gain"], np.square(grads["gain"]), rtol=1e-5
  )
  wanted = jax.grad(optim.rounding_penalty)(params["kernel"], mine["kernel"],
                                            INT4)  # fmt: skip
  np.testing.assert_allclose(
    updates["kernel"], grads["kernel"] + wanted, rtol=1e-5, atol=1e-6
  )


def test_a_bad_gradient_does_not_stay():
  params = _tree(0)
  tx = optim.add_rounding_penalty(INT4, 1.0)
  _, state = tx.update(_tree(1), tx.init(params), params)
  bad = jax.tree.map(lambda x: x.at[0].set(jnp.nan), _tree(2))
  updates, state = tx.update(bad, state, params)
  assert np.isnan(updates["gain"][0])  # Passed on, for others to see.
  updates, state = tx.update(_tree(3), state, params)
  for leaf in jax.tree.leaves((updates, state)):
    assert np.all(np.isfinite(leaf))


def test_strength_counts_samples_where_curvature_is_a_mean_gradient():
  # Pure noise: E[mean gradient^2] = E[single gradient^2] / B.
  rng = np.random.default_rng(0)
  batch, size = 32, 400
  w = jnp.asarray(rng.normal(size=size), jnp.float32)
  scale = rng.uniform(0.5, 2, size=size)
  grads = rng.normal(size=(300, batch, size)) * scale
  fisher = jnp.asarray(np.mean(grads**2, axis=(0, 1)), jnp.float32)
  tx = optim.add_rounding_penalty(INT4, 0.0, curvature_decay=0.99)
  state, update = tx.init(w), jax.jit(tx.update)
  for g in grads.mean(axis=1):
    _, state = update(jnp.asarray(g, jnp.float32), state, w)
  ratio = batch * optim.rounding_penalty(w, state.curvature, INT4)
  ratio = ratio / optim.rounding_penalty(w, fisher, INT4)
  np.testing.assert_allclose(ratio, 1, atol=0.1)


def test_curvature_of_drawn_labels():
  # The estimator of Fisher diagonals plugs in as it is.
  rng = np.random.default_rng(0)
  params = dict(kernel=jnp.asarray(rng.normal(size=(6, 4)), jnp.float32))
  inputs = jnp.asarray(rng.normal(size=(16, 6)), jnp.float32)
  fisher = optim.sampled_fisher_diagonal(
    lambda params, batch: batch @ params["kernel"],
    params, inputs, jax.random.key(0),
  )  # fmt: skip
  tx = optim.add_rounding_penalty(INT4, 1.0)
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zero, tx.init(params), params, curvature=fisher)
  wanted = jax.grad(optim.rounding_penalty)(params, fisher, INT4)
  np.testing.assert_allclose(updates["kernel"], wanted["kernel"], rtol=1e-5)
  assert np.any(updates["kernel"] != 0)


# --- Where it goes -----------------------------------------------------------


@functools.partial(
  jax.jit, static_argnames=("quantizer", "steps", "draw", "scale_gradient")
)
def _descend(
  h, target, start, rates, *, quantizer=INT4, steps=2000, strength=0.0,
  forward=False, draw=False, scale_gradient=False,
):  # fmt: skip
  """Heavy-ball on 1/2 sum h (w - w*)^2, one run a learning rate."""

  def loss(w, key):
    key = key if draw else None
    rounded = optim.straight_through(
      w, quantizer, key=key, scale_gradient=scale_gradient
    )
    at = jnp.where(forward, rounded, w)
    penalty = optim.rounding_penalty(
      w, h, quantizer, scale_gradient=scale_gradient
    )
    return jnp.sum(h * (at - target) ** 2) / 2 + strength * penalty

  def run(rate):
    def step(carry, t):
      w, m = carry
      g = jax.grad(loss)(w, jax.random.fold_in(jax.random.key(1), t))
      m = 0.9 * m + 0.1 * g
      w = w - rate * (1 + jnp.cos(jnp.pi * t / steps)) / 2 * m
      return (w, m), None

    return jax.lax.scan(step, (start, 0 * start), jnp.arange(steps))[0][0]

  return jax.vmap(run)(rates)


def _problem(size, seed):
  rng = np.random.default_rng(seed)
  target = rng.normal(size=size)
  h = rng.permutation(np.arange(1.0, size + 1) ** -1.1)
  start = 1e-3 * rng.normal(size=size)
  return [jnp.asarray(x, jnp.float32) for x in (h, target, start)]


def _risk(h, target, w):
  return jnp.sum(h * (w - target) ** 2, axis=-1) / jnp.sum(h * target**2)


def _nearest(w):
  return jax.vmap(lambda w: optim.round_nearest(w, INT4))(w)


def test_at_fixed_scales_it_ends_at_the_rounded_minimum():
  problem = _problem(256, 2)
  w = _descend(*problem, jnp.array([3.0]), strength=1.0)
  actual = _risk(*problem[:2], _nearest(w))[0]
  wanted = _risk(*problem[:2], optim.round_nearest(problem[1], INT4))
  np.testing.assert_allclose(actual, wanted, rtol=2e-3)
  np.testing.assert_allclose(wanted, 0.01175, atol=5e-6)


def test_it_beats_rounded_training_on_least_squares():
  problem = _problem(256, 2)
  rates = jnp.array([1.0, 3.0])
  methods = dict(
    ptq={},
    qat=dict(forward=True),
    qat_s=dict(forward=True, scale_gradient=True),
    rat_s=dict(forward=True, draw=True, scale_gradient=True),
    lotion=dict(strength=1.0, scale_gradient=True),
  )
  w = {k: _descend(*problem, rates, **v) for k, v in methods.items()}
  risks = {k: _risk(*problem[:2], _nearest(v)) for k, v in w.items()}
  best = {k: float(v.min()) for k, v in risks.items()}
  others = min(v for k, v in best.items() if k != "lotion")
  assert best["lotion"] < 0.8 * others
  # Its weights sit on the grid: rounding at random costs no more.
  w = w["lotion"][np.argmin(risks["lotion"])]
  loss_fn = optim.smoothed_loss(
    lambda w, batch: _risk(*batch, w), INT4, num_draws=16
  )
  at_random = loss_fn(w, jax.random.key(0), problem[:2])
  np.testing.assert_allclose(at_random, best["lotion"], rtol=0.03)
  assert optim.on_grid_share(w, INT4) > 0.5
  assert optim.on_grid_share(problem[1], INT4) < 0.15


# --- Helpers of evaluation ---------------------------------------------------


def test_step_size_and_grid_share_of_trees():
  params = dict(
    a=jnp.asarray([14.0, 4.0, 5.0, 6.05]), b=jnp.asarray([7.0, 7.0]),
    c=jnp.ones(100),
  )  # fmt: skip
  mask = dict(a=True, b=True, c=False)
  mean = optim.mean_step_size(params, INT4, mask=mask)
  np.testing.assert_allclose(mean, (4 * 2 + 2 * 1) / 6, rtol=1e-6)
  share = optim.on_grid_share(params, INT4, mask=mask)
  np.testing.assert_allclose(share, 5 / 6, rtol=1e-6)
  strict = optim.on_grid_share(params, INT4, mask=mask, tolerance=0.01)
  np.testing.assert_allclose(strict, 4 / 6, rtol=1e-6)
  # Gaps of E2M1 differ: 5.1 is at 0.55 of the gap from 4 to 6.
  e2m1 = _quantizer("E2M1")
  w = jnp.asarray([6.0, 5.1, 3.95, 0.49])
  np.testing.assert_allclose(optim.on_grid_share(w, e2m1), 3 / 4)


def test_keys_of_leaves_and_draws():
  params = dict(a=jnp.linspace(-1, 1, 500), b=jnp.linspace(-1, 1, 500))
  rounded = jax.jit(lambda key: optim.quantize_params(params, INT4, key=key))
  first, again, other = (rounded(jax.random.key(i)) for i in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  s = 1 / 7
  up = {k: np.asarray(v) > np.asarray(params[k]) for k, v in first.items()}
  for a, b in ((up["a"], up["b"]), (up["a"], other["a"] > params["a"])):
    # Independent draws of chance d agree with probability d^2 + (1 - d)^2.
    d = np.asarray(params["a"]) / s
    d = d - np.floor(d)
    agree = np.mean(d**2 + (1 - d) ** 2)
    assert abs(np.mean(a == np.asarray(b)) - agree) < 0.1
  # A leaf's draw is its own, whatever else is in the tree.
  alone = optim.quantize_params(dict(b=params["b"]), INT4,
                                key=jax.random.key(0))  # fmt: skip
  np.testing.assert_array_equal(alone["b"], first["b"])


def test_quantize_params_keeps_types_and_passes_gradients():
  params = dict(a=jnp.asarray([1.0, 0.3], jnp.bfloat16), b=jnp.ones(2))
  rounded = optim.quantize_params(params, INT4)
  assert jax.tree.map(jnp.dtype, rounded) == jax.tree.map(jnp.dtype, params)
  grad = jax.grad(lambda p: jnp.sum(optim.quantize_params(p, INT4)["b"] ** 2))(
    params
  )
  np.testing.assert_array_equal(grad["b"], [2, 2])


# --- Bad input ---------------------------------------------------------------

FLOOR = optim.Quantizer(optim.E4M3, -1, 2, "pow2_floor")
ONES = dict(w=jnp.ones((3, 4)))


def _update_without_params(tx):
  return tx.update(ONES, tx.init(ONES))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: optim.add_rounding_penalty(INT4, -1.0), "strength=-1.0 must be"),
    (lambda: optim.lotion_adamw(1e-3, INT4, -2), "strength=-2 must be >= 0"),
    (lambda: optim.lotion_soap(1e-3, INT4, -2), "strength=-2 must be >= 0"),
    (
      lambda: optim.add_rounding_penalty(INT4, 1.0, curvature_decay=1.0),
      "curvature_decay=1.0",
    ),
    (
      lambda: optim.add_rounding_penalty(FLOOR, 1.0).init(ONES),
      r"scale='pow2_floor' of leaf \['w'\].*take scale='pow2_ceil'",
    ),
    (
      lambda: optim.rounding_penalty(ONES, ONES, FLOOR),
      "rounding at random is biased",
    ),
    (
      lambda: optim.quantize_params(ONES, FLOOR, key=jax.random.key(0)),
      "rounding at random is biased",
    ),
    (
      lambda: optim.quantize_params(ONES, _quantizer("INT4", -1, 3)),
      r"block_size=3 does not divide axis -1 of leaf \['w'\].*\[2, 4\]",
    ),
    (
      lambda: optim.lotion_adamw(1, _quantizer("INT4", 2), 1).init(ONES),
      r"axis=2 but leaf \['w'\] has shape \(3, 4\)",
    ),
    (
      lambda: optim.quantize_params(ONES, _quantizer("INT4", batch_axes=3)),
      r"batch_axes=3 but leaf \['w'\]",
    ),
    (
      lambda: optim.quantize_params(dict(n=jnp.arange(3)), INT4),
      r"\['n'\].*int32",
    ),
    (lambda: optim.quantize_params(ONES, "INT4"), "must be an optim.Quantizer"),
    (lambda: optim.quantize_params(ONES, {}), r"no entry for leaf \['w'\]"),
    (lambda: optim.quantize_params(ONES, INT4, mask=dict(v=True)),
     r"mask has no entry for leaf \['w'\]"),
    (lambda: optim.rounding_penalty(ONES, {}, INT4), r"curvature has no leaf"),
    (
      lambda: _update_without_params(optim.add_rounding_penalty(INT4, 1.0)),
      r"params=None.*tx.update\(grads, opt_state, params\)",
    ),
    (
      lambda: _update_without_params(optim.lotion_soap(1.0, INT4, 1.0)),
      "params=None",
    ),
    (
      lambda: optim.smoothed_loss(_loss, INT4, num_draws=0),
      "num_draws=0 must be >= 1",
    ),
    (
      lambda: optim.vertex_gradient(_loss, jnp.ones(13), INT4),
      "13 entries",
    ),
  ],
)  # fmt: skip
def test_bad_input_is_named(make, message):
  with pytest.raises(ValueError, match=message):
    make()
