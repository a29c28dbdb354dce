"""Factors of width and depth by hand, and the transforms that apply them."""

import inspect
import itertools
import pathlib
import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import optim
from optim.methods import scaling

# i = 4, o = 16, L = 2, and blocks 2 x 4 where a method has blocks.
_HIDDEN = optim.LeafFacts("hidden", 256, 1024, 64, 64, depth_ratio=2)
_CUT = _HIDDEN._replace(blocks=(2, 4))
_INPUTS = _HIDDEN._replace(blocks=(2, 1), sides=(True, False))
_OUTPUTS = _HIDDEN._replace(blocks=(1, 4), sides=(False, True))
_NEITHER = _HIDDEN._replace(sides=(False, False))
_TABLE = optim.LeafFacts("embedding", 2000, 256, 1000, 64)  # i = 1, o = 4.
_HEAD = optim.LeafFacts("head", 256, 2000, 64, 1000)  # i = 4, o = 1.
_SHORT = optim.LeafFacts("head", 1024, 10, 64, 10)  # i = 16, o = 1.
_GAIN = optim.LeafFacts("vector", 1, 256, 1, 64, depth_ratio=2)
_ROOT = 0.5**0.5


@pytest.mark.parametrize(
  ("rule", "facts", "rate", "eps"),
  [
    ("sgd", _HIDDEN, 8, 1),  # (o / i) L
    ("sgd", _HEAD, 1 / 4, 1),
    ("adam", _HIDDEN, 1 / 4, 1 / 32),  # 1 / i and 1 / (L o)
    ("adam", _TABLE, 1, 1 / 4),
    ("adam", _HEAD, 1 / 4, 1),
    ("shampoo", _HIDDEN, 1 / 4, 1 / 32),
    ("with_update_rms", _HIDDEN, 1 / 4, 1 / 32),
    ("adamuon", _HIDDEN, 1 / 4, 1 / 8),  # and (i o)^-1/2
    ("newton_schulz", _HIDDEN, 2, 1 / 4),  # (o / i)^1/2 and (i / o)^1/2 / L
    # Divided by (1024 / 256)^1/2, and not by (64 / 64)^1/2.
    ("muon", _HIDDEN, 1, 1 / 4),
    ("normuon", _HIDDEN, 1, 1 / 4),
    ("soap_muon", _HIDDEN, 1, 1 / 4),
    ("muon", _SHORT, 1 / 4, 4),  # i^-1/2: nothing is built in.
    # i^-1/2 over (2000 / 256)^1/2 / (1000 / 64)^1/2.
    ("muon", _HEAD, _ROOT, 2),
    # Divided by (1024 / 64)^1/2: 1, D^-1/2 and 1 / D of input, hidden, head.
    ("muon_consistent_rms", _HIDDEN, 1 / 2, 1 / 4),
    ("muon_consistent_rms", _SHORT, 1 / 16, 4),
    ("soap", _HIDDEN, 2, 1 / 4),
    ("soap", _CUT, _ROOT, (1 / 32) ** 0.5 / 2),  # 2 / 8^1/2
    ("kl_soap", _CUT, _ROOT, (1 / 32) ** 0.5 / 2),
    ("kl_shampoo", _CUT, _ROOT, (1 / 32) ** 0.5 / 2),
    ("soap", _INPUTS, 8**-0.5, 2**0.5 / 32),  # (i n_in)^-1/2
    ("soap", _OUTPUTS, 1 / 2, 2 / 32),  # (o / n_out)^1/2 / i
    ("soap", _NEITHER, 1 / 4, 1 / 32),
    (
      "soap",
      _TABLE._replace(blocks=(1, 2), sides=(False, True)),
      2**0.5,
      2**0.5 / 4,
    ),
    ("shampoo_traced", _CUT, _ROOT, 1),
    ("shampoo_raw", _CUT, 1 / 16, 1),  # E = 1: 1 / (L b)
    ("shampoo_raw", _INPUTS, 2**0.5, 1),  # E = 1/2: 2 / 2^1/2
    ("normalize_spectral", _CUT, 1, 1),
    ("muon_unit", _HIDDEN, 1, 1),
    ("muon_entries", _HIDDEN, 1 / 8, 1 / 8),
    ("muon_h", _HIDDEN, 1, 1),
    ("adam_h", _HIDDEN, 1 / 2, 1 / 32),
    *((rule, _GAIN, 1, 1 / 8) for rule in ("sgd", "muon", "soap", "adam_h")),
  ],
)
def test_rates_and_eps_by_hand(rule, facts, rate, eps):
  found = optim.multipliers(facts, rule)
  assert found.rate == pytest.approx(rate, rel=1e-12)
  assert found.eps == pytest.approx(eps, rel=1e-12)


