"""Sums against NumPy; the chunked head against the plain one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import loss_sums, row_losses
from oracles import transformer as oracle

from lm.model.transformer import Transformer

OPTIONS = [
  dict(),
  dict(tied=False, logit_soft_cap=3.0, layers="scan"),
]


@pytest.fixture(params=OPTIONS)
def case(request, make_config, make_params):
  cfg = make_config(**request.param)
  return Transformer(cfg), make_params(cfg)


def test_sums_are_those_of_numpy(case, rows):
  model, params = case
  logits = model.apply({"params": params}, rows[:, :-1])
  targets = rows[:, 1:]
  expected = oracle.losses(
    np.float64(logits), targets, targets != model.cfg.pad_id
  )
  np.testing.assert_allclose(
    loss_sums(model, params, rows)[:4], expected, rtol=1e-5
  )
  loss_B, weight_B = row_losses(model, params, rows)
  assert float(loss_B.sum()) == pytest.approx(expected[0], rel=1e-5)
  np.testing.assert_array_equal(weight_B, (targets != 0).sum(1))
  for i in range(2):
    alone = loss_sums(model, params, rows[i : i + 1])
    assert float(loss_B[i]) == pytest.approx(float(alone.loss), rel=1e-5)


def test_ids_beyond_the_vocabulary_have_no_probability(case, rows):
  model, params = case
  logits = model.apply({"params": params}, rows[:, :-1])
  assert logits.dtype == jnp.float32
  real = model.cfg.real_V
  assert np.isneginf(logits[..., real:]).all()
  assert np.isfinite(logits[..., :real]).all()


def test_padding_changes_no_gradient(case, rows):
  """A row may as well end where its padding begins."""
  model, params = case
  grad = jax.grad(lambda p, rows: loss_sums(model, p, rows).loss)
  _assert_close(
    jax.jit(grad)(params, rows[1:]), jax.jit(grad)(params, rows[1:, :11])
  )


def _objective(model, rows):
  def objective(params):
    sums = loss_sums(model, params, rows)
    return (sums.loss + 0.1 * sums.z_loss) / sums.weight, sums

  return jax.jit(jax.value_and_grad(objective, has_aux=True))


# 2 rows of 12: chunks of 1, of 5 (the last one padded), of all 12 positions.
@pytest.mark.parametrize("chunk", [1, 10, 1000])
def test_chunked_head_is_the_plain_one(case, rows, chunk):
  model, params = case
  chunked = Transformer(dataclasses.replace(model.cfg, loss_chunk=chunk))
  _assert_close(
    _objective(model, rows)(params), _objective(chunked, rows)(params)
  )
  for a, b in zip(
    row_losses(model, params, rows),
    row_losses(chunked, params, rows),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_chunked_head_is_differentiable_forward_and_twice(case, rows):
  model, params = case
  chunked = Transformer(dataclasses.replace(model.cfg, loss_chunk=10))

  def derivatives(model):
    def loss(p):
      return loss_sums(model, p, rows).loss

    tangent = jax.tree.map(jnp.ones_like, params)
    return jax.jvp(jax.grad(loss), (params,), (tangent,))

  _assert_close(jax.jit(derivatives, static_argnums=0)(model),
                jax.jit(derivatives, static_argnums=0)(chunked))  # fmt: skip


def _assert_close(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), a, b
  )


def _shapes(jaxpr):
  """Shapes of all values of a jaxpr, also inside its loops and calls."""
  for eqn in jaxpr.eqns:
    yield from (v.aval.shape for v in eqn.outvars)
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          yield from _shapes(inner)


@pytest.mark.parametrize("tied", [True, False])
def test_chunked_head_makes_no_logits_of_the_whole_batch(
  make_config, make_params, tied
):
  """No array of the gradient has B L V entries; the plain one has some."""
  rows = np.ones((3, 41), np.int32)

  def largest(chunk):
    cfg = make_config(V=512, real_V=500, L=40, tied=tied, loss_chunk=chunk)
    model, params = Transformer(cfg), make_params(cfg)
    grad = jax.grad(lambda p: loss_sums(model, p, rows).loss)
    shapes = _shapes(jax.make_jaxpr(grad)(params).jaxpr)
    return max(int(np.prod(s)) for s in shapes)

  assert largest(chunk=0) == 3 * 40 * 512
  assert largest(chunk=24) == 3 * 4 * 40 * 40  # Attention scores.
