"""Closed-form schedules against optax's joined ones; debiased averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

T, N = 5, 8


def _rates(kind, **changes):
  options = dict(
    peak=0.3, outer_steps=T, inner_steps=N, outer_warmup=0.4, inner_warmup=0.25,
    end=0.01,
  )  # fmt: skip
  rate = optim.inner_schedule(kind, **(options | changes))
  t, i = np.divmod(np.arange(T * N), N)
  return np.asarray(jax.vmap(rate)(t, i)).reshape(T, N)


def _cosine(peak, warmup, whole, end=0.01):
  return optax.warmup_cosine_decay_schedule(peak / 10, peak, warmup, whole, end)


def test_constant():
  assert np.all(_rates("constant") == np.float32(0.3))


def test_global_cosine():
  joined = _cosine(0.3, 0.4 * T * N, T * N)
  wanted = [joined(c) for c in range(T * N)]
  np.testing.assert_allclose(_rates("global_cosine").ravel(), wanted, rtol=1e-5)


def test_constant_with_inner_cosine():
  # One schedule a step, joined at the boundaries, as the study builds it.
  peaks = [0.03, 0.165, 0.3, 0.3, 0.3]
  joined = optax.join_schedules(
    [_cosine(peak, 0.25 * N, N) for peak in peaks],
    [N * t for t in range(1, T)],
  )
  wanted = [joined(c) for c in range(T * N)]
  np.testing.assert_allclose(
    _rates("constant_with_inner_cosine").ravel(), wanted, rtol=1e-5
  )


def test_cosine_with_global_schedule():
  outer = _cosine(0.3, 0.4 * T, T)
  wanted = [
    [_cosine(float(outer(t)), 0.25 * N, N)(i) for i in range(N)]
    for t in range(T)
  ]
  actual = _rates("cosine_with_global_schedule")
  np.testing.assert_allclose(actual, wanted, rtol=1e-5)
  # The first step warms up, the last one still moves.
  no_end = _rates("cosine_with_global_schedule", end=0.0)
  assert np.all(no_end[-1] > 0)
  assert no_end[0, 2] == pytest.approx(0.03)


def test_warmups_are_fractions_or_steps():
  np.testing.assert_allclose(
    _rates("global_cosine", outer_warmup=0.4),
    _rates("global_cosine", outer_warmup=2),
    rtol=1e-6,
  )
  none = _rates("global_cosine", outer_warmup=0, end=0.0)
  assert none[0, 0] == np.float32(0.3)
  whole = _rates("constant_with_inner_cosine", inner_warmup=1.0)
  assert np.all(np.diff(whole, axis=1) > 0)


def test_past_the_end_it_stays():
  rate = optim.inner_schedule("global_cosine", 0.3, T, N, end=0.01)
  assert float(rate(T + 3, 0)) == pytest.approx(0.01)


def test_it_does_not_grow_with_the_number_of_steps():
  def size(steps):
    rate = optim.inner_schedule("constant_with_inner_cosine", 0.1, steps, 4)
    return len(jax.make_jaxpr(rate)(0, 0).jaxpr.eqns)

  assert size(1000) == size(2) < 60


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(kind="linear"), "kind='linear' is not known"),
    (dict(peak=-1.0), "peak=-1.0 must be >= 0"),
    (dict(end=-1.0), "end=-1.0 must be >= 0"),
    (dict(outer_steps=0), "outer_steps=0 must be >= 1"),
    (dict(inner_steps=1.5), "inner_steps=1.5 must be a Python int"),
    (dict(outer_warmup=-0.1), "outer_warmup=-0.1 must be >= 0"),
    (dict(inner_warmup=9), "inner_warmup=9 is longer than the 8 steps"),
  ],
)
def test_mistakes_are_explained(changes, message):
  options = dict(kind="constant", peak=0.1, outer_steps=T, inner_steps=N)
  with pytest.raises(ValueError, match=message):
    optim.inner_schedule(**(options | changes))


# --- Averages ----------------------------------------------------------------


def _average(tx, steps, decay=0.9, **options):
  tx = optim.average_weights(tx, decay, **options)
  params = dict(w=jnp.asarray([1.0, -2.0]))
  state, update, weights = tx.init(params), jax.jit(tx.update), []
  for step in range(steps):
    grads = dict(w=jnp.asarray([1.0, float(step)]))
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    weights.append(np.asarray(params["w"]))
  return optim.averaged_params(state, params)["w"], weights, state


def test_average_has_no_part_of_the_start():
  average, weights, state = _average(optax.sgd(0.5), 5)
  shares = 0.9 ** np.arange(4, -1, -1)
  wanted = shares @ np.stack(weights) / shares.sum()
  np.testing.assert_allclose(average, wanted, rtol=1e-6)
  assert int(state.count) == 5
  before, _, _ = _average(optax.sgd(0.5), 0)
  np.testing.assert_array_equal(before, [1.0, -2.0])
  first, weights, _ = _average(optax.sgd(0.5), 1, decay=0.999)
  np.testing.assert_allclose(first, weights[0], rtol=1e-6)


def test_an_accumulating_optimiser_counts_its_updates():
  average, weights, state = _average(
    optax.MultiSteps(optax.sgd(0.5), 3).gradient_transformation(), 6,
    has_updated=lambda s: (s.mini_step == 0) & (s.gradient_step > 0),
  )  # fmt: skip
  assert int(state.count) == 2
  wanted = (0.9 * weights[2] + weights[5]) / 1.9
  np.testing.assert_allclose(average, wanted, rtol=1e-6)


def test_average_is_float32_and_read_in_the_dtype_of_params():
  params = jnp.ones(2, jnp.bfloat16)
  state = optim.average_weights(optax.sgd(0.1), 0.9).init(params)
  assert state.average.dtype == jnp.float32
  assert optim.averaged_params(state, params).dtype == jnp.bfloat16


def test_mistakes_of_averages_are_explained():
  with pytest.raises(ValueError, match="decay=1.0 must be in"):
    optim.average_weights(optax.sgd(0.1), 1.0)
  tx = optim.average_weights(optax.sgd(0.1), 0.9)
  with pytest.raises(ValueError, match="pass them"):
    tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
