"""Conjugate gradients, damping and line searches where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from optim.newton import cg, damping, line_search

SQUARES = optim.squared_error()
EXACT = optim.CG(50, tol=0.0)


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _linear(params, batch):
  return batch["x"] @ params["w"]


def _problem(rows, batches=2):
  """Overdetermined, or with fewer rows than the 12 parameters' 4 inputs."""
  x = _normal(0, batches, rows, 4) * jnp.asarray([1.0, 0.5, 0.2, 2.0])
  return dict(x=x, targets=_normal(1, batches, rows, 3)), dict(
    w=_normal(2, 4, 3)
  )


def _newton(rows=10, data=None, solver=EXACT, **options):
  """One outer step of conjugate gradients on a linear model."""
  batches, params = _problem(rows)
  options = dict(line_search=optim.LineSearch(num_batches=2)) | options
  tx = optim.gauss_newton(
    _linear, SQUARES, optax.identity(), inner_steps=2, solver=solver, **options
  )
  updates, state = jax.jit(tx.update)(
    None, tx.init(params), params, batches=batches,
    ls_batches=batches if data is None else data,
  )  # fmt: skip
  return optax.apply_updates(params, updates), state, batches, params


def _stack(batches):
  return tuple(
    np.asarray(batches[k]).reshape(-1, batches[k].shape[-1])
    for k in ("x", "targets")
  )


def test_one_step_is_least_squares(float64):
  after, state, batches, _ = _newton()
  wanted = np.linalg.lstsq(*_stack(batches))[0]
  np.testing.assert_allclose(after["w"], wanted, atol=1e-10)
  assert float(state.alpha) == 1
  assert not np.any(state.delta["w"])


def test_damping_is_a_ridge_at_the_old_parameters(float64):
  after, _, batches, params = _newton(damping=0.5, line_search=None)
  x, y = _stack(batches)
  gram = x.T @ x / len(x) + 0.5 * np.eye(4)
  right = x.T @ y / len(x) + 0.5 * np.asarray(params["w"])
  np.testing.assert_allclose(
    after["w"], np.linalg.solve(gram, right), atol=1e-10
  )


def test_as_many_iterations_as_the_rank(float64):
  # 2 batches of 1 row: rank 2 (for each of the 3 outputs alike).
  after, state, batches, _ = _newton(rows=1, solver=optim.CG(2, tol=0.0))
  x, y = _stack(batches)
  np.testing.assert_allclose(x @ np.asarray(after["w"]), y, atol=1e-10)
  # The gradient, the product with the start, iterations and candidates.
  assert int(state.info.depth) == 2 + 2 + 5


def test_a_preconditioner_that_is_the_diagonal_needs_one_iteration(float64):
  curvature = jnp.asarray([1.0, 10.0, 100.0, 0.1])
  grad, start = dict(w=_normal(0, 4)), dict(w=jnp.zeros(4))

  def iterations(precond):
    solution = cg.solve(
      lambda v: dict(w=curvature * v["w"]), grad, start, precond,
      optim.CG(20, tol=0.0),
    )  # fmt: skip
    np.testing.assert_allclose(
      solution.d["w"], -grad["w"] / curvature, atol=1e-10
    )
    return int(solution.iters)

  assert iterations(None) >= 4
  assert iterations(dict(w=curvature)) == 1


def test_the_preconditioner_sees_params_and_batches(float64):
  seen = {}

  def precond(params, batches):
    seen.update(params=params["w"].shape, x=batches["x"].shape)
    return dict(w=jnp.full((4, 3), 2.0))

  a = _newton(solver=optim.CG(50, precond, tol=0.0))[0]
  b = _newton()[0]
  np.testing.assert_allclose(a["w"], b["w"], atol=1e-9)
  assert seen == dict(params=(4, 3), x=(2, 10, 4))


def test_slow_progress_stops_early(float64):
  matrix = jnp.diag(jnp.logspace(0, -6, 60))
  grad = dict(w=jnp.sqrt(jnp.diag(matrix)))

  def iterations(tol):
    solution = cg.solve(
      lambda v: dict(w=matrix @ v["w"]), grad, dict(w=jnp.zeros(60)), None,
      optim.CG(60, tol=tol),
    )  # fmt: skip
    return int(solution.iters)

  assert 10 < iterations(5e-2) < iterations(5e-3) < iterations(0.0)


def test_a_solved_system_stays_solved(float64):
  grad = dict(w=jnp.zeros(4))
  solution = cg.solve(lambda v: v, grad, dict(w=jnp.zeros(4)), None, optim.CG())
  assert int(solution.iters) == 0
  assert not np.any(solution.d["w"])


