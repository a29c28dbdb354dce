"""Gauss-Newton through the transformer, its head in chunks or whole."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from losses import loss_sums
from oracles.flops import matmul_flops

import optim
from lm.model.transformer import Transformer

Z_LOSS = 0.01
# Scanned and rematerialised layers, tied and untied heads, caps and masks.
MODELS = {
  "scanned": dict(layers="scan", remat="full", mlp="swiglu"),
  "untied": dict(tied=False, logit_soft_cap=3.0, layers="scan", remat="dots"),
}


def _model_fn(model, num_chunks):
  """The adapter that a trainer makes."""
  name = "embed" if model.cfg.tied else "head"

  def body(params, tokens):
    return model.apply({"params": params}, tokens[:, :-1], method="hidden")[0]

  def head(part, hidden):
    return model.apply({"params": {name: part}}, hidden, method="logits")

  return optim.chunked_lm_head(body, name, num_chunks, head_fn=head)


def _loss_fn(cfg):
  def targets(tokens):
    return tokens[:, 1:], tokens[:, 1:] != cfg.pad_id

  return optim.softmax_cross_entropy(targets, z_loss=Z_LOSS)


@pytest.fixture(
  params=["scanned", pytest.param("untied", marks=pytest.mark.slow)]
)
def case(request, make_config, make_params):
  cfg = make_config(**MODELS[request.param])
  params = make_params(cfg)
  d = jax.tree.map(lambda x: 0.1 * jnp.cos(9 * x), params)
  return Transformer(cfg), params, d


def _flat(tree):
  return jax.flatten_util.ravel_pytree(tree)[0]


def _close(actual, wanted, rtol=2e-4):
  a, b = _flat(actual), _flat(wanted)
  np.testing.assert_allclose(a, b, atol=rtol * np.abs(b).max(), rtol=0)


def _by_hand(model, loss, params, d, tokens):
  """Gradients of the quadratic and prox-linear models, linearised plainly."""

  def f(p):
    return model.apply({"params": p}, tokens[:, :-1])

  z, tangent = jax.linearize(f, params)
  real = model.cfg.real_V
  u = tangent(d)

  def ell(x):
    return loss(z.at[..., :real].add(x[..., :real]), tokens)

  zero = jnp.zeros_like(z)
  slope = jax.grad(ell)
  curve = jax.jvp(slope, (zero,), (u,))[1]
  back = jax.linear_transpose(tangent, params)
  return dict(
    quadratic=back(slope(zero) + curve)[0], prox_linear=back(slope(u))[0]
  )


def test_inner_gradients(case, rows):
  model, params, d = case
  loss = _loss_fn(model.cfg)

  def objective(p):
    sums = loss_sums(model, p, rows)
    return (sums.loss + Z_LOSS * sums.z_loss) / sums.weight

  @jax.jit
  def ours(p, d):
    gradients = {
      mode: optim.local_value_and_grad(
        _model_fn(model, 5), loss, p, d, rows, mode=mode
      )
      for mode in ("quadratic", "prox_linear", "nonlinear")
    }
    return {k: grad for k, (_, grad) in gradients.items()}

  @jax.jit
  def theirs(p, d):
    moved = jax.tree.map(jnp.add, p, d)
    by_hand = _by_hand(model, loss, p, d, rows)
    return by_hand | dict(nonlinear=jax.grad(objective)(moved))

  actual, wanted = ours(params, d), theirs(params, d)
  for mode, gradient in wanted.items():
    _close(actual[mode], gradient)


def test_cost_is_five_forward_passes_to_three(make_config, make_params, rows):
  # With full rematerialisation, one more each: (6 - ...) / (4 - ...).
  for remat, wanted in (("none", 5 / 3), ("full", 6 / 4)):
    cfg = make_config(layers="scan", remat=remat)
    params, model = make_params(cfg), Transformer(cfg)

    def flops(mode, model=model, params=params):
      return matmul_flops(
        lambda p, d: optim.local_value_and_grad(
          _model_fn(model, 1), _loss_fn(model.cfg), p, d, rows, mode=mode
        ),
        params,
        params,
      )

    ratio = flops("quadratic") / flops("nonlinear")
    assert ratio == pytest.approx(wanted, rel=0.03)


def test_bfloat16_products(make_config, make_params, rows):
  exact = make_config(layers="scan", remat="full")
  params = make_params(exact)
  d = jax.tree.map(lambda x: 0.1 * jnp.cos(9 * x), params)
  products = []
  for dtype in ("float32", "bfloat16"):
    cfg = make_config(layers="scan", remat="full", compute_dtype=dtype)
    product = jax.jit(
      lambda p, d, cfg=cfg: optim.ggn_vector_product(
        _model_fn(Transformer(cfg), 5), _loss_fn(cfg), p, rows, d
      )
    )(params, d)
    assert {x.dtype for x in jax.tree.leaves(product)} == {jnp.dtype("float32")}
    products.append(_flat(product))
  full, half = products
  assert np.linalg.norm(full - half) < 0.05 * np.linalg.norm(full)
