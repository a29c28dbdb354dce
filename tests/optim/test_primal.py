"""Primal averaging against loops in x, y and z, and against its limits."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optim

_ZOO = pathlib.Path(__file__).parent.parent / "golden" / "zoo.npz"
_START = np.array([1.5, -0.7, 0.3, 2.0])


def _gradient(y, sin=jnp.sin):
  return y**3 - 0.5 * sin(3 * y)


def _run(tx, steps=12, start=_START, gradient=_gradient):
  """[(y, x)] after each step, in float64."""
  with jax.enable_x64(True):

    def step(carry, _):
      y, state = carry
      updates, state = tx.update(gradient(y), state, y)
      y = optax.apply_updates(y, updates)
      return (y, state), (y, optim.eval_params(state, y))

    y = jnp.asarray(start)
    carry = y, tx.init(y)
    return jax.lax.scan(step, carry, length=steps)[1]


def _schedule_free_loop(rates, b, r, power):
  z = x = y = _START
  total, largest = 0.0, 0.0
  for k, rate in enumerate(rates):
    largest = max(largest, rate)
    weight = (k + 1) ** r * largest**power
    total += weight
    c = weight / total if total else 0.0
    z = z - rate * _gradient(y, np.sin)
    x = (1 - c) * x + c * z
    y = (1 - b) * z + b * x
    yield y, x


def _gpa_loop(rate, b, kept, steps):
  z = x = y = _START
  for _ in range(steps):
    z = z - rate * _gradient(y, np.sin)
    x = kept * x + (1 - kept) * z
    y = (1 - b) * z + b * x
    yield y, x


def _ema_nesterov_loop(rate, lookahead, kept, steps):
  x, m, y = _START, 0.0, _START
  for k in range(steps):
    new = y - rate * _gradient(y, np.sin)
    m = kept * m + (1 - kept) * (new - x)
    x = new
    y = x + lookahead(k + 1) * m
    yield y, x


def _same(actual, wanted, atol=1e-12):
  for i, name in enumerate(("y", "x")):
    rows = np.stack([pair[i] for pair in wanted])
    np.testing.assert_allclose(actual[i], rows, rtol=0, atol=atol, err_msg=name)


def _rate_up_and_down(k):
  return 0.02 * jnp.minimum(k, 14 - k)


def test_schedule_free_is_its_loop():
  tx = optim.primal_averaging(
    optax.identity(), _rate_up_and_down, train_interp=0.8, r=1.5,
    weight_lr_power=1.0,
  )  # fmt: skip
  rates = [0.02 * min(k, 14 - k) for k in range(12)]  # The first is 0.
  _same(_run(tx), list(_schedule_free_loop(rates, 0.8, 1.5, 1.0)))


def test_gpa_is_its_loop():
  tx = optim.primal_averaging(
    optax.identity(), 0.1, train_interp=0.7, eval_interp=0.95
  )
  _same(_run(tx), list(_gpa_loop(0.1, 0.7, 0.95, 12)))


def test_ema_nesterov_is_its_loop():
  def lookahead(k):  # Warm-up and rest.
    return 0.5 * (k >= 3) * (k < 10)

  tx = optim.primal_averaging(
    optax.identity(), 0.1, lookahead=lookahead, eval_interp=0.9
  )
  _same(_run(tx), list(_ema_nesterov_loop(0.1, lookahead, 0.9, 12)))


def test_gpa_with_a_growing_average_is_schedule_free():
  gpa = optim.primal_averaging(
    optax.identity(), 0.1, eval_interp=lambda k: k / (k + 1.0)
  )
  uniform = [0.1] * 12
  _same(_run(gpa), list(_schedule_free_loop(uniform, 0.9, 0.0, 0.0)), 1e-6)


def test_schedule_free_is_that_of_optax():
  base = optax.scale_by_rms(0.9, 1e-3, eps_in_sqrt=False, bias_correction=True)
  ours = optim.primal_averaging(base, 0.05, weight_decay=0.1)
  wrapped = optax.chain(
    base, optax.add_decayed_weights(0.1), optax.scale(-0.05)
  )
  theirs = optax.contrib.schedule_free(wrapped, 0.05)
  for mine, other in zip(_run(ours), _run(theirs), strict=True):
    np.testing.assert_allclose(mine, other, rtol=0, atol=1e-12)


# Each at the rate under which the other method has the rate 0.05.
_IDENTITIES = {
  "heavy ball": (
    dict(learning_rate=0.05 / 0.2, train_interp=1.0, eval_interp=0.8),
    optax.sgd(0.05, 0.8),
  ),
  "nesterov": (
    dict(learning_rate=0.05 / 0.2, train_interp=0.8, eval_interp=0.8),
    optax.sgd(0.05, 0.8, nesterov=True),
  ),
  "nesterov of an average": (
    dict(learning_rate=0.05, train_interp=0.8, eval_interp=0.8),
    optax.chain(
      optax.trace(0.8, nesterov=True), optax.scale(0.2), optax.scale(-0.05)
    ),
  ),
  "EMA-Nesterov": (
    dict(
      learning_rate=0.05 / 0.4,
      train_interp=0.6,
      eval_interp=0.9 + (1 - 0.9) * 0.6,
    ),
    optim.primal_averaging(
      optax.identity(), 0.05, lookahead=0.6, eval_interp=0.9
    ),
  ),
}


@pytest.mark.parametrize("name", _IDENTITIES)
def test_momentum_is_primal_averaging(name):
  settings, other = _IDENTITIES[name]
  ours = optim.primal_averaging(optax.identity(), **settings)
  np.testing.assert_allclose(_run(ours)[0], _run(other)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
  ("case", "train_interp"), [("sgd", 1.0), ("sgd_nesterov", 0.9)]
)
def test_gpa_follows_torch_sgd(case, train_interp):
  zoo = np.load(_ZOO)
  settings = json.loads(str(zoo[f"{case}/settings"]))
  beta, at = settings["momentum"], json.loads(str(zoo["format"]))["steps_64"]
  tree = settings["tree"]
  tx = optim.primal_averaging(
    optax.identity(),
    settings["learning_rate"] / (1 - beta),
    train_interp=train_interp,
    eval_interp=beta,
  )
  with jax.enable_x64(True):
    y = jnp.asarray(zoo[f"{tree}/params0"], jnp.float64)
    state, found = tx.init(y), []
    for grads in jnp.asarray(zoo[f"{tree}/grads"], jnp.float64):
      updates, state = tx.update(grads, state, y)
      y = optax.apply_updates(y, updates)
      found.append(y)
  found = np.stack(found)[np.asarray(at) - 1]
  np.testing.assert_allclose(found, zoo[f"{case}/open64"], rtol=0, atol=1e-10)


def _train(base, steps=60):
  """Yields the target, y and x on the way to the target, a matrix."""
  target = jax.random.normal(jax.random.key(1), (5, 4))
  tx = optim.primal_averaging(base, 0.2)
  update = jax.jit(tx.update)
  y = jnp.zeros((5, 4))
  state = tx.init(y)
  for _ in range(steps):
    updates, state = update(y - target, state, y)
    y = optax.apply_updates(y, updates)
    yield target, y, optim.eval_params(state, y)


def test_around_muon_is_its_loop():
  base = optim.scale_by_muon(beta=0.0)
  direction = jax.jit(base.update)
  z = x = by_hand = np.zeros((5, 4))
  state = base.init(jnp.zeros((5, 4)))
  for k, (target, y, found) in enumerate(_train(base, 8)):
    d, state = direction(np.float32(by_hand) - target, state)
    z = z - 0.2 * np.asarray(d)
    x = x + (z - x) / (k + 1)
    by_hand = 0.1 * z + 0.9 * x
    np.testing.assert_allclose(y, by_hand, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  "base",
  [
    pytest.param(optim.scale_by_soap(b1=0.0), id="soap"),
    pytest.param(optim.scale_by_muon(beta=0.0), id="muon"),
  ],
)
def test_around_a_matrix_method_learns(base):
  *_, (target, y, x) = _train(base)
  assert jnp.sum((x - target) ** 2) < 0.1 * jnp.sum(target**2)
  assert not np.allclose(x, y)


def _in_wrappers(tx):
  labels = dict(w="a", b="b")
  injected = optax.inject_hyperparams(optim.schedule_free_sgd)
  return dict(
    chain=optax.chain(optax.clip_by_global_norm(1e9), tx),
    masked=optax.masked(tx, dict(w=True, b=False)),
    partition=optax.partition(dict(a=tx, b=optax.sgd(0.3)), labels),
    accumulated=optax.MultiSteps(tx, 1),
    injected=injected(learning_rate=0.3),
  )


@pytest.mark.parametrize("kind", _in_wrappers(optax.identity()))
def test_eval_params_finds_x_in_any_wrapper(kind):
  tx = optim.schedule_free_sgd(0.3)
  wrapped = _in_wrappers(tx)[kind]
  params = dict(w=jnp.array([1.0, 2.0]), b=jnp.array(3.0))
  plain, other = tx.init(params), wrapped.init(params)
  y = there = params
  for grads in (params, jax.tree.map(jnp.sin, params)):
    updates, plain = tx.update(grads, plain, y)
    y = optax.apply_updates(y, updates)
    updates, other = wrapped.update(grads, other, there)
    there = optax.apply_updates(there, updates)
  x, found = optim.eval_params(plain, y), optim.eval_params(other, there)
  np.testing.assert_allclose(found["w"], x["w"], rtol=1e-6)
  assert not np.allclose(found["w"], y["w"])
  only_w = kind in ("masked", "partition")
  expected = there["b"] if only_w else x["b"]
  np.testing.assert_allclose(found["b"], expected, rtol=1e-6)


def test_bfloat16_params_keep_averaging():
  tx = optim.schedule_free_sgd(0.5)

  def step(carry, noise):
    y, state = carry
    updates, state = tx.update(y - 1 + noise.astype(y.dtype), state, y)
    return (optax.apply_updates(y, updates), state), state.weight_sum

  noise = jax.random.normal(jax.random.key(0), (400, 64))
  runs = []
  for dtype in (jnp.bfloat16, jnp.float32):
    y = jnp.zeros(64, dtype)
    (y, state), sums = jax.lax.scan(step, (y, tx.init(y)), noise)
    assert state.momentum.dtype == jnp.float32
    # In bfloat16 a sum of ones stops at 256.
    np.testing.assert_allclose(sums, 0.25 * np.arange(1, 401), rtol=1e-5)
    x = optim.eval_params(state, y)
    assert x.dtype == dtype
    runs.append(np.asarray(x, np.float32))
  assert np.std(runs[0] - runs[1]) < 0.5 * np.std(runs[1] - 1)


def test_both_points_move_with_the_parameters():
  tx = optim.schedule_free_sgd(0.3)
  y = jnp.array([1.0, 2.0])
  updates, state = tx.update(y, tx.init(y), y)
  y = optax.apply_updates(y, updates)
  moved = optim.eval_params(state, y + 1) - optim.eval_params(state, y)
  np.testing.assert_allclose(moved, 1, rtol=1e-6)


def test_words_of_state():
  params = dict(w=jax.ShapeDtypeStruct((64, 64), jnp.bfloat16))
  for tx, words in (
    (optim.schedule_free_adamw(), 2),
    (optim.schedule_free_sgd(), 1),
    (optim.primal_averaging(optim.scale_by_muon(), 0.1), 2),
  ):
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    size = sum(x.size for x in leaves if x.dtype == jnp.float32)
    assert words <= size / 64**2 < words + 0.01


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(train_interp=1.1), "train_interp=1.1 must be in"),
    (dict(eval_interp=1.0), "eval_interp=1.0 must be in"),
    (dict(lookahead=0.5), "set eval_interp too"),
    (dict(lookahead=0.5, eval_interp=0.0), "eval_interp=0.0 must be > 0"),
    (dict(warmup_steps=-1), "warmup_steps=-1 must be >= 0"),
    (dict(decay_at="x"), "decay_at='x' is not known"),
  ],
)
def test_errors(settings, message):
  with pytest.raises(ValueError, match=message):
    optim.primal_averaging(optax.identity(), 0.1, **settings)


def test_update_needs_params():
  tx = optim.schedule_free_sgd(0.1)
  with pytest.raises(ValueError, match="so pass them"):
    tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
