"""`product` is an einsum in every derivative, in the order it promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model.product import is_weight_product, product, product_p

EQUATIONS = [
  "bld,df->blf",  # Wide weight gradient.
  "blf,fd->bld",  # Narrow one.
  "bld,dhk->blhk",
  "blhk,hkd->bld",
  "bld,vd->blv",
  "bgqk,bgmk->bgqm",
  "bgqm,bgmk->bgqk",
  "ab,bc->ca",
]
SIZES = dict(a=5, b=2, c=3, d=4, f=7, g=2, h=3, k=2, l=6, m=5, q=6, v=8)


@pytest.fixture(params=EQUATIONS)
def case(request):
  equation = request.param
  names = equation.split("->")[0].split(",")
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = [[SIZES[c] for c in n] for n in names]
  x, y, dx, dy = (
    jax.random.normal(key, shape)
    for key, shape in zip(keys, shapes * 2, strict=True)
  )
  return equation, (x, y), (dx, dy)


def _both(equation, f):
  """`f` of a nonlinear function of the product, by ours and by einsum."""

  def loss(dot):
    return lambda x, y: jnp.sum(jnp.sin(dot(equation, x, y)))

  return f(loss(product)), f(loss(jnp.einsum))


def _assert_close(pair):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *pair
  )


def test_gradients(case):
  equation, at, _ = case
  _assert_close(_both(equation, lambda f: jax.jit(jax.grad(f, (0, 1)))(*at)))


def test_forward_mode(case):
  equation, at, along = case
  _assert_close(_both(equation, lambda f: jax.jvp(f, at, along)))


def test_hessian_vector_products(case):
  equation, at, along = case

  def hvp(f):
    forward = jax.jvp(jax.grad(f, (0, 1)), at, along)[1]
    reverse = jax.vjp(jax.grad(f, (0, 1)), *at)[1](along)
    return forward, reverse

  ours, theirs = _both(equation, hvp)
  _assert_close((ours, theirs))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 0)])
def test_vmap(case, axes):
  equation, at, _ = case
  stacked = [
    x if axis is None else jnp.stack([x, 2 * x, x + 1], axis)
    for x, axis in zip(at, axes, strict=True)
  ]
  _assert_close(
    _both(equation, lambda f: jax.vmap(jax.grad(f, (0, 1)), axes)(*stacked))
  )


@pytest.mark.parametrize("backward_of", ["bld,df->blf", "blf,fd->bld"])
def test_weight_gradient_transposes_the_narrow_array(backward_of):
  """The first operand has D = 4 features, not F = 7, in both directions."""
  x_name, w_name = backward_of.split("->")[0].split(",")
  x, w = (jnp.ones([SIZES[c] for c in n]) for n in (x_name, w_name))
  grad = jax.grad(lambda w: jnp.sum(product(backward_of, x, w) ** 2))
  dots = [
    eqn
    for eqn in jax.make_jaxpr(grad)(w).jaxpr.eqns
    if eqn.primitive.name == "dot_general"
  ]
  assert [eqn.invars[0].aval.shape[-1] for eqn in dots] == [SIZES["d"]]


def test_a_result_type_of_its_own():
  x = jnp.ones((2, 3), jnp.bfloat16)
  y = jnp.ones((3, 4), jnp.bfloat16)

  def f(x, y):
    return product("ab,bc->ac", x, y, out_dtype=jnp.float32)

  assert f(x, y).dtype == jnp.float32
  grads = jax.grad(lambda *a: jnp.sum(f(*a)), (0, 1))(x, y)
  assert [g.dtype for g in grads] == [jnp.bfloat16] * 2


def test_other_platforms_get_a_plain_einsum(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  x, w = jnp.ones((2, 3, 4)), jnp.ones((4, 7))
  grad = jax.grad(lambda w: jnp.sum(product("bld,df->blf", x, w)))
  assert "optimization_barrier" not in str(jax.make_jaxpr(grad)(w))


def test_policy_saves_the_products_with_parameters():
  saves = is_weight_product
  assert saves(product_p, equation="bld,df->blf")
  assert not saves(product_p, equation="bgqk,bgmk->bgqm")
  assert not saves(jax.lax.dot_general_p)