def test_curvature_of_some_batches_needs_damping(float64):
  # The gradient of 8 rows, the curvature of 1: undamped, refused at once.
  solver = optim.CG(50, tol=0.0, curvature_batches=1)
  with pytest.raises(ValueError, match="outside the range of G"):
    _newton(rows=1, solver=solver)
  batches, params = _problem(1)
  after, _, _, _ = _newton(rows=1, solver=solver, damping=0.5, line_search=None)
  x, y = _stack(batches)
  w = np.asarray(params["w"])
  grad = x.T @ (x @ w - y) / 2
  step = np.linalg.solve(np.outer(x[0], x[0]) + 0.5 * np.eye(4), -grad)
  np.testing.assert_allclose(after["w"], w + step, atol=1e-10)


# --- Levenberg-Marquardt -----------------------------------------------------


@pytest.mark.parametrize("search", ["grid", "quadratic"])
def test_a_perfect_model_lowers_the_damping(search, float64):
  kinds = dict(
    grid=optim.LineSearch(num_batches=2),
    quadratic=optim.QuadraticLineSearch(num_batches=2),
  )
  after, state, batches, params = _newton(
    damping=optim.LevenbergMarquardt(0.5), line_search=kinds[search]
  )
  x, y = _stack(batches)
  d = np.linalg.solve(
    x.T @ x / len(x) + 0.5 * np.eye(4),
    -x.T @ (x @ np.asarray(params["w"]) - y) / len(x),
  )

  def loss(w):
    return np.sum((x @ w - y) ** 2) / 2 / len(x)

  w = np.asarray(params["w"])
  change = loss(w + d) - loss(w)
  wanted = change / (change + 0.25 * np.sum(d**2))
  assert float(state.info.rho) == pytest.approx(wanted, rel=1e-6)
  assert wanted > 0.75
  assert float(state.info.damping) == pytest.approx(0.5)
  assert float(state.damping) == pytest.approx(0.5 * 2 / 3)


def test_a_bad_model_raises_the_damping():
  # From w = 0.1 to 0.3 outputs grow 3000 times, where the model has 5.
  ((_, state),) = _explode(
    [50.0], learning_rate=0.2, damping=optim.LevenbergMarquardt(0.5)
  )
  assert float(state.info.rho) < 0
  assert float(state.damping) == pytest.approx(0.75)


def test_a_ratio_that_is_no_number_raises_the_damping():
  rule = optim.LevenbergMarquardt()
  old = jnp.float32(0.3)
  for actual, predicted, wanted in (
    (jnp.nan, -1.0, 0.45), (jnp.inf, -1.0, 0.45), (-1.0, 0.5, 0.45),
    (-1.0, jnp.nan, 0.45), (-0.5, -1.0, 0.3), (-0.2, -1.0, 0.45),
    (-0.9, -1.0, 0.2),
  ):  # fmt: skip
    _, new = damping.adapt(
      rule, old, jnp.float32(actual), jnp.float32(predicted)
    )
    assert float(new) == pytest.approx(wanted), (actual, predicted)
  _, new = damping.adapt(rule, jnp.float32(1e-8), jnp.float32(-1), -1.0)
  assert float(new) == pytest.approx(1e-8)


def test_a_damping_that_has_grown_may_fall_again():
  """At a minimum rho is NaN at every step; infinity would stay for ever."""
  rule = optim.LevenbergMarquardt(maximum=100.0)
  value = jnp.float32(1.0)
  for _ in range(400):  # 1.5^400 is no float32.
    _, value = damping.adapt(rule, value, jnp.float32(0), jnp.float32(0))
  assert float(value) == 100
  _, value = damping.adapt(rule, value, jnp.float32(-0.9), jnp.float32(-1))
  assert float(value) == pytest.approx(100 * 2 / 3)
  with pytest.raises(ValueError, match="maximum=0.0 must be above"):
    damping.check(optim.LevenbergMarquardt(maximum=0.0))


# --- Line searches -----------------------------------------------------------


def test_the_quadratic_search_finds_the_minimum_of_a_quadratic(float64):
  batches, params = _problem(10)
  tx = optim.gauss_newton(
    _linear, SQUARES, optax.sgd(1.0), inner_steps=2, learning_rate=0.05,
    line_search=optim.QuadraticLineSearch(num_batches=2, max_alpha=100.0),
  )  # fmt: skip
  updates, state = jax.jit(tx.update)(
    None, tx.init(params), params, batches=batches, ls_batches=batches
  )
  x, y = _stack(batches)
  residual = x @ np.asarray(params["w"]) - y
  u = x @ np.asarray(updates["w"]) / float(state.alpha)
  wanted = -np.sum(residual * u) / np.sum(u * u)
  assert float(state.alpha) == pytest.approx(wanted, rel=1e-6)
  assert wanted > 1
  capped = optim.gauss_newton(
    _linear, SQUARES, optax.sgd(1.0), inner_steps=8, learning_rate=0.05,
    line_search="quadratic",
  )  # fmt: skip
  four = jax.tree.map(lambda x: jnp.concatenate([x] * 4), batches)
  _, state = capped.update(
    None, capped.init(params), params, batches=four, ls_batches=batches
  )
  assert float(state.alpha) == 1


