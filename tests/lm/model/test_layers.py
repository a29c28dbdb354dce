"""Norms, positions, caps: facts about single functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model import attention, layers


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("axes", [1, 2])
def test_norm_is_its_equation(kind, axes):
  x = np.random.default_rng(0).normal(2, 3, size=(5, 3, 4))
  gain, bias = np.arange(1.0, 5), np.arange(4.0)
  if axes == 2:
    gain, bias = np.arange(1.0, 13).reshape(3, 4), np.arange(12.0).reshape(3, 4)
  over = tuple(range(-axes, 0))
  z = x - x.mean(over, keepdims=True) if kind == "layernorm" else x
  z = z / np.sqrt((z**2).mean(over, keepdims=True) + 0.1)
  y = layers.norm(
    jnp.asarray(x), jnp.asarray(gain), jnp.asarray(bias), kind=kind, eps=0.1
  )
  np.testing.assert_allclose(y, z * gain + bias, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("centre", [True, False])
def test_standardize_has_the_derivatives_of_its_definition(centre):
  """The stated tangent against JAX's own, once and twice, in both modes."""
  x, t, u = jax.random.normal(jax.random.key(0), (3, 4, 6))
  ours = functools.partial(
    layers.standardize, axes=(-1,), eps=0.1, centre=centre
  )

  def theirs(x):
    return layers._standardize(x, (-1,), 0.1, centre)[0]

  def derivatives(f):
    def loss(x):
      return jnp.sum(jnp.sin(f(x)))

    return (
      jax.jvp(f, (x,), (t,)),
      jax.vjp(f, x)[1](u),
      jax.jvp(jax.grad(loss), (x,), (t,)),
      jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), t))(x),
    )

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    derivatives(lambda x: ours(x)),
    derivatives(theirs),
  )


def test_standardize_keeps_its_rule_below_a_tangent():
  """Reversing a pass that carries tangents does not fall back on JAX's own."""

  def pushed(x, t):
    return jax.jvp(
      lambda x: layers.standardize(x, (-1,), 0.1, True), (x,), (t,)
    )

  x = jnp.ones((2, 4))
  assert "custom_jvp_call" in str(jax.make_jaxpr(pushed)(x, x))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rotated_scores_depend_on_distance_only(layout):
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 2, 8))

  def turn(x, p):
    angles = layers.rope_angles(jnp.array([[p]]), 8, 100.0, layout)
    return layers.rope(x, angles, layout)

  def score(i, j):
    turned = [turn(x, p) for x, p in ((q, i), (k, j))]
    return float(jnp.sum(turned[0] * turned[1]))

  assert score(7, 3) == pytest.approx(score(24, 20), rel=1e-5)
  assert score(7, 3) != pytest.approx(score(7, 4), rel=1e-3)
  assert score(5, 5) == pytest.approx(float(jnp.sum(q * k)), rel=1e-5)


def test_rotary_layouts_differ_by_a_permutation_of_channels():
  x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
  order = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # From interleaved to half.

  def turn(x, layout):
    angles = layers.rope_angles(jnp.arange(5)[None], 8, 10.0, layout)
    return layers.rope(x, angles, layout)

  half = turn(x[..., order], "half")
  interleaved = turn(x, "interleaved")
  np.testing.assert_allclose(half, interleaved[..., order], rtol=1e-6)


def test_alibi_slopes_are_the_papers():
  np.testing.assert_allclose(
    layers.alibi_slopes(8), [2.0**-i for i in range(1, 9)]
  )


def test_soft_cap_bounds_and_leaves_small_values():
  x = jnp.array([-1e6, 1e-3, 1e6])
  np.testing.assert_allclose(layers.soft_cap(x, 5.0), [-5, 1e-3, 5], rtol=1e-6)
  assert layers.soft_cap(x, 0.0) is x


def test_document_starts():
  tokens = jnp.array([[7, 7, 1, 7, 1, 7], [1, 7, 7, 7, 7, 1]])
  np.testing.assert_array_equal(
    attention.document_starts(tokens, 1),
    [[0, 0, 2, 2, 4, 4], [0, 0, 0, 0, 0, 5]],
  )
