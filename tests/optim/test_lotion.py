"""The transforms of LOTION against their parts; where it ends, by theory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optim

INT4 = optim.Quantizer(optim.INT4)


def lotion_soap(learning_rate, quantizer, strength, *, mask=None, **options):
  """SOAP on the penalised loss, its curvature the factors of SOAP."""
  tx = optim.soap(learning_rate, **options)
  curvature = functools.partial(optim.factor_diagonal, decay=0.95)
  return optim.with_rounding_penalty(
    tx, quantizer, strength, curvature, mask=mask
  )


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
  for zero in (0.0, jnp.zeros(()), optax.constant_schedule(0.0)):
    tx = optim.lotion_adamw(1e-2, INT4, zero, weight_decay=0.1)
    penalized, _ = _run(tx)
    jax.tree.map(np.testing.assert_array_equal, plain, penalized)
  other, _ = _run(optim.lotion_adamw(1e-2, INT4, 1.0, weight_decay=0.1))
  assert np.any(other["kernel"] != plain["kernel"])


def test_strength_zero_hides_what_is_not_finite():
  tx = optim.add_rounding_penalty(INT4, optax.constant_schedule(0.0))
  w, g = jnp.asarray([1.0, jnp.inf]), jnp.asarray([0.5, -0.0])
  updates, _ = tx.update(g, tx.init(w), w)
  np.testing.assert_array_equal(updates, g)


def test_names_of_the_states():
  state = optim.add_rounding_penalty(INT4, 1.0).init(_tree(0))
  assert isinstance(state, optim.RoundingPenaltyState)
  state = lotion_soap(1.0, INT4, 1.0).init(_tree(0))
  assert isinstance(state, optim.PenalizedState)


def test_strength_zero_is_soap():
  options = dict(dimension_numbers=None, precondition_frequency=3)
  plain, _ = _run(optim.soap(1e-2, **options), 8)
  penalized, _ = _run(lotion_soap(1e-2, INT4, 0.0, **options), 8)
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


def test_a_step_has_no_matrix_product():
  params = jnp.ones((64, 64))
  for q in (INT4, optim.Quantizer(optim.E2M1, -2, 32)):
    tx = optim.lotion_adamw(1e-2, q, 1.0)
    lowered = jax.jit(tx.update).lower(params, tx.init(params), params)
    assert " dot(" not in lowered.compile().as_text()
    # One floor and one ceiling: nothing is rounded for a forward pass.
    text = lowered.as_text()
    assert (text.count("stablehlo.floor"), text.count("stablehlo.ceil")) == (
      1,
      1,
    )
    assert "round_nearest_even" not in text


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
