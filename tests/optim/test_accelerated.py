"""Known methods are accelerated SGD with other numbers; dampening; Adafactor.

Each identity is in float64, along one quadratic with noise, and all of them are
one program.
"""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

_ETA, _STEPS = 0.02, 30
_PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "accelerated.md"
_SECTIONS = (
  "Dampened SGD",
  "Accelerated SGD",
  "Adafactor",
  "Sophia-G",
  "Adalayer",
  "AdEMAMix",
  "Simplified AdEMAMix",
  "MARS",
  "Primal averaging: Schedule-Free, GPA, EMA-Nesterov",
)


def _lion(b1, b2):
  """A sum of gradients is Lion's average over 1 - b2."""
  return dict(beta=b2, a=(1 - b2) * b1 / b2, c=1 - b1 / b2, sign=True)


def _schedule_free(beta):
  """c_t = 1 / t; the momentum before the shrink by 1 - c_t of its own step."""
  return dict(
    beta=lambda count: 1 - 1.0 / jnp.maximum(count, 1),
    a=lambda count: beta / (count + 1),
    c=1 - beta,
  )


def _average(b1):
  """The weight of a sum that makes it a bias-corrected average."""
  return lambda count: (1 - b1) / (1 - b1 ** (count + 1))


def _variance_reduced(b1, gamma):
  """MARS: g + gamma b1 / (1 - b1) (g - the last g)."""

  def update(updates, last, params=None):
    share = gamma * b1 / (1 - b1)
    new = jax.tree.map(lambda g, l: g + share * (g - l), updates, last)
    return new, updates

  return optax.GradientTransformation(optax.tree.zeros_like, update)


_ADAM = dict(precondition="after", b2=0.97, eps=1e-3)
# {name: (ours, the method itself)}, each descending with rate _ETA.
_SAME = {
  "heavy ball": (dict(), optax.sgd(_ETA, momentum=0.9)),
  "nesterov": (dict(a=0.9, c=1.0), optax.sgd(_ETA, 0.9, nesterov=True)),
  "lion": (_lion(0.9, 0.99), optax.lion(_ETA, 0.9, 0.99, weight_decay=0.0)),
  "signum": (_lion(0.9, 0.9), optax.signum(_ETA, 0.9)),
  "adam": (
    dict(a=_average(0.9), **_ADAM),
    optax.adam(_ETA, 0.9, 0.97, 1e-3),
  ),
  "ademamix without the fast average": (
    dict(beta=0.99, a=2.0 * (1 - 0.99), c=1.0, **_ADAM),
    optax.contrib.ademamix(
      _ETA, b1=0.0, b2=0.97, b3=0.99, alpha=2.0, eps=1e-3, weight_decay=0.0
    ),
  ),
  "simplified ademamix": (
    dict(beta=0.99, a=1.0, c=3.0, **_ADAM),
    optax.contrib.simplified_ademamix(
      _ETA, b1=0.99, b2=0.97, alpha=3.0, eps=1e-3, weight_decay=0.0
    ),
  ),
  "schedule-free": (
    _schedule_free(0.9),
    optax.contrib.schedule_free_sgd(_ETA, b1=0.9),
  ),
  "mars, not clipped, with the sign": (
    dict(beta=0.95, a=(1 - 0.95) * (1 - 0.1), c=0.1, sign=True),
    optax.chain(
      _variance_reduced(0.95, 0.1),
      optax.ema(0.95, debias=False),
      optax.scale_by_sign(),
      optax.scale(-_ETA),
    ),
  ),
}


def _params():
  rng = np.random.default_rng(0)
  return dict(a=jnp.asarray(rng.normal(size=(4, 3))), b=jnp.ones(()))


def _gradient(params, step):
  noise = optax.tree.random_like(jax.random.key(step), params)
  scales = dict(a=jnp.linspace(0.1, 3.0, 12).reshape(4, 3), b=jnp.ones(()))
  return jax.tree.map(lambda x, s, e: s * x + e, params, scales, noise)


def _run(tx, steps=_STEPS):
  """[parameters after each step], and the last state."""

  def step(carry, count):
    params, state = carry
    updates, state = tx.update(_gradient(params, count), state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), params

  params = _params()
  carry = params, tx.init(params)
  (_, state), trajectory = jax.lax.scan(step, carry, jnp.arange(steps))
  return trajectory, state


@functools.cache
def _runs():
  """{name: ((ours, state), (the method's, state))}, one program."""
  pairs = {
    name: (optim.accelerated_sgd(_ETA, **ours), theirs)
    for name, (ours, theirs) in _SAME.items()
  }
  with jax.enable_x64(True):
    return jax.jit(
      lambda: {k: tuple(map(_run, pair)) for k, pair in pairs.items()}
    )()


@pytest.mark.parametrize("name", _SAME)
def test_accelerated_sgd_is_the_method(name):
  (ours, _), (theirs, _) = _runs()[name]
  assert np.ptp(theirs["a"], axis=0).max() > 0.1  # The parameters moved.
  for leaf in theirs:
    np.testing.assert_allclose(ours[leaf], theirs[leaf], rtol=0, atol=1e-12)


