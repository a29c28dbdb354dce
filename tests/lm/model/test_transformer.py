"""The model against NumPy, and what must hold for every set of options."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import loss_sums
from oracles import transformer as oracle

from lm.config.names import SAVED
from lm.model import params as param_table
from lm.model.cache import init_cache
from lm.model.transformer import Transformer

# Together they name every option of positions, norms, groups, caps and so on.
OPTIONS = {
  "default": dict(),
  "olmo": dict(qk_norm="full", tied=False, mlp="swiglu", G=2),
  "gauss_newton": dict(
    norm="rmsnorm", positions="rope_interleaved", qk_norm="full",
    qk_norm_bias=True, isolate_documents=False, restart_positions=False,
    tied=False,
  ),
  "after": dict(
    norm_position="after", positions="alibi", qk_norm="head", norm_bias=True,
    qk_norm_type="rmsnorm", mlp="relu2", G=1,
  ),
  "learned": dict(
    positions="learned", attention_soft_cap=2.0, logit_soft_cap=3.0,
    qk_norm="head", qk_norm_bias=True,
  ),
  "bare": dict(positions="none", isolate_documents=False, G=2),
  "packed_rope": dict(restart_positions=False, norm="rmsnorm"),
  "packed_alibi": dict(positions="alibi", isolate_documents=False),
}  # fmt: skip


@pytest.fixture(params=OPTIONS)
def cfg(request, make_config):
  return make_config(**OPTIONS[request.param])


def _logits(cfg, params, inputs):
  model = Transformer(cfg)
  return jax.jit(model.apply)({"params": params}, inputs)


def test_forward_is_the_oracles(cfg, make_params, rows):
  params = make_params(cfg)
  exact = jax.tree.map(np.float64, params)
  expected = oracle.forward(exact, rows[:, :-1], cfg)
  logits = _logits(cfg, params, rows[:, :-1])
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def _influence(cfg, params, row):
  """[L, L]: whether output i depends on input embedding j, by gradients."""
  model = Transformer(cfg)
  table = params["embed"]["table"]

  # An own row of the table for each place, so that gradients tell places apart.
  # Separators keep their id, since the documents are read off it.
  places = jnp.where(
    row == cfg.eos_id, cfg.eos_id, cfg.V + jnp.arange(len(row))
  )
  wide = dataclasses.replace(cfg, V=cfg.V + len(row), tied=True)
  model = Transformer(wide)

  def hidden(rows_LD):
    wide_table = jnp.concatenate([table, rows_LD])
    tree = params | {"embed": {"table": wide_table}}
    return model.apply({"params": tree}, places[None], method="hidden")[0][0]

  jacobian = jax.jit(jax.jacrev(hidden))(table[row])
  return np.abs(np.asarray(jacobian)).max(axis=(1, 3))


def test_no_output_sees_the_future_or_another_document(cfg, make_params):
  row = np.array([3, 4, 1, 5, 6, 7, 1, 8, 9])
  seen = _influence(cfg, make_params(cfg), row)
  i, j = np.indices(seen.shape)
  allowed = j <= i
  if cfg.isolate_documents:
    document = np.cumsum(row == cfg.eos_id)
    allowed &= document[i] == document[j]
  allowed &= (row != cfg.eos_id)[j]  # Those rows of the table are not varied.
  np.testing.assert_array_equal(seen[~allowed], 0.0)
  assert (seen[allowed] > 0).all()


def test_restarted_positions_make_documents_independent_of_their_place(
  make_config, make_params
):
  """A document gives the same outputs alone and behind another one."""
  for positions in ("rope_half", "alibi", "learned"):
    cfg = make_config(positions=positions)
    params = make_params(cfg)
    document = np.array([[1, 7, 8, 9]])
    behind = np.array([[1, 3, 4, 1, 7, 8, 9]])
    alone = _logits(cfg, params, document)
    packed = _logits(cfg, params, behind)[:, 3:]
    np.testing.assert_allclose(packed, alone, rtol=1e-5, atol=1e-5)


def _loss_and_grads(cfg, params, rows):
  model = Transformer(cfg)

  def loss(p):
    sums = loss_sums(model, p, rows)
    return sums.loss / sums.weight

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("name", ["olmo", "after"])
def test_scan_is_unroll(make_config, make_params, rows, name):
  unrolled = make_config(**OPTIONS[name], N=3)
  scanned = dataclasses.replace(unrolled, layers="scan")
  params = make_params(unrolled)
  loss, grads = _loss_and_grads(unrolled, params, rows)
  stacked = param_table.stack_layers(params)
  other_loss, other_grads = _loss_and_grads(scanned, stacked, rows)
  assert float(loss) == pytest.approx(float(other_loss), abs=1e-6)
  _assert_close(grads, param_table.unstack_layers(other_grads), 1e-5)


def _assert_close(a, b, tolerance):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, rtol=tolerance, atol=tolerance
    ),
    a,
    b,
  )


# Products of one layer that the backward pass does again, of the eight that
# it has; the last one's result is not needed to differentiate the layer.
RECOMPUTED = {"none": 0, "full": 7, "dots": 2, "names:q,k,v,mlp_in": 3}


@pytest.mark.parametrize(
  "layers", ["scan", pytest.param("unroll", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("policy", list(RECOMPUTED)[1:])
def test_remat_changes_memory_and_nothing_else(
  make_config, make_params, rows, policy, layers
):
  plain = make_config(layers=layers)
  remat = dataclasses.replace(plain, remat=policy)
  params = make_params(plain)
  _assert_close(
    _loss_and_grads(plain, params, rows),
    _loss_and_grads(remat, params, rows),
    1e-5,
  )


@pytest.mark.parametrize("policy", RECOMPUTED)
def test_remat_is_really_on(make_config, make_params, rows, policy):
  """Counts forward products in the jaxpr of the gradient, beyond the loss's."""
  cfg = make_config(N=1, remat=policy)
  model, params = Transformer(cfg), make_params(cfg)

  def loss(p):
    hidden, _ = model.apply({"params": p}, rows[:, :-1], method="hidden")
    return jnp.sum(hidden)

  def products(f):
    return str(jax.make_jaxpr(f)(params)).count("= product[")

  forward = products(loss)
  assert forward == 8  # q, k, v, scores, values, out, in, out.
  again = products(jax.grad(loss)) - forward
  assert again == RECOMPUTED[policy]


