"""What products with the Gauss-Newton matrix cost, in matrix products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.flops import matmul_flops

import optim


def _normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _deep(remat):
  """[B, D] through layers of equal cost, each rematerialised or not."""

  def layer(h, w):
    return jnp.tanh(h @ w)

  layer = jax.checkpoint(layer) if remat else layer

  def model(params, batch):
    h = batch["x"]
    for w in params:
      h = layer(h, w)
    return h

  params = [0.3 * _normal(i, 16, 16) for i in range(6)]
  return model, params, dict(x=_normal(9, 8, 16), targets=jnp.zeros(8, int))


@pytest.mark.parametrize("remat", [False, True])
def test_products_by_count(remat):
  model, params, batch = _deep(remat)
  loss = optim.softmax_cross_entropy()
  forward = matmul_flops(lambda p: model(p, batch), params)
  # Inputs have no gradient, nor tangent: 1/6 less of one pass, both ways.
  less, again = 1 / 6, 1.0 if remat else 0.0
  gradient = matmul_flops(
    jax.grad(lambda p: loss(model(p, batch), batch)), params
  )
  assert gradient / forward == pytest.approx(3 - less + again, rel=0.01)

  def inner(mode):
    return matmul_flops(
      lambda p, d: optim.local_value_and_grad(
        model, loss, p, d, batch, mode=mode
      ),
      params,
      params,
    )

  wanted = 5 - 2 * less + again
  assert inner("quadratic") / forward == pytest.approx(wanted, rel=0.01)
  assert inner("prox_linear") / forward == pytest.approx(wanted, rel=0.01)
  assert inner("nonlinear") / forward == pytest.approx(
    3 - less + again, rel=0.01
  )
  product = matmul_flops(
    lambda p, v: optim.ggn_vector_product(model, loss, p, batch, v),
    params,
    params,
  )
  assert product / forward == pytest.approx(wanted, rel=0.01)

  def several(p, v, k=3):
    at = optim.linearize_at(model, loss, p, batch)
    return [at.ggn([i * x for x in v]) for i in range(k)]

  products = matmul_flops(several, params, params)
  each = 4 - 2 * less + 2 * again
  assert products / forward == pytest.approx(1 + 3 * each, rel=0.01)