def test_losses_that_are_not_finite_do_not_count():
  alphas = line_search.candidates(optim.LineSearch(include_zero=True))
  np.testing.assert_allclose(alphas, [1, 2**-0.5, 0.5, 2**-1.5, 0.25, 0])
  nan, inf = jnp.nan, jnp.inf
  for values, wanted in (
    ([nan, inf, 3, 2, 4, 5], 2**-1.5),
    ([nan, -inf, nan, nan, nan, 5], 0),
    ([nan] * 6, 0),
    ([1, 1, 1, 1, 1, 0.5], 0),
    ([inf] * 6, 0),
  ):
    alpha = line_search.choose(alphas, jnp.asarray(values, jnp.float32))
    assert float(alpha) == pytest.approx(wanted)


def _explosive(params, batch):
  """Finite near w = 0 only."""
  return jnp.exp(100 * params["w"] ** 2) * batch["x"]


def _explode(steps, **options):
  tx = optim.gauss_newton(
    _explosive, SQUARES, optax.adam(1.0), inner_steps=1, **options
  )
  params, state = dict(w=jnp.full((1,), 0.1)), None
  state = tx.init(params)
  trace = []
  for target in steps:
    batch = dict(x=jnp.ones((1, 2, 1)), targets=jnp.full((1, 2, 1), target))
    updates, state = jax.jit(tx.update)(
      None, state, params, batches=batch, ls_batches=batch
    )
    params = optax.apply_updates(params, updates)
    trace.append((params, state))
  return trace


def test_a_step_into_the_infinite_is_shortened_or_rejected():
  # d = +-4: exp(100 w^2) overflows for all but the shortest candidates.
  ((params, state),) = _explode([50.0], learning_rate=4.0)
  assert float(state.alpha) == 0
  assert int(state.info.rejected) == 1
  assert float(params["w"][0]) == pytest.approx(0.1)
  long = optim.LineSearch(num=14)
  ((params, state),) = _explode([50.0], learning_rate=4.0, line_search=long)
  assert 0 < float(state.alpha) < 0.1
  assert int(state.info.rejected) == 0
  assert 0.1 < float(params["w"][0]) < 0.4


def test_a_displacement_that_is_not_finite_is_dropped():
  trace = _explode([jnp.nan, 50.0, 50.0], learning_rate=0.05)
  params, state = trace[0]
  assert float(params["w"][0]) == pytest.approx(0.1)
  assert float(state.alpha) == 0
  assert float(state.delta["w"][0]) == 0
  assert not np.any(np.isnan(np.concatenate(
    [np.ravel(x) for x in jax.tree.leaves(state.inner_state)]
  )))  # fmt: skip
  assert float(trace[-1][0]["w"][0]) > 0.15  # And it goes on.


def test_a_rejected_displacement_is_kept_unless_it_is_reset():
  zero = optim.LineSearch(num=1, include_zero=True)
  ((_, kept),) = _explode([50.0], learning_rate=4.0, line_search=zero)
  ((_, dropped),) = _explode(
    [50.0], learning_rate=4.0, line_search=zero, warm_start=0.0
  )
  assert float(kept.alpha) == float(dropped.alpha) == 0
  assert float(kept.delta["w"][0]) == pytest.approx(4, rel=1e-3)
  assert float(dropped.delta["w"][0]) == 0


def test_losses_of_one_batch_for_the_streaming_form():
  batches, params = _problem(3, batches=1)
  batch = jax.tree.map(lambda x: x[0], batches)
  d = jax.tree.map(jnp.ones_like, params)
  losses, weight = optim.line_search_losses(_linear, SQUARES, params, d, batch)
  for i in range(5):
    moved = dict(w=params["w"] + 2.0 ** (-i / 2))
    wanted = SQUARES(_linear(moved, batch), batch)
    assert float(losses[i]) == pytest.approx(float(wanted), rel=1e-5)
  assert float(weight) == 3


def test_precision_of_products_reaches_model_and_search():
  batches, params = _problem(10)

  def products(precision):
    tx = optim.gauss_newton(
      _linear, SQUARES, optax.sgd(1.0), inner_steps=2,
      matmul_precision=precision,
      line_search=optim.LineSearch(num_batches=2),
    )  # fmt: skip
    text = str(
      jax.make_jaxpr(tx.update)(
        None, tx.init(params), params, batches=batches, ls_batches=batches
      )
    )
    return text.count("= dot_general["), text.count("precision=(Precision.H")

  count, precise = products("highest")
  assert count == precise == 4  # Forward, tangent, back; and the search.
  assert products(None)[1] == 0
