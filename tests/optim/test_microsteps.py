"""Fed one batch at a time, Gauss-Newton does what it does with all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

N, M = 3, 2
LOSS = optim.softmax_cross_entropy()
SEARCH = optim.LineSearch(num_batches=M)
SHARED = dict(
  inner_steps=N, line_search=SEARCH, damping=0.2, warm_start=1.0,
  learning_rate=lambda t, i: 0.1 / (1 + t + i), clip_norm=0.5,
)  # fmt: skip


def _normal(seed, *shape):
  return jnp.asarray(
    np.random.default_rng(seed).normal(size=shape), jnp.float32
  )


def _model(params, batch):
  return jnp.tanh(batch["x"] @ params["a"]) @ params["b"]


def _params():
  return dict(a=_normal(0, 4, 5), b=_normal(1, 5, 3))


def _batches(seed, count):
  labels = np.random.default_rng(seed).integers(0, 3, (count, 6))
  return dict(x=_normal(seed, count, 6, 4), targets=jnp.asarray(labels))


def _at(batches, i):
  return jax.tree.map(lambda x: x[i], batches)


class _Driver:
  """A training loop that knows nothing but the two kinds of calls."""

  def __init__(self, scope="full", **options):
    self.scope = scope
    self.tx = optim.gauss_newton_microsteps(
      optax.adam(1.0), scope=scope, **(SHARED | options)
    )
    self.solve = jax.jit(self._solve)
    self.search = jax.jit(self._search)

  def _solve(self, params, state, batch):
    _, grads = optim.local_value_and_grad(
      _model, LOSS, params, state.delta, batch, scope=self.scope
    )
    updates, state = self.tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  def _search(self, params, state, batch):
    losses, weight = optim.line_search_losses(
      _model, LOSS, params, state.delta, batch, SEARCH, self.scope
    )
    updates, state = self.tx.update(
      None, state, params, ls_losses=losses, ls_weight=weight
    )
    return optax.apply_updates(params, updates), state

  def outer_step(self, params, state, batches, ls_batches):
    """Checks on the way that the parameters move at the end only."""
    start = params
    for i in range(N):
      assert not optim.needs_line_search(state, N)
      params, state = self.solve(params, state, _at(batches, i))
      assert int(state.solver.inner_count) == i + 1
    for i in range(M):
      assert optim.needs_line_search(state, N)
      assert not optim.has_updated(state)
      np.testing.assert_array_equal(params["a"], start["a"])
      params, state = self.search(params, state, _at(ls_batches, i))
    assert optim.has_updated(state)
    return params, state


@pytest.mark.parametrize("scope", ["full", dict(a="a", b="b")])
def test_equals_the_whole_step(scope):
  driver = _Driver(scope)
  whole = optim.gauss_newton(
    _model, LOSS, optax.adam(1.0), scope=scope, **SHARED
  )
  params, wanted = _params(), _params()
  state, whole_state = driver.tx.init(params), whole.init(params)
  assert not optim.has_updated(state)
  for t in range(3):
    data = _batches(2 * t, N), _batches(2 * t + 1, M)
    params, state = driver.outer_step(params, state, *data)
    updates, whole_state = jax.jit(whole.update)(
      None, whole_state, wanted, batches=data[0], ls_batches=data[1]
    )
    wanted = optax.apply_updates(wanted, updates)
    assert float(state.solver.alpha) == float(whole_state.alpha)
    for k in params:
      np.testing.assert_allclose(params[k], wanted[k], atol=1e-5)
      np.testing.assert_allclose(
        state.delta[k], whole_state.delta[k], atol=1e-5
      )
    np.testing.assert_allclose(
      state.info.losses, whole_state.info.losses, rtol=1e-5
    )
    assert int(state.info.depth) == N + 5 * M
    assert float(state.info.search_tokens) == 6 * M
  # 0: JAX kept no entry.
  assert max(driver.solve._cache_size(), driver.search._cache_size()) <= 1
  assert int(state.ignored) == 0


def test_without_a_line_search_the_last_batch_ends_the_step():
  driver = _Driver(line_search=None)
  params = _params()
  state, trace = driver.tx.init(params), []
  for i in range(2 * N):
    params, state = driver.solve(params, state, _at(_batches(i, 1), 0))
    trace.append((bool(optim.has_updated(state)), np.asarray(params["a"])))
  assert [done for done, _ in trace] == [False, False, True] * 2
  moved = [np.any(a != b) for (_, a), (_, b) in zip(trace, trace[1:])]  # noqa: B905
  assert moved == [False, True, False, False, True]


def test_calls_in_the_wrong_phase_change_nothing_and_are_counted():
  driver, params = _Driver(), _params()
  state = driver.tx.init(params)
  batch = _at(_batches(0, 1), 0)
  same, early = driver.search(params, state, batch)
  np.testing.assert_array_equal(same["a"], params["a"])
  assert int(early.ignored) == 1
  assert int(early.step) == 0
  state = early
  for _ in range(N + 1):
    _, state = driver.solve(params, state, batch)
  assert int(state.ignored) == 2
  assert int(state.step) == N


def test_average_on_the_clock_of_whole_steps():
  tx = optim.average_weights(
    optim.gauss_newton_microsteps(
      optax.sgd(1.0), inner_steps=N, line_search=None, learning_rate=0.1
    ),
    0.5,
    has_updated=optim.has_updated,
  )
  params = jnp.ones(2)
  state = tx.init(params)
  for _ in range(2 * N):
    updates, state = tx.update(jnp.ones(2), state, params)
    params = optax.apply_updates(params, updates)
  assert int(state.count) == 2
  wanted = (0.5 * 0.7 + 0.4) / 1.5
  np.testing.assert_allclose(optim.averaged_params(state, params), wanted)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda tx, s, p: tx.update(p, s), "pass them"),
    (lambda tx, s, p: tx.update(None, s, p), "neither gradients nor ls_losses"),
    (
      lambda tx, s, p: tx.update(None, s, p, ls_losses=jnp.ones(3)),
      r"ls_losses has shape \(3,\); there are 5",
    ),
  ],
)
def test_mistakes_are_explained(call, message):
  tx, params = _Driver().tx, _params()
  with pytest.raises(ValueError, match=message):
    call(tx, tx.init(params), params)


@pytest.mark.parametrize(
  "options",
  [
    dict(line_search="quadratic"),
    dict(damping=optim.LevenbergMarquardt()),
  ],
)
def test_what_it_cannot_do_is_said(options):
  with pytest.raises(ValueError, match="sees losses at the candidates only"):
    _Driver(**options)
