"""The transform against a NumPy loop, reductions, and its promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import gauss_newton as oracle

import optim

SHAPES = (4, 5), (5, 3)
N, M, ROWS = 4, 2, 8
LOSS = optim.softmax_cross_entropy(lambda batch: (batch["y"], batch["w"]))


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _model(params, batch):
  return jnp.tanh(batch["x"] @ params["a"]) @ params["b"]


def _theta(seed=0):
  return 0.5 * np.random.default_rng(seed).normal(size=35)


def _params(theta=None, dtype=None):
  theta = _theta() if theta is None else theta
  return dict(
    a=jnp.asarray(theta[:20].reshape(4, 5), dtype),
    b=jnp.asarray(theta[20:].reshape(5, 3), dtype),
  )


def _flat(params):
  return np.concatenate([np.ravel(params["a"]), np.ravel(params["b"])])


def _batches(seed, count, rows=ROWS):
  """A tree [count, rows, ...]; labels of a teacher, weights of all kinds."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, rows, 4))
  teacher = np.random.default_rng(99).normal(size=(4, 3))
  y = np.argmax(x @ teacher + rng.gumbel(size=(count, rows, 3)), -1)
  w = rng.choice([0.0, 0.5, 1.0], size=(count, rows))
  w[:, 0] = 1.0
  return dict(x=jnp.asarray(x), y=jnp.asarray(y), w=jnp.asarray(w))


def _listed(batches):
  arrays = [np.asarray(batches[k]) for k in "xyw"]
  return [tuple(x[i] for x in arrays) for i in range(len(arrays[0]))]


def _data(t, n=N, m=M):
  return dict(batches=_batches(2 * t, n), ls_batches=_batches(2 * t + 1, m))


def _rate(t, i):
  """In the precision of the test; `inner_schedule` is float32."""
  del t
  return 0.05 * (1 + jnp.cos(jnp.pi * i / N)) / 2


def _build(**changes):
  options = dict(
    inner_steps=N,
    learning_rate=_rate,
    line_search=optim.LineSearch(num_batches=M),
  )
  weight_decay = changes.pop("weight_decay", 0.1)
  inner = optax.adamw(1.0, 0.9, 0.99, weight_decay=weight_decay)
  return optim.gauss_newton(_model, LOSS, inner, **(options | changes))


def _run(tx, steps=4, params=None, data=_data):
  params = _params() if params is None else params
  update, state = jax.jit(tx.update), tx.init(params)
  trace = []
  for t in range(steps):
    updates, state = update(None, state, params, **data(t))
    params = optax.apply_updates(params, updates)
    trace.append((params, state))
  assert update._cache_size() <= 1  # 0: JAX kept no entry.
  return trace


