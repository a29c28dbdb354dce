"""Causal softmax attention: projections around `attention.attend`.

Dimension key: see `transformer.py`. The cache of a layer is its keys and
values, [B, M, G, K] each.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ...config.schema import ModelConfig
from .. import attention, layers
from ..mesh import constrain
from ..param_spec import ParamSpec, Tree, gain_and_bias, init_std
from ..products import Context

Cache = tuple[jax.Array, jax.Array]
_HEADS = ("batch", "seq", "act_heads", "kv")


def specs(cfg: ModelConfig, layer: int) -> Tree:
  """The four projections of a layer, and norms of queries and keys if any."""
  d, k = cfg.D, cfg.K
  std, std_out = init_std(cfg, d), init_std(cfg, d, layer)

  def into(heads, axis):
    axes = ("embed", axis, "kv")
    return ParamSpec((d, heads, k), axes, "hidden", (0,), std)

  axes = ("heads", "kv", "embed")
  found = {
    "q": into(cfg.H, "heads"),
    "k": into(cfg.G, "kv_heads"),
    "v": into(cfg.G, "kv_heads"),
    "out": ParamSpec((cfg.H, k, d), axes, "hidden", (0, 1), std_out),
  }
  if cfg.qk_norm != "none":
    found["q_norm"] = _norm_specs(cfg, cfg.H, "heads")
    found["k_norm"] = _norm_specs(cfg, cfg.G, "kv_heads")
  return found


def _norm_specs(cfg, heads, axis):
  """The norm of queries or keys.

  `full` normalises all heads of a token together, so its gain has an entry for
  each channel of each head; the heads of `head` share one gain.
  """
  if cfg.qk_norm == "full":
    shape, axes = (heads, cfg.K), (axis, "kv")
  else:
    shape, axes = (cfg.K,), ("gain",)
  bias = cfg.qk_norm_bias and cfg.qk_norm_type == "layernorm"
  return gain_and_bias(shape, axes, bias)


def apply(
  w: Tree,
  x_BLD: jax.Array,
  cache: Cache | None,
  places: attention.Places,
  context: Context,
) -> tuple[jax.Array, Cache | None, dict[str, jax.Array]]:
  """What is added to the stream, and the layer's cache; no sums."""
  cfg = context.cfg

  def project(name):
    heads = "h" if name == "q" else "g"
    equation = f"bld,d{heads}k->bl{heads}k"
    return context.contract(f"attention.{name}", equation, x_BLD, w[name])

  q_BLHK, k_BLGK, v_BLGK = project("q"), project("k"), project("v")
  if cfg.qk_norm != "none":
    q_BLHK, k_BLGK = (
      layers.norm(x, **w[name], kind=cfg.qk_norm_type, eps=cfg.norm_eps)
      for x, name in ((q_BLHK, "q_norm"), (k_BLGK, "k_norm"))
    )
  if places.rope is not None:
    layout = cfg.positions.removeprefix("rope_")
    q_BLHK = layers.rope(q_BLHK, places.rope, layout)
    k_BLGK = layers.rope(k_BLGK, places.rope, layout)
  q_BLHK = constrain(checkpoint_name(q_BLHK, "q"), _HEADS)
  k_BLGK = constrain(checkpoint_name(k_BLGK, "k"), _HEADS)
  v_BLGK = constrain(checkpoint_name(v_BLGK, "v"), _HEADS)
  if cache is not None:
    cache = _append(cache, (k_BLGK, v_BLGK), places.index_BL[:, 0])
    k_BLGK, v_BLGK = cache
  out_BLHK = attention.attend(q_BLHK, k_BLGK, v_BLGK, places, context)
  out_BLHK = checkpoint_name(out_BLHK, "attention")
  y_BLD = context.contract("attention.out", "blhk,hkd->bld", out_BLHK, w["out"])
  return y_BLD, cache, {}


def init_cache(cfg: ModelConfig, batch_size: int, size: int) -> Cache:
  """Keys and values of no token, with room for `size`."""
  shape = (batch_size, size, cfg.G, cfg.K)
  return (jnp.zeros(shape, cfg.compute_dtype),) * 2


def _append(cache, new, length_B):
  """Writes `new` [B, T, G, K] into a layer's cache from `length_B` on."""

  def write(old_MGK, new_TGK, length):
    zero = jnp.zeros_like(length)
    return jax.lax.dynamic_update_slice(old_MGK, new_TGK, (length, zero, zero))

  return jax.tree.map(
    lambda old, x: jax.vmap(write)(old, x, length_B), cache, new
  )


def weights(cfg: ModelConfig) -> tuple[int, int]:
  """Entries of a layer's matrices; a token meets all of them."""
  count = 2 * cfg.D**2 + 2 * cfg.D * cfg.G * cfg.K
  return count, count


def flops(cfg: ModelConfig, causal_half: bool) -> float:
  """Of the scores and of the weighted values."""
  return (2 if causal_half else 4) * cfg.L * cfg.D


def problems(cfg: ModelConfig) -> Iterator[str]:
  """A fused kernel whose products would not be the chosen ones."""
  if cfg.attention != "xla" and cfg.product != "plain":
    yield (
      f"config.model.attention={cfg.attention!r} makes the products of scores "
      f"and values itself, so config.model.product={cfg.product!r} cannot; "
      "take --config.model.attention=xla."
    )