def test_the_average_of_schedule_free_is_behind_along_the_momentum():
  """x = y + (1 - beta)(1 - c_t) eta m: what Schedule-Free evaluates."""
  (ours, (state, _)), (_, theirs) = _runs()["schedule-free"]
  last = jax.tree.map(lambda y: y[-1], ours)
  with jax.enable_x64(True):
    x = optax.contrib.schedule_free_eval_params(theirs, last)
    scale = (1 - 0.9) * (1 - 1 / _STEPS) * _ETA
    behind = jax.tree.map(lambda y, m: y + scale * m, last, state.momentum)
  assert np.abs(x["a"] - last["a"]).max() > 1e-3
  np.testing.assert_allclose(behind["a"], x["a"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kappa", "xi"), [(1000.0, 10.0), (50.0, 5.0)])
def test_the_parameters_of_accsgd_are_those_of_its_two_points(kappa, xi):
  # The specification's form, whose momentum is s times ours.
  k0 = 0.7
  long, q = kappa / k0, xi * k0**2 / kappa
  z = k0 / (k0 + q)
  beta, s = z * (1 - q), z * (q * long - 1)
  a = (1 - z) * (1 - q) * s / beta
  c = (1 - z) * q * long + z - a
  np.testing.assert_allclose(
    optim.acc_sgd_parameters(kappa, xi), (beta, a, c), rtol=1e-12
  )


def test_only_the_first_gradient_is_not_dampened():
  """With d = b the momentum is optax's average plus b^t g_1."""
  b, grads = 0.8, np.random.default_rng(1).normal(size=(5, 3))
  ours, theirs = optim.scale_by_dampened_momentum(b), optax.ema(b, debias=False)
  grads = jnp.asarray(grads)
  state, other = ours.init(grads[0]), theirs.init(grads[0])
  for t, g in enumerate(grads, start=1):
    u, state = ours.update(g, state)
    average, other = theirs.update(g, other)
    np.testing.assert_allclose(u - average, b**t * grads[0], atol=1e-6)


def _directions(tx, grads):
  """The updates of some gradients, in turn."""
  state, found = tx.init(grads[0]), []
  for g in grads:
    updates, state = tx.update(g, state)
    found.append(updates)
  return found


def _gradients(*shape, steps=3):
  rng = np.random.default_rng(2)
  return list(jnp.asarray(rng.normal(size=(steps, *shape)), jnp.float32))


def test_adafactor_is_adam_where_the_squares_have_rank_one():
  rows, columns = jnp.asarray([1.0, -2.0, 0.5]), jnp.asarray([3.0, 1e-3])
  grads = [s * jnp.outer(rows, columns) for s in (1.0, -0.3, 2.0)]
  adam = optax.scale_by_adam(0.9, 0.95, 1e-8)
  for ours, wanted in zip(
    _directions(optim.scale_by_adafactor(eps=1e-8), grads),
    _directions(adam, grads),
    strict=True,
  ):
    np.testing.assert_allclose(ours, wanted, rtol=2e-4)


@pytest.mark.parametrize("neuron_only", [False, True])
def test_adafactor_averages_over_no_stack_and_knows_the_sides(neuron_only):
  """[layers, out, heads, in] with merged sides is each matrix alone."""
  tx = optim.scale_by_adafactor(
    neuron_only=neuron_only,
    dimension_numbers=optim.DimensionNumbers((3, (1, 2)), stack=0),
  )
  alone = optim.scale_by_adafactor(neuron_only=neuron_only)
  grads = _gradients(2, 3, 2, 4)
  stacked = _directions(tx, grads)
  for layer in range(2):
    matrices = [g[layer].reshape(6, 4).T for g in grads]
    for all_layers, wanted in zip(
      stacked, _directions(alone, matrices), strict=True
    ):
      ours = all_layers[layer].reshape(6, 4).T
      np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_parity_gives_a_gain_one_number_a_layer():
  numbers = optim.DimensionNumbers((1,), stack=0)
  tx = optim.scale_by_adafactor(b1=0.0, parity=True, dimension_numbers=numbers)
  gains = _gradients(2, 5, steps=1)
  root_mean_square = jnp.sqrt(jnp.mean(gains[0] ** 2, axis=1, keepdims=True))
  (ours,) = _directions(tx, gains)
  np.testing.assert_allclose(ours, gains[0] / root_mean_square, rtol=1e-5)


def test_state_words_are_those_of_the_table():
  shapes = dict(w=(64, 256), stacked=(2, 64, 64))
  numbers = dict(stacked=optim.DimensionNumbers((1, 2), stack=0))
  params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
  size = 64 * 256 + 2 * 64 * 64
  means = 64 + 256 + 2 * (64 + 64)
  for tx, wanted in (
    (optim.scale_by_dampened_momentum(), size),
    (optim.scale_by_accelerated_sgd(), size),
    (optim.scale_by_accelerated_sgd(precondition="before"), 2 * size),
    (optim.scale_by_adafactor(dimension_numbers=numbers), size + means),
  ):
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    words = sum(x.size for x in leaves if x.dtype == jnp.float32)
    assert words == wanted


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (lambda: optim.dampened_sgd(0.1, nesterov=True), "Set dampening=0"),
    (lambda: optim.dampened_sgd(0.1, dampening=2.0), r"must be in \[0, 1\]"),
    (lambda: optim.accelerated_sgd(0.1, beta=1.0), r"beta=1.0 must be in"),
    (
      lambda: optim.accelerated_sgd(0.1, precondition="first"),
      "one of none, after, before",
    ),
    (lambda: optim.acc_sgd_parameters(10.0, 100.0), "take xi <= sqrt"),
    (lambda: optim.acc_sgd_parameters(10.0, 1.0, 7.0), r"must be in \(0, 1\]"),
    (lambda: optim.adafactor(0.1, b2=1.0), r"b2=1.0 must be in"),
    (
      lambda: optim.adafactor(0.1).init(dict(w=jnp.ones((2, 3, 4)))),
      "Pass dimension_numbers",
    ),
  ],
)
def test_a_bad_argument_is_named(build, message):
  with pytest.raises(ValueError, match=message):
    build()


@pytest.mark.parametrize("title", _SECTIONS)
def test_the_example_of_a_section_runs(title):
  text = _PAGE.read_text().split(f"## {title}\n")[1].split("\n## ")[0]
  (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  exec(compile(block, title, "exec"), {})