def test_every_method_has_a_rule_of_its_name():
  """But for what runs another method within."""
  names = {
    name
    for name in optim.__all__
    if "learning_rate" in _arguments(getattr(optim, name))
  }
  assert names - set(scaling.RULES) == {
    "descend", "on_sphere", "lotion_adamw", "gauss_newton",
    "gauss_newton_microsteps", "gauss_newton_solver", "primal_averaging",
  }  # fmt: skip


def _arguments(thing):
  if not inspect.isfunction(thing):
    return ()
  return inspect.signature(thing).parameters


def test_raw_shampoo_of_the_exponent_one_fourth():
  found = optim.multipliers(_CUT, "shampoo_raw", exponent=0.25)
  assert found.rate == pytest.approx(_ROOT)  # E = 1/2, so L^0: 2 / 8^1/2.


def test_what_depends_on_no_rule_by_hand():
  for facts, init, matrix_eps, decay in (
    (_CUT, 1 / 2, 1 / 128, 1 / 4),  # i^-1/2, i / (o L^2 b), 1 / width
    (_TABLE, 1, 1 / 4, 1 / 4),
    (_HEAD, 1 / 4, 4, 1 / 4),
    (_GAIN, 1, 1 / 16, 1 / 4),
    # An input of 32 numbers: hidden, and as wide as its outputs.
    (optim.LeafFacts("hidden", 32, 256, 32, 64), 1, 1 / 4, 1 / 4),
    (_HEAD._replace(width_ratio=8.0), 1 / 8, 4, 1 / 8),
  ):
    found = optim.multipliers(facts, "adam")
    assert found.init == pytest.approx(init)
    assert found.matrix_eps == pytest.approx(matrix_eps)
    assert found.decay == pytest.approx(decay)
    assert found.coupled_decay == pytest.approx(decay / found.rate)


