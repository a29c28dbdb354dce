"""FLOPs against counts by hand and by the compiler."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from losses import loss_sums

from lm.config import load
from lm.model import params as param_table
from lm.model.transformer import Transformer
from lm.step import flops
from ml_collections_configs import base


def _model(**changes):
  default = load.from_config_dict(base.get_config()).model
  return dataclasses.replace(default, **{"V": 512, "L": 128} | changes)


def test_forward_by_hand():
  # Per layer: q and output 2 x 8x8, k and v 2 x 8x4, gated mlp 3 x 8x16.
  cfg = _model(D=8, N=3, H=4, G=2, F=16, V=10, L=6, mlp="swiglu")
  block = 2 * (2 * 64 + 2 * 32 + 3 * 128)
  square = 2 * 6 * 8 * 2  # 6 positions, scores and values.
  head = 2 * 8 * 10
  full = flops.forward_flops_per_token(cfg, causal_half=False)
  assert full == 3 * (block + square) + head
  half = flops.forward_flops_per_token(cfg)
  assert half == 3 * (block + square / 2) + head


def test_train_is_three_forwards_and_recomputation_is_counted_on_request():
  cfg = _model()
  forward = flops.forward_flops_per_token(cfg)
  head = 2 * cfg.D * cfg.V
  assert flops.train_flops_per_token(cfg) == 3 * forward

  def extra(**changes):
    changed = _model(**changes)
    assert flops.train_flops_per_token(changed) == 3 * forward
    return flops.train_flops_per_token(changed, recompute=True) - 3 * forward

  assert extra() == 0
  assert extra(remat="full") == forward - head
  assert extra(remat="full", loss_chunk=64) == forward
  assert extra(remat="dots") == cfg.N * 2 * cfg.L * cfg.D


@pytest.mark.parametrize(
  ("kind", "tflops"),
  [
    ("TPU v3", 61.5), ("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5", 459),
    ("TPU v5p", 459), ("TPU v6 lite", 918), ("TPU v6e", 918),
    ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 80GB HBM3", 989.5),
    ("NVIDIA H100 PCIe", 756), ("cpu", None), ("TPU v9", None),
  ],
)  # fmt: skip
def test_peak_by_device_kind(kind, tflops):
  expected = None if tflops is None else pytest.approx(tflops * 1e12)
  assert flops.peak_flops(kind) == expected


def _by_xla(cfg):
  """FLOPs per token of the loss and its gradient, as XLA counts them."""
  model, specs = Transformer(cfg), param_table.param_specs(cfg)
  tokens = jax.ShapeDtypeStruct((4, cfg.L + 1), jnp.int32)
  params = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32),
    specs,
    is_leaf=lambda s: isinstance(s, param_table.ParamSpec),
  )

  def loss(params, tokens):
    return loss_sums(model, params, tokens).loss

  compiled = jax.jit(jax.grad(loss)).lower(params, tokens).compile()
  return compiled.cost_analysis()["flops"] / (4 * cfg.L)


@pytest.mark.parametrize("changes", [{"G": 2}, {"G": 1, "mlp": "swiglu"}])
def test_the_compiler_counts_the_same(changes):
  # Unrolled, since XLA counts the body of a scan once; the full square, since
  # plain XLA attention computes it. Norms, softmax and the like are extra.
  small = {"D": 128, "N": 2, "H": 2, "F": 512, "real_V": 512, "pad_id": 1}
  small |= {"layers": "unroll", "compute_dtype": "float32"}
  cfg = _model(**small | changes)
  formula = flops.train_flops_per_token(cfg, causal_half=False)
  counted = _by_xla(cfg)
  assert formula < counted < 1.025 * formula
  remat = _model(**small | changes | {"remat": "full"})
  more = flops.train_flops_per_token(remat, causal_half=False, recompute=True)
  assert counted < _by_xla(remat) < more  # Unneeded products are dropped.


def test_mfu():
  # 1e6 tokens/s x 1e9 FLOPs on 8 devices of 275e12: 1e15 / 2.2e15.
  assert flops.mfu(1e6, 1e9, 8, "TPU v4") == pytest.approx(1 / 2.2)
  assert flops.mfu(1e6, 1e9, 8, "cpu") is None
