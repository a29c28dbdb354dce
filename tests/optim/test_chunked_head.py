"""A chunked head computes what the whole model does, without its logits."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import optim
from optim.curvature import products

B, L, D, V = 3, 7, 8, 40
MODES = ("quadratic", "prox_linear", "nonlinear")
LOSS = optim.softmax_cross_entropy(
  lambda batch: (batch["tokens"][:, 1:], batch["weights"]), z_loss=0.02
)


def _normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _params(tied, dtype=None):
  params = dict(
    embed=dict(table=_normal(0, V, D)),
    mix=0.4 * _normal(1, D, D),
    bias=_normal(2, D),
  )
  if not tied:
    params["head"] = dict(kernel=_normal(3, D, V) / D**0.5)
  return jax.tree.map(lambda x: x.astype(dtype or x.dtype), params)


def _batch():
  rng = np.random.default_rng(4)
  weights = np.ones((B, L))
  weights[1, 4:] = 0  # Padding.
  weights[2, 0] = 0.5
  tokens = jnp.asarray(rng.integers(0, V, (B, L + 1)))
  return dict(tokens=tokens, weights=jnp.asarray(weights))


def _body(params, batch):
  h = params["embed"]["table"][batch["tokens"][:, :-1]]
  carried = jnp.cumsum(h, axis=1) / jnp.arange(1, L + 1)[:, None]
  return jnp.tanh(carried.astype(h.dtype) @ params["mix"] + params["bias"])


def _head(tied, num_chunks, cap=None):
  """The adapter, with the plain product or a soft-capped one."""
  path = "embed/table" if tied else ("head", "kernel")
  if cap is None:
    return optim.chunked_lm_head(_body, path, num_chunks, transpose=tied)
  equation = "bld,vd->blv" if tied else "bld,dv->blv"

  def head_fn(matrix, hidden):
    logits = cap * jnp.tanh(jnp.einsum(equation, hidden, matrix) / cap)
    return jnp.where(jnp.arange(V) < V - 3, logits, -jnp.inf)

  return optim.chunked_lm_head(_body, path, num_chunks, head_fn=head_fn)


@pytest.fixture(params=[(False, None), (True, 2.0)])
def case(request):
  """(num_chunks -> adapter, the same as a plain function, params, d)."""
  tied, cap = request.param
  with jax.enable_x64(True):
    params = _params(tied)
    d = jax.tree.map(lambda x: 0.3 * jnp.cos(7 * x), params)
    whole = _head(tied, 1, cap)
    yield (
      lambda n: _head(tied, n, cap),
      lambda p, b: whole(p, b),
      params,
      d,
    )


def _close(actual, wanted, atol=1e-12):
  a, b = (jax.flatten_util.ravel_pytree(x)[0] for x in (actual, wanted))
  np.testing.assert_allclose(a, b, atol=atol, rtol=0)


# 7 positions: 3 + 3 + 1, and one each (none of nothing).
@pytest.mark.parametrize("num_chunks", [3, 20])
def test_local_models(case, num_chunks):
  chunked, plain, params, d = case

  def all_modes(model):
    return jax.jit(
      lambda d: [
        optim.local_value_and_grad(
          model, LOSS, params, d, _batch(), mode=mode, damping=0.1
        )
        for mode in MODES
      ]
    )(d)

  _close(all_modes(chunked(num_chunks)), all_modes(plain))


def test_products_and_linearisation(case):
  chunked, plain, params, d = case

  def compute(model):
    at = optim.linearize_at(model, LOSS, params, _batch())
    products = [
      product(model, LOSS, params, _batch(), d)
      for product in (optim.ggn_vector_product, optim.hvp)
    ]
    return (at.value, at.grad, at.ggn(d), products), at.outputs

  actual, hidden = jax.jit(lambda: compute(chunked(3)))()
  wanted, _ = jax.jit(lambda: compute(plain))()
  _close(actual, wanted, 1e-11)
  assert hidden.shape == (B, L, D)


def test_losses(case):
  chunked, plain, params, _ = case
  unweighted = optim.softmax_cross_entropy(lambda b: (b["tokens"][:, 1:], None))

  @jax.jit
  def compute(batch):
    logits = plain(params, batch)
    return [
      (
        products.loss_sums(chunked(3), loss, params, batch),
        loss(logits, batch),
      )
      for loss in (LOSS, unweighted)
    ]

  for ((total, weight), wanted), count in zip(
    compute(_batch()), (np.sum(_batch()["weights"]), B * L), strict=True
  ):
    assert float(weight) == count
    _close(total / weight, wanted)


def _largest(function, *args):
  """Entries of the largest array in a jaxpr, loops and calls included."""

  def visit(jaxpr):
    sizes = [v.aval.size for e in jaxpr.eqns for v in e.outvars]
    for eqn in jaxpr.eqns:
      for value in jax.tree.leaves(
        list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
      ):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
          sizes.append(visit(inner))
    return max(sizes, default=0)

  return visit(jax.make_jaxpr(function)(*args).jaxpr)


@pytest.mark.parametrize("what", [*MODES, "ggn", "hvp", "loss", "linearize"])
def test_no_array_of_all_logits(what):
  params, batch = _params(True), _batch()
  calls = dict.fromkeys(MODES) | dict(
    ggn=lambda m: lambda p: optim.ggn_vector_product(m, LOSS, p, batch, p),
    hvp=lambda m: lambda p: optim.hvp(m, LOSS, p, batch, p),
    loss=lambda m: lambda p: products.loss_sums(m, LOSS, p, batch),
    linearize=lambda m: lambda p: optim.linearize_at(m, LOSS, p, batch).ggn(p),
  )
  for mode in MODES:
    calls[mode] = lambda m, mode=mode: (
      lambda p: optim.local_value_and_grad(m, LOSS, p, p, batch, mode=mode)
    )
  limit = B * L * V
  assert _largest(calls[what](_head(True, 7)), params) < limit
  whole = _head(True, 1)  # The measure does see them.
  assert _largest(calls[what](lambda p, b: whole(p, b)), params) >= limit


def test_bfloat16_body_and_float32_loss():
  params, batch = _params(True, jnp.float32), _batch()

  def body(params, batch):
    return _body(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), batch)

  half = optim.chunked_lm_head(body, "embed/table", 3, transpose=True)
  d = jax.tree.map(lambda x: 0.1 * x, params)
  (value, grad), (wanted, exact) = (
    jax.jit(
      lambda d, model=model: optim.local_value_and_grad(
        model, LOSS, params, d, batch
      )
    )(d)
    for model in (half, _head(True, 3))
  )
  assert {x.dtype for x in jax.tree.leaves(grad)} == {jnp.dtype(jnp.float32)}
  assert float(value) == pytest.approx(float(wanted), rel=2e-2)
  gap = _norm(jax.tree.map(jnp.subtract, grad, exact))
  assert gap < 0.03 * _norm(exact)


def _norm(tree):
  return float(np.linalg.norm(jax.flatten_util.ravel_pytree(tree)[0]))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: _head(True, 0), "num_chunks=0 must be >= 1"),
    (lambda: _head(True, 2.0), "num_chunks=2.0 must be a Python int"),
    (
      lambda: optim.chunked_lm_head(
        _body, "w", 2, head_fn=lambda w, h: h, transpose=True
      ),
      "transpose=True is for the plain product",
    ),
    (
      lambda: _head(False, 2)(_params(True), _batch()),
      r"no 'head' among \['bias', 'embed', 'mix'\]",
    ),
    (
      lambda: optim.ggn_vector_product(
        _head(True, 2), lambda z, b: jnp.sum(z), _params(True), _batch(),
        _params(True),
      ),
      "must be a mean over positions",
    ),
    (
      lambda: products.loss_sums(
        optim.chunked_lm_head(lambda p, b: jnp.ones((2, 3)), "mix", 2),
        LOSS, _params(True), _batch(),
      ),
      r"must return hidden activations \[B, L, D\]",
    ),
  ],
)  # fmt: skip
def test_mistakes_are_explained(make, message):
  with pytest.raises(ValueError, match=message):
    make()