CASES = {
  "quadratic": (dict(), dict()),
  "prox_linear": (dict(mode="prox_linear"), dict(mode="prox_linear")),
  "damped": (dict(damping=0.25, weight_decay=0.0), dict(damping=0.25, wd=0.0)),
  "clipped": (dict(clip_norm=0.4), dict(clip=0.4)),
  "reset": (
    dict(warm_start=0.0, reset_inner_state=True),
    dict(warm=0.0, reset=True),
  ),
  "decayed": (dict(warm_start=0.9), dict(warm=0.9)),
  "layerwise": (
    dict(scope=lambda p: dict(a="first", b="second")),
    dict(layerwise=True),
  ),
  "layerwise_prox": (
    dict(scope=dict(a="first", b="second"), mode="prox_linear"),
    dict(layerwise=True, mode="prox_linear"),
  ),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_equals_the_host_loop(case, float64):
  changes, options = CASES[case]
  options = dict(options)
  groups = None
  if options.pop("layerwise", False):
    first = np.arange(35) < 20
    groups = [first, ~first]

  defaults = dict(
    mode="quadratic", rate=lambda *ti: float(_rate(*ti)), wd=0.1,
    damping=0.0, clip=None, warm=1.0, reset=False,
    alphas=np.float64(np.float32(2.0 ** (-np.arange(5) / 2))),
  )  # fmt: skip
  loop = oracle.HostLoop(_theta(), SHAPES, defaults | options, groups)
  for t, (params, state) in enumerate(_run(_build(**changes))):
    data = _data(t)
    alpha, losses = loop.step(
      _listed(data["batches"]), _listed(data["ls_batches"])
    )
    assert float(state.alpha) == pytest.approx(alpha)
    np.testing.assert_allclose(_flat(params), loop.theta, atol=1e-10)
    np.testing.assert_allclose(state.info.losses, losses, atol=1e-6)
    np.testing.assert_allclose(
      _flat(state.delta), loop.iterate - loop.theta, atol=1e-10
    )


def test_splitting_a_batch_changes_nothing(float64):
  whole, parts = (_run(_build(splits=n))[-1] for n in (1, 4))
  np.testing.assert_allclose(_flat(whole[0]), _flat(parts[0]), atol=1e-10)
  assert float(whole[1].info.solve_tokens) == pytest.approx(
    float(parts[1].info.solve_tokens)
  )


def test_nonlinear_mode_is_the_inner_optimizer_itself(float64):
  # Without line search, warm start or reset: plain AdamW on the batches.
  tx = _build(mode="nonlinear", line_search=None, learning_rate=0.05)
  params = _params()
  plain = optax.adamw(0.05, 0.9, 0.99, weight_decay=0.1)
  state = plain.init(params)

  @jax.jit
  def step(params, state, batch):
    grads = jax.grad(lambda p: LOSS(_model(p, batch), batch))(params)
    updates, state = plain.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for t in range(3):
    for i in range(N):
      batch = jax.tree.map(lambda x, i=i: x[i], _data(t)["batches"])
      params, state = step(params, state, batch)
  trace = _run(tx, steps=3, data=lambda t: dict(batches=_data(t)["batches"]))
  np.testing.assert_allclose(_flat(trace[-1][0]), _flat(params), atol=1e-10)
  assert not np.any(_flat(trace[-1][1].delta))


def test_inner_and_outer_parts_are_the_transform():
  options = dict(
    inner_steps=N, learning_rate=0.05,
    line_search=optim.LineSearch(num_batches=M),
  )  # fmt: skip
  args = _model, LOSS, optax.adam(1.0)
  solver = optim.gauss_newton_solver(*args, **options)
  tx = optim.gauss_newton(*args, **options)
  params = _params()
  wanted, _ = jax.jit(tx.update)(None, tx.init(params), params, **_data(0))
  state, inner = solver.init(params), jax.jit(solver.inner)
  for i in range(N):
    batch = jax.tree.map(lambda x, i=i: x[i], _data(0)["batches"])
    state, info = inner(state, params, batch)
    assert int(state.inner_count) == info.depth == i + 1
  ls_batches = _data(0)["ls_batches"]
  updates, ended, info = jax.jit(solver.outer)(state, params, ls_batches)
  np.testing.assert_allclose(_flat(updates), _flat(wanted), rtol=1e-5)
  again, _, _ = jax.jit(solver.outer)(state, params, ls_losses=info.losses)
  np.testing.assert_allclose(_flat(again), _flat(wanted), rtol=1e-5)
  assert int(ended.inner_count) == 0
  assert int(ended.count) == 1


def test_counts_tokens_and_depth():
  data = _data(0)
  _, state = _run(_build(), steps=1)[0]
  info = state.info
  assert float(info.solve_tokens) == pytest.approx(data["batches"]["w"].sum())
  search = float(data["ls_batches"]["w"].sum())
  assert float(info.search_tokens) == pytest.approx(search)
  assert float(info.eval_tokens) == pytest.approx(5 * search)
  assert int(info.depth) == N + 5
  # Of one step, not a running sum.
  _, state = _run(_build(), steps=2)[1]
  assert float(state.info.solve_tokens) == pytest.approx(
    _data(1)["batches"]["w"].sum()
  )


def test_the_first_inner_gradient_is_the_gradient(float64):
  tx = _build(inner_steps=1, line_search=None)
  data = lambda t: dict(batches=_batches(t, 1))  # noqa: E731
  _, state = _run(tx, steps=1, data=data)[0]
  batch = jax.tree.map(lambda x: x[0], _batches(0, 1))
  grads = jax.grad(lambda p: LOSS(_model(p, batch), batch))(_params())
  norm = float(optax.tree.norm(grads))
  assert float(state.info.grad_norm) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("clip_norm", [None, 0, 0.0])
def test_no_clipping_never_zeroes_updates(clip_norm):
  params, _ = _run(_build(clip_norm=clip_norm), steps=1)[0]
  assert np.abs(_flat(params) - _theta()).max() > 1e-3


@pytest.mark.parametrize("mode", ["quadratic", "prox_linear", "nonlinear"])
def test_larger_damping_makes_smaller_steps(mode, float64):
  params, batches = _params(), _data(0)["batches"]

  @jax.jit
  def length(damping):
    tx = _build(damping=damping, mode=mode, line_search=None, weight_decay=0.0)
    updates, _ = tx.update(None, tx.init(params), params, batches=batches)
    return optax.tree.norm(updates)

  lengths = [float(length(damping)) for damping in (0.0, 0.3, 1.0, 10.0)]
  assert lengths == sorted(lengths, reverse=True)
  assert lengths[-1] < 0.9 * lengths[0]


def test_damping_schedule_is_of_the_outer_step(float64):
  schedule = lambda t: jnp.where(t == 1, 0.3, 0.0)  # noqa: E731
  trace = _run(_build(damping=schedule))
  assert [float(s.info.damping) for _, s in trace] == pytest.approx(
    [0, 0.3, 0, 0]
  )
  constant = _run(_build(damping=0.0))
  np.testing.assert_allclose(_flat(trace[0][0]), _flat(constant[0][0]))
  assert np.abs(_flat(trace[1][0]) - _flat(constant[1][0])).max() > 1e-5


def test_a_reset_does_not_restart_the_learning_rate(float64):
  seen = []

  def rate(t, i):
    jax.debug.callback(
      lambda t, i: seen.append((int(t), int(i))), t, i, ordered=True
    )
    return 0.01

  _run(_build(reset_inner_state=True, learning_rate=rate), steps=2)
  jax.effects_barrier()
  assert seen == [(t, i) for t in range(2) for i in range(N)]


def test_bfloat16_params_and_a_float32_displacement():
  params = _params(dtype=jnp.bfloat16)
  tx = _build(accumulate_dtype=jnp.float32)
  data = lambda t: jax.tree.map(  # noqa: E731
    lambda x: x.astype(jnp.bfloat16) if x.ndim == 4 else x, _data(t)
  )
  trace = _run(tx, params=params, data=data)
  for after, state in trace:
    assert {x.dtype for x in after.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in state.delta.values()} == {jnp.dtype(jnp.float32)}
  assert float(trace[-1][1].info.losses.min()) < float(
    trace[0][1].info.losses.max()
  )


def test_resumes_bitwise_from_arrays(tmp_path):
  tx = _build(scope=dict(a="first", b="second"))
  whole = _run(tx, steps=4)
  params, state = whole[1]
  leaves, treedef = jax.tree.flatten((params, state))
  np.savez(tmp_path / "state.npz", *leaves)
  with np.load(tmp_path / "state.npz") as stored:
    leaves = [jnp.asarray(stored[f"arr_{i}"]) for i in range(len(leaves))]
  params, state = jax.tree.unflatten(treedef, leaves)
  update = jax.jit(tx.update)
  for t in (2, 3):
    updates, state = update(None, state, params, **_data(t))
    params = optax.apply_updates(params, updates)
  for a, b in zip(
    jax.tree.leaves((params, state)), jax.tree.leaves(whole[-1]), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_an_outer_step_stays_on_the_device():
  tx, params = _build(), _params()
  text = str(
    jax.make_jaxpr(tx.update)(None, tx.init(params), params, **_data(0))
  )
  assert "callback" not in text
  assert "infeed" not in text


def test_a_step_is_compiled_once_for_all_numbers():
  def step(state, params, data, rate, damping):
    tx = _build(learning_rate=lambda t, i: rate / (1 + i), damping=damping)
    updates, state = tx.update(None, state, params, **data)
    return optax.apply_updates(params, updates), state

  step = jax.jit(step, donate_argnums=(0, 1))
  params = _params()
  state = _build().init(params)
  for t in range(3):
    params, state = step(state, params, _data(t), 0.01 * (t + 1), 0.1 * t)
  assert step._cache_size() <= 1  # 0: JAX kept no entry.