def test_the_example_of_the_page():
  page = pathlib.Path(__file__).parents[2] / "docs/transfer.md"
  (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
  names: dict = {}
  exec(compile(block, "docs/transfer.md", "exec"), names)
  params = _tree(0)
  state = names["tx"].init(params)
  names["tx"].update(params, state, params)


def test_the_page_names_every_rule():
  page = pathlib.Path(__file__).parents[2] / "docs/transfer.md"
  part = page.read_text().split("## The rules")[1].split("## Decay")[0]
  families = {rule: name for name, rule in reversed(scaling.RULES.items())}
  assert not [name for name in families.values() if f"`{name}`" not in part]


_SIZES = st.integers(1, 10_000)
_FACTS = st.builds(
  optim.LeafFacts,
  st.sampled_from(scaling.ROLES),
  _SIZES, _SIZES, _SIZES, _SIZES,
  st.floats(0.25, 8.0),
  st.tuples(st.integers(1, 8), st.integers(1, 8)),
  st.tuples(st.integers(1, 8), st.integers(1, 8)),
  st.tuples(st.booleans(), st.booleans()),
  st.floats(0.25, 64.0),
)  # fmt: skip


@hypothesis.given(_FACTS, st.sampled_from(sorted(scaling.RULES)))
def test_the_base_model_has_ones(facts, rule):
  base = facts._replace(
    fan_in=facts.base_fan_in,
    fan_out=facts.base_fan_out,
    blocks=facts.base_blocks,
    depth_ratio=1.0,
    width_ratio=None,
  )
  assert optim.multipliers(base, rule) == (1.0,) * 5


@hypothesis.given(_FACTS, st.sampled_from(sorted(scaling.RULES)), _SIZES)
def test_two_steps_of_size_are_one(facts, rule, size):
  """From base to between to the model is from base to the model."""
  between = facts._replace(
    fan_in=size, fan_out=3 * size, blocks=(2, 3), depth_ratio=2.0,
    width_ratio=4.0,
  )  # fmt: skip
  last = facts._replace(
    base_fan_in=size,
    base_fan_out=3 * size,
    base_blocks=(2, 3),
    depth_ratio=facts.depth_ratio / 2,
    width_ratio=facts.width_ratio / 4,
  )
  parts = [optim.multipliers(f, rule) for f in (between, last)]
  whole = optim.multipliers(facts, rule)
  np.testing.assert_allclose(np.prod(parts, axis=0), whole, rtol=1e-9)


def test_soap_in_blocks_of_one_length_is_adam():
  for n, m in itertools.product((1, 2, 8), repeat=2):
    facts = optim.LeafFacts(
      "hidden", 64 * n, 64 * m, 64, 64, 1.0, blocks=(n, m)
    )
    soap, adam = (optim.multipliers(facts, name) for name in ("soap", "adam"))
    np.testing.assert_allclose(soap, adam, rtol=1e-12)


@pytest.mark.parametrize(
  ("facts", "rule", "named"),
  [
    (_HIDDEN, "adm", "rule='adm'"),
    (_HIDDEN._replace(role="output"), "adam", "role='output'"),
    (_HIDDEN._replace(base_fan_in=0), "adam", "base_fan_in=0"),
    (_HIDDEN._replace(blocks=(0, 1)), "adam", "blocks=0"),
    (_HIDDEN._replace(depth_ratio=-1.0), "adam", "depth_ratio=-1"),
  ],
)
def test_bad_facts_are_named(facts, rule, named):
  with pytest.raises(ValueError, match=named):
    optim.multipliers(facts, rule)


def _tree(seed, **shapes):
  rng = np.random.default_rng(seed)
  shapes = shapes or dict(a=(3, 4), b=dict(c=(4,), d=(2, 2)))
  return jax.tree.map(
    lambda s: jnp.asarray(rng.normal(size=s), jnp.float32),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


@pytest.mark.parametrize(
  "scales",
  [
    dict(a=0.5, b=dict(c=2.0, d=2.0)),
    dict(a=0.5, b=2.0),
    lambda params: dict(a=0.5, b=2.0),
    dict(a=np.full((3, 1), 0.5), b=jnp.float32(2)),
  ],
)
def test_rescaled_is_a_rate_for_each_leaf(scales):
  tx = optax.chain(optim.rescaled(optax.scale_by_adam(), scales))
  parts = {s: optax.adam(s) for s in (0.5, 2.0)}
  wanted = optax.partition(parts, dict(a=0.5, b=2.0))
  params = _tree(0)
  state, other = tx.init(params), wanted.init(params)
  for step in range(3):
    grads = _tree(1 + step)
    updates, state = tx.update(grads, state, params)
    steps, other = wanted.update(grads, other, params)
    jax.tree.map(
      lambda u, s: np.testing.assert_allclose(u, -s, rtol=1e-6), updates, steps
    )


def test_rescaled_passes_params_and_extra_arguments():
  def update(updates, state, params=None, *, value, **extra_args):
    del extra_args
    return jax.tree.map(lambda u, w: u + value * w, updates, params), state

  tx = optim.rescaled(
    optax.GradientTransformationExtraArgs(lambda params: (), update), 0.5
  )
  params, grads = jnp.ones(2), jnp.full(2, 3.0)
  updates, _ = tx.update(grads, tx.init(params), params, value=4.0, other=1)
  np.testing.assert_allclose(updates, 0.5 * (3 + 4))


def test_decay_behind_rescaled_does_not_depend_on_the_factor():
  params = _tree(0)
  zero = jax.tree.map(jnp.zeros_like, params)
  tx = optax.chain(
    optim.rescaled(optim.scale_by_muon(), dict(a=0.5, b=2.0)),
    optax.add_decayed_weights(0.1),
    optax.scale_by_learning_rate(0.01),
  )
  updates, _ = tx.update(zero, tx.init(params), params)
  jax.tree.map(
    lambda u, w: np.testing.assert_allclose(u, -0.001 * w, rtol=1e-6),
    updates,
    params,
  )


@pytest.mark.parametrize(
  ("scales", "named"),
  [
    (dict(a=-1.0, b=1.0), r"scales\['a'\]=-1.0"),
    (dict(a=1.0), r"no factor for leaf \['b'\]\['c'\]"),
    (dict(a=1.0, b=1.0, e=1.0), r"scales\['e'\] belongs to no leaf"),
  ],
)
def test_bad_factors_are_named(scales, named):
  with pytest.raises(ValueError, match=named):
    optim.rescaled(optax.sgd(0.1), scales).init(_tree(0))


def test_rescaled_refuses_what_keeps_weights():
  for tx in (
    optim.average_weights(optax.sgd(0.1), 0.9),
    optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9),
  ):
    with pytest.raises(ValueError, match="rescaled inside"):
      optim.rescaled(tx, 0.5).init(_tree(0))


def _norms(updates, axis=0):
  """sigma sqrt(I / O) of a leaf [S, I, O]."""
  x = np.asarray(updates, np.float64)
  sigma = np.linalg.svd(x, compute_uv=False)[..., 0]
  return sigma * (x.shape[-2] / x.shape[-1]) ** 0.5


def test_spectral_norms_against_svd():
  shapes = dict(square=(5, 48, 48), wide=(2, 16, 96), tall=(2, 96, 16))
  params = _tree(0, **shapes)
  # Powers of ten as scales, from where squares vanish to where they overflow.
  scale = jnp.asarray([1e-30, 1e-3, 1.0, 1e3, 1e25], jnp.float32)
  params = {k: x * scale[: len(x), None, None] for k, x in params.items()}
  stack = optim.DimensionNumbers((1, 2), 0)
  tx = optim.normalize_spectral(dict.fromkeys(shapes, stack))
  state, update = tx.init(params), jax.jit(tx.update)
  worst = []
  for _ in range(30):
    updates, state = update(params, state)
    norms = np.concatenate([_norms(x) for x in updates.values()])
    worst.append(np.abs(norms - 1).max())
  assert worst[0] < 0.05
  assert worst[-1] < 0.01
  flat = params["wide"] / params["wide"][:, :1, :1]
  ratio = updates["wide"] / updates["wide"][:, :1, :1]
  np.testing.assert_allclose(ratio, flat, rtol=1e-4)  # The direction stays.


def test_spectral_norms_of_a_moving_direction():
  """Also where the old v is orthogonal to all of the new direction."""
  rng = np.random.default_rng(0)
  tx = optim.normalize_spectral()
  params = jnp.zeros((64, 64))
  state, update = tx.init(params), jax.jit(tx.update)
  momentum, norms = np.zeros((64, 64)), []
  for _ in range(40):
    momentum = 0.95 * momentum + rng.normal(size=(64, 64))
    u, state = update(jnp.asarray(np.sign(momentum), jnp.float32), state)
    norms.append(_norms(u[None]).item())
  assert 0.999 < min(norms)
  assert np.mean(norms) < 1.2
  first, second = np.zeros((2, 64, 64))
  first[:, :8], second[:, 8:] = rng.normal(size=(64, 8)), 1.0
  _, state = update(jnp.asarray(first, jnp.float32), state)
  u, _ = update(jnp.asarray(second, jnp.float32), state)
  np.testing.assert_allclose(_norms(u[None]), 1.0, rtol=1e-4)


def test_spectral_state_is_one_vector_a_matrix_and_zeros_stay():
  params = dict(w=jnp.zeros((3, 8, 4)), b=jnp.ones(4))
  dims = dict(w=optim.DimensionNumbers((1, 2), 0))
  tx = optim.normalize_spectral(dims)
  state = tx.init(params)
  assert sum(x.size for x in jax.tree.leaves(state)) == 3 * 4
  bad = jnp.zeros((3, 8, 4)).at[1, 2, 3].set(jnp.nan).at[2].set(1.0)
  updates, state = tx.update(dict(w=bad, b=params["b"]), state)
  assert not np.any(updates["w"][:2])
  np.testing.assert_allclose(_norms(updates["w"][2:]), 1.0, rtol=1e-5)
  np.testing.assert_array_equal(updates["b"], params["b"])
