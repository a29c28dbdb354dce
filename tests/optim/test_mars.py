"""MARS: the correction, its exact form, its identities, stacks and decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

_STACK = optim.DimensionNumbers(sides=(1, 2), stack=0)
_SHAPES = dict(w=(3, 4), stack=(2, 3, 3), b=(4,))
_DIMS = dict(stack=_STACK)


def _normal(seed, scale=1.0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  return {
    k: jnp.asarray(scale * rng.normal(size=s), dtype)
    for k, s in _SHAPES.items()
  }


def _trace(tx, steps=5, scale=1.0, extra=lambda k: {}):
  params = _normal(0)
  state, trace = tx.init(params), []
  update = jax.jit(tx.update)
  for k in range(steps):
    grads = _normal(k + 1, scale)
    updates, state = update(grads, state, params, **extra(k))
    trace.append(updates)
  return trace, state


def _same(a, b, atol=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b
  )


def _norm(x):
  return np.sqrt(np.sum(np.square(x, dtype=np.float64)))


@pytest.mark.parametrize("max_norm", [1.0, 0.3, None])
def test_correction_by_hand(max_norm):
  tx = optim.mars_correction(
    0.9, gamma=0.1, max_norm=max_norm, dimension_numbers=_DIMS
  )
  trace, _ = _trace(tx, steps=3, scale=0.5)

  def clip(c):
    return c if max_norm is None else c / max(1, _norm(c) / max_norm)

  last = jax.tree.map(jnp.zeros_like, _normal(0))
  for k, corrected in enumerate(trace):
    grads = _normal(k + 1, 0.5)
    c = jax.tree.map(
      lambda g, old: np.asarray(g + 0.9 * (g - old)), grads, last
    )
    wanted = dict(
      w=clip(c["w"]),
      b=clip(c["b"]),
      stack=np.stack(list(map(clip, c["stack"]))),
    )
    _same(corrected, wanted, 1e-6)
    last = grads


def test_without_strength_nothing_is_corrected():
  tx = optim.mars_correction(gamma=0.0, max_norm=None, dimension_numbers=_DIMS)
  trace, _ = _trace(tx)
  _same(trace, [_normal(k + 1) for k in range(5)], 0)


@pytest.mark.parametrize("variant", ["lion", "shampoo", "muon"])
def test_no_buffer_is_needed_without_clipping(variant):
  # A limit that is never reached keeps the buffer.
  make = lambda limit: optim.scale_by_mars(  # noqa: E731
    gamma=0.1, variant=variant, max_norm=limit, dimension_numbers=_DIMS,
    optimize_1d=variant == "lion",
  )  # fmt: skip
  _same(_trace(make(1e6))[0], _trace(make(None))[0], 1e-4)


def test_exact_takes_the_gradient_at_the_previous_parameters():
  make = lambda **options: optim.scale_by_mars(  # noqa: E731
    max_norm=None, dimension_numbers=_DIMS, optimize_1d=True, **options
  )
  # Given the last gradients, which are 0 at first, it is the other form.
  by_hand, state = _trace(
    make(exact=True), extra=lambda k: dict(previous_grads=_normal(k))
  )
  _same(by_hand, _trace(make())[0])
  assert sum(x.size for x in jax.tree.leaves(state)) < 2.5 * 34


def test_exact_under_a_mask_and_errors():
  tx = optax.masked(
    optim.mars_correction(exact=True, dimension_numbers=_DIMS),
    dict(w=True, stack=True, b=False),
  )
  params = _normal(0)
  updates, _ = tx.update(
    _normal(1), tx.init(params), params, previous_grads=_normal(2)
  )
  _same(updates["b"], _normal(1)["b"], 0)
  with pytest.raises(
    ValueError, match="exact=True, but update got no argument"
  ):
    tx.update(_normal(1), tx.init(params), params)
  tx = optim.mars_correction(dimension_numbers=_DIMS)
  with pytest.raises(ValueError, match="exact=False, but update got an arg"):
    tx.update(_normal(1), tx.init(params), previous_grads=_normal(2))


def test_the_correction_composes_with_any_direction():
  # MARS-AdamW of all leaves, put together by hand.
  chain = optax.chain(
    optim.mars_correction(0.95, dimension_numbers=_DIMS),
    optax.scale_by_adam(0.95, 0.99),
  )
  tx = optim.scale_by_mars(dimension_numbers=_DIMS, optimize_1d=True)
  _same(_trace(tx)[0], _trace(chain)[0])
  with_soap = optax.chain(
    optim.mars_correction(0.95, dimension_numbers=_DIMS),
    optim.scale_by_soap(b1=0.95, dimension_numbers=_DIMS),
  )
  trace, _ = _trace(with_soap, steps=2)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(trace))


@pytest.mark.parametrize("variant", ["adamw", "muon"])
def test_each_matrix_of_a_stack_is_a_matrix_of_its_own(variant):
  stacked = optim.scale_by_mars(variant=variant, dimension_numbers=_DIMS)
  alone = optim.scale_by_mars(variant=variant)
  params = _normal(0)
  state = stacked.init(params), alone.init(params["stack"][1])
  for k in range(3):
    grads = _normal(k + 1, 3.0)
    updates, first = stacked.update(grads, state[0], params)
    update, second = alone.update(grads["stack"][1], state[1])
    state = first, second
    np.testing.assert_allclose(updates["stack"][1], update, rtol=0, atol=1e-5)


def test_the_ratio_of_the_rates_holds_under_a_schedule():
  tx = optim.mars(
    lambda count: 0.1 / (1.0 + count),
    rate_ratio_1d=0.5,
    weight_decay=0.2,
    weight_decay_1d=0.4,
    mask=dict(w=True, stack=False, b=True),
    dimension_numbers=_DIMS,
  )
  bare = optim.scale_by_mars(dimension_numbers=_DIMS)
  params = _normal(0)
  for k, (step, u) in enumerate(
    zip(_trace(tx)[0], _trace(bare)[0], strict=True)
  ):
    rate = 0.1 / (1 + k)
    _same(step["w"], -rate * (u["w"] + 0.2 * params["w"]))
    _same(step["stack"], -rate * u["stack"])
    _same(step["b"], -0.5 * rate * (u["b"] + 0.4 * params["b"]))


@pytest.mark.parametrize("variant", ["adamw", "shampoo"])
def test_gradients_that_are_not_finite_leave_no_trace(variant):
  tx = optim.scale_by_mars(variant=variant, dimension_numbers=_DIMS)
  params, bad = _normal(0), _normal(1)
  bad["stack"] = bad["stack"].at[0, 0, 0].set(jnp.nan)
  bad["b"] = bad["b"].at[1].set(jnp.inf)
  good = dict(bad, stack=bad["stack"].at[0].set(0.0), b=jnp.zeros(4))
  state = tx.init(params)
  updates, _ = tx.update(bad, state, params)
  _same(updates, tx.update(good, state, params)[0], 1e-6)


def test_words_of_state():
  params = dict(w=jax.ShapeDtypeStruct((64, 64), jnp.bfloat16))
  for options, words in (
    (dict(), 3),
    (dict(exact=True), 2),
    (dict(variant="lion"), 2),
    (dict(variant="lion", max_norm=None), 1),
    (dict(variant="shampoo"), 2),
    (dict(variant="shampoo", max_norm=None), 1),
    (dict(variant="muon"), 2),
  ):
    tx = optim.scale_by_mars(**options)
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    size = sum(x.size for x in leaves if x.dtype == jnp.float32)
    assert words <= size / 64**2 < words + 0.01


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(gamma=-0.1), "gamma=-0.1 must be >= 0"),
    (dict(max_norm=0.0), "max_norm=0.0 must be > 0"),
    (dict(variant="sgd"), "variant='sgd' is not known"),
    (dict(b1_1d=1.0), "b1_1d=1.0 must be in"),
    (
      dict(optimize_1d=True, rate_ratio_1d=0.5),
      "treats all leaves alike, so rate_ratio_1d=0.5",
    ),
  ],
)
def test_errors(settings, message):
  with pytest.raises(ValueError, match=message):
    optim.mars(0.1, **settings)