@pytest.mark.parametrize(("mlp", "missing"), [("swiglu", 0), ("gelu", 1)])
def test_names_of_remat_are_those_in_the_traced_model(
  make_config, make_params, rows, mlp, missing
):
  cfg = make_config(N=1, mlp=mlp)
  model, params = Transformer(cfg), make_params(cfg)

  def forward(p):
    return model.apply({"params": p}, rows[:, :-1], method="hidden")

  text = str(jax.make_jaxpr(forward)(params))
  traced = re.findall(r"name\[name=(\w+)\]", text)
  assert sorted(traced) == sorted(SAVED[: len(SAVED) - missing])


def test_decoding_equals_the_full_forward(cfg, make_params, rows):
  """A prompt of 5 at once, then one by one, over a document boundary."""
  for layers in ("unroll", "scan"):
    cfg = dataclasses.replace(cfg, layers=layers)
    params = make_params(cfg)
    inputs = rows[:, :-1]
    model = Transformer(cfg)

    @jax.jit
    def decode(tokens, cache, model=model, params=params):
      return model.apply({"params": params}, tokens, cache, method="decode")

    cache, parts = init_cache(cfg, 2, 15), []
    for start, stop in [(0, 5)] + [(i, i + 1) for i in range(5, 12)]:
      logits, cache = decode(inputs[:, start:stop], cache)
      parts.append(logits)
    np.testing.assert_allclose(
      np.concatenate(parts, axis=1),
      _logits(cfg, params, inputs),
      rtol=1e-5,
      atol=1e-5,
    )


def test_rows_of_different_lengths_decode_together(make_config, make_params):
  cfg = make_config(qk_norm="head", G=2)
  params, model = make_params(cfg), Transformer(cfg)
  prompts = np.array([[5, 6, 7, 8], [1, 9, 0, 0]])  # The second one padded.
  _, cache = model.apply(
    {"params": params}, prompts, init_cache(cfg, 2, 8), method="decode"
  )
  cache = cache._replace(length_B=jnp.array([4, 2]))
  logits, _ = model.apply(
    {"params": params}, np.array([[3], [4]]), cache, method="decode"
  )
  for i, whole in enumerate(([5, 6, 7, 8, 3], [1, 9, 4])):
    expected = _logits(cfg, params, np.array([whole]))[0, -1]
    np.testing.assert_allclose(logits[i, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(
      name, marks=() if name in ("olmo", "after") else pytest.mark.slow
    )
    for name in OPTIONS
  ],
)
def test_forward_mode_and_curvature(make_config, make_params, rows, name):
  """jvp and Hessian-vector product against differences of the gradient."""
  cfg = make_config(**OPTIONS[name])
  params, model = make_params(cfg), Transformer(cfg)
  keys = iter(jax.random.split(jax.random.key(5), 100))
  v = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), params)

  def loss(p):
    sums = loss_sums(model, p, rows)
    return sums.loss / sums.weight

  @jax.jit
  def products(p):
    grads, hv = jax.jvp(jax.grad(loss), (p,), (v,))
    return jax.jvp(loss, (p,), (v,))[1], grads, hv

  slope, grads, hv = products(params)
  assert float(slope) == pytest.approx(_vdot(grads, v), rel=1e-3, abs=1e-3)
  step = 3e-3
  ahead, behind = (
    _vdot(products(jax.tree.map(lambda p, d, s=s: p + s * d, params, v))[1], v)
    for s in (step, -step)
  )
  curvature = (ahead - behind) / (2 * step)
  assert _vdot(v, hv) == pytest.approx(curvature, rel=0.05, abs=0.05)


def _vdot(a, b):
  return sum(float(jnp.vdot(x, y)) for x, y in zip(
    jax.tree.leaves(a), jax.tree.leaves(b), strict=True))  # fmt: skip


def test_bfloat16_is_close(cfg, make_params, rows):
  params = make_params(cfg)
  low = dataclasses.replace(cfg, compute_dtype="bfloat16")
  exact = _logits(cfg, params, rows[:, :-1])[..., : cfg.real_V]
  rough = _logits(low, params, rows[:, :-1])[..., : cfg.real_V]
  assert rough.dtype == jnp.float32
  error = np.sqrt(np.mean((rough - exact) ** 2) / np.mean(exact**2))
  assert 1e-4 < error < 0.03  # bfloat16 has 8 bits; 0 would mean unused.


@pytest.mark.parametrize(
  ("kernel", "platform"), [("cudnn", "GPU"), ("splash", "TPU")]
)
def test_fused_kernels_say_where_they_run(
  make_config, make_params, rows, kernel, platform
):
  cfg = make_config(attention=kernel)
  with pytest.raises(ValueError, match=f"'{kernel}' runs on {platform} only"):
    _logits(cfg, make_params(cfg), rows[:, :-1])


def test_unknown_names_are_named(make_config, make_params, rows):
  params = make_params(make_config())
  for key in ("attention", "remat"):
    with pytest.raises(ValueError, match=f"config.model.{key}='nope'"):
      _logits(make_config(**{key: "nope"}), params, rows[:, :-1])
