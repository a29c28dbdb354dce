"""Muon against a NumPy loop, and optax's where the two agree."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim


def _newton_schulz(x, steps=5):
  a, b, c = 3.4445, -4.7750, 2.0315
  x = x / (np.linalg.norm(x) + 1e-7)
  for _ in range(steps):
    gram = x @ x.T
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x


def _muon_directions(grads, decay, nesterov):
  m, result = np.zeros(grads[0].shape), []
  rows, columns = m.shape
  for g in grads:
    m = decay * m + (1 - decay) * g
    ahead = decay * m + (1 - decay) * g if nesterov else m
    result.append(_newton_schulz(ahead) * max(1, columns / rows) ** 0.5)
  return result


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_oracle(shape, nesterov):
  rng = np.random.default_rng(0)
  grads = [rng.normal(size=shape) for _ in range(6)]
  tx = optim.scale_by_muon(0.9, nesterov=nesterov)
  state, update = tx.init(jnp.zeros(shape)), jax.jit(tx.update)
  for g, wanted in zip(
    grads, _muon_directions(grads, 0.9, nesterov), strict=True
  ):
    updates, state = update(jnp.asarray(g, jnp.float32), state)
    np.testing.assert_allclose(updates, wanted, atol=1e-4)


def test_first_step_is_that_of_optax():
  # Later ones differ: optax corrects the bias of the momentum.
  grads = np.random.default_rng(0).normal(size=(6, 9))
  grads = jnp.asarray(grads, jnp.float32)
  a, b = (
    tx.update(grads, tx.init(grads), grads)[0]
    for tx in (optim.muon(0.1), optax.contrib.muon(0.1))
  )
  np.testing.assert_allclose(a, b, atol=1e-5)


def test_other_leaves_get_adam_at_their_own_rate():
  grads = dict(w=jnp.ones((3, 3)), b=jnp.asarray([3.0, -2.0]))
  tx = optim.muon(0.1, adam_learning_rate=0.01)
  updates, _ = tx.update(grads, tx.init(grads), grads)
  np.testing.assert_allclose(updates["b"], [-0.01, 0.01], rtol=1e-5)
  assert np.abs(updates["w"]).max() > 0.02


def test_consistent_rms():
  grads = jnp.asarray(np.random.default_rng(0).normal(size=(64, 256)))
  tx = optim.scale_by_muon(consistent_rms=0.2)
  updates, _ = jax.jit(tx.update)(grads, tx.init(grads))
  rms = np.sqrt(np.mean(np.square(updates)))
  np.testing.assert_allclose(rms, 0.2, rtol=0.15)


@pytest.mark.parametrize(
  ("variance", "extra"),
  [("none", 0), ("rows", 9), ("longer", 9), ("entries", 54), ("matrix", 1)],
)
def test_words_of_the_second_moment(variance, extra):
  tx = optim.scale_by_muon(variance=variance)
  state = jax.eval_shape(tx.init, jax.ShapeDtypeStruct((6, 9), jnp.float32))
  words = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
  assert words == 54 + extra


def _spread(x, axis):
  squares = np.mean(np.square(np.asarray(x)), axis=axis)
  return squares.max() / squares.min()


def test_normuon_levels_its_outputs_and_keeps_the_norm():
  # At the first call v is the square that it divides, up to one number.
  rng = np.random.default_rng(0)
  grads = jnp.asarray(rng.normal(size=(6, 9)) * 10.0 ** -(np.arange(9) / 3))
  grads = grads.astype(jnp.float32)
  plain, level = (
    tx.update(grads, tx.init(grads))[0]
    for tx in (
      optim.scale_by_muon(ns_coeffs="quintic"),
      optim.scale_by_muon(ns_coeffs="quintic", variance="rows"),
    )
  )
  assert _spread(plain, 0) > 5
  np.testing.assert_allclose(_spread(level, 0), 1, atol=1e-4)
  norms = [np.linalg.norm(x) for x in (plain, level)]
  np.testing.assert_allclose(*norms, rtol=1e-5)


def test_wrong_arguments_are_errors():
  for arguments, message in (
    (dict(ns_coeffs="kelly"), "coefficients='kelly' is not known"),
    (dict(ns_norm="nuclear"), "ns_norm='nuclear' is not known"),
    (dict(variance="row"), "variance='row' is not known"),
    (dict(scale="rms"), "scale='rms' is not known"),
    (dict(ns_eps=0.0), "ns_eps=0.0 must be > 0"),
    (dict(scale="unit", consistent_rms=0.2), "scale='unit'"),
  ):
    with pytest.raises(ValueError, match=message):
      optim.scale_by_muon(**arguments)


def test_the_examples_of_the_page_run():
  page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "muon.md"
  blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
  assert len(blocks) == 3
  names = dict(optax=optax)
  for block in blocks:
    exec(compile(block, str(page), "exec"), names)
    names["tx"].init(jnp.ones((2, 3)))
