"""A toy feed-forward block: the mean of two halves, drawn to each other."""

import jax
import jax.numpy as jnp

from lm.model.ffn.table import FEED_FORWARDS, FeedForward
from lm.model.param_spec import ParamSpec, init_std


def specs(cfg, layer):
  d, f = cfg.D, cfg.F // 2
  std, std_out = init_std(cfg, d), init_std(cfg, f, layer)
  into = ParamSpec((d, f), ("embed", "mlp"), "hidden", (0,), std)
  out = ParamSpec((f, d), ("mlp", "embed"), "hidden", (0,), std_out)
  return {"left": {"in": into, "out": out}, "right": {"in": into, "out": out}}


def apply(w, x_BLD, context):
  def half(name):
    h_BLF = context.contract(f"{name}.in", "bld,df->blf", x_BLD, w[name]["in"])
    h_BLF = jax.nn.relu(h_BLF)
    return context.contract(f"{name}.out", "blf,fd->bld", h_BLF, w[name]["out"])

  left, right = half("left"), half("right")
  apart = jnp.sum(jnp.square(left - right).astype(jnp.float32))
  return (left + right) / 2, {"apart": apart, "loss": 0.01 * apart}


def weights(cfg):
  return 2 * cfg.D * cfg.F, 2 * cfg.D * cfg.F


FEED_FORWARDS["halves"] = FeedForward(specs, apply, weights)
