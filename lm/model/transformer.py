"""Decoder-only transformer.

Dimension key: B rows, L query position, M key position, D model width, H query
heads, G key-value heads, K head size, R = H / G query heads of a group, F
feed-forward width, V vocabulary (padded), N layers, T new tokens in decoding,
1 as in BL1: one more than L.

The modules only declare the parameters of `params.py`'s table and call the
functions of `layers.py` and `attention.py`. Values come from
`params.init_params`, not from `Transformer.init`, which fills in NaN.
Parameters are float32; products run in `cfg.compute_dtype`; norms, softmax and
logits in float32.

Documents need no array beside the tokens: `eos_id` stands before the first
token of each, so it is where attention and positions begin anew.
"""

import functools
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ..config.names import SAVED
from . import attention, layers
from . import params as param_table
from .cache import Cache, LayerCache, append
from .mesh import axis_size, constrain
from .products import is_weight_product

if typing.TYPE_CHECKING:
  from ..config.schema import ModelConfig

_RESIDUAL = ("batch", "seq", "act_embed")
_HEADS = ("batch", "seq", "act_heads", "kv")


class Transformer(nn.Module):
  """Tokens to logits.

  Attributes:
    cfg: Model section of the configuration, resolved.
    dot_general: Takes the place of `jax.lax.dot_general` in the product with
      each parameter matrix; a quantised one plugs in here.
  """

  cfg: "ModelConfig"
  dot_general: layers.DotGeneral | None = None

  def setup(self):
    """Declares the parts; their parameters are declared where used."""
    cfg = self.cfg
    self.embed = Embedding(cfg, self.dot_general)
    if cfg.positions == "learned":
      self.positions = PositionTable(cfg)
    self.blocks = _stack_of_blocks(cfg, self.dot_general)
    self.final_norm = Norm(param_table.norm_specs(cfg), cfg.norm, cfg.norm_eps)
    if not cfg.tied:
      self.head = Head(cfg, self.dot_general)

  def __call__(self, tokens_BL: jax.Array) -> jax.Array:
    """Logits [B, L, V] of the next token, float32; -inf beyond `real_V`."""
    return self.logits(self.hidden(tokens_BL))

  def hidden(self, tokens_BL: jax.Array) -> jax.Array:
    """Activations [B, L, D] after the final norm, in the compute dtype."""
    starts_BL = attention.document_starts(tokens_BL, self.cfg.eos_id)
    index_BL = jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)[None]
    return self._run(tokens_BL, index_BL, starts_BL, None)[0]

  def logits(self, hidden_BLD: jax.Array) -> jax.Array:
    """The head alone: float32 logits from the result of `hidden`."""
    output = self.embed.attend if self.cfg.tied else self.head
    logits_BLV = output(hidden_BLD)
    logits_BLV = layers.soft_cap(logits_BLV, self.cfg.logit_soft_cap)
    if self.cfg.real_V < self.cfg.V:
      is_real_V = jnp.arange(self.cfg.V) < self.cfg.real_V
      logits_BLV = jnp.where(is_real_V, logits_BLV, -jnp.inf)
    return constrain(logits_BLV, ("batch", "seq", "act_vocab"))

  def decode(
    self, tokens_BT: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """Logits of the token after each of `tokens_BT`, which continue `cache`.

    Equals the last T positions of `__call__` on all tokens so far. The caller
    sees to it that `cache` has room for T more.

    Args:
      tokens_BT: Next tokens of each row: a prompt, then one at a time.
      cache: From `init_cache` or the call before.

    Returns:
      Logits [B, T, V], and the cache with the tokens added.
    """
    length_B = cache.length_B
    offsets_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)
    index_BT = length_B[:, None] + offsets_T
    opens_BT = jnp.where(tokens_BT == self.cfg.eos_id, index_BT, 0)
    starts_BT = jax.lax.cummax(opens_BT, axis=1)
    starts_BT = jnp.maximum(starts_BT, cache.start_B[:, None])
    layer_caches = (cache.keys_NBMGK, cache.values_NBMGK)
    hidden_BTD, (keys, values) = self._run(
      tokens_BT, index_BT, starts_BT, layer_caches
    )
    cache = Cache(keys, values, length_B + offsets_T.size, starts_BT[:, -1])
    return self.logits(hidden_BTD), cache

  def _run(self, tokens_BL, index_BL, starts_BL, caches):
    cfg = self.cfg
    positions_BL = index_BL
    if cfg.restart_positions:
      positions_BL = index_BL - starts_BL
    x_BLD = self.embed(tokens_BL)
    if cfg.positions == "learned":
      x_BLD += self.positions(positions_BL)
    rope = None
    if cfg.positions.startswith("rope_"):
      layout = cfg.positions.removeprefix("rope_")
      rope = layers.rope_angles(positions_BL, cfg.K, cfg.rope_base, layout)
    first_BL = starts_BL if cfg.isolate_documents else None
    places = attention.Places(index_BL, first_BL, rope)
    x_BLD, caches = self.blocks(x_BLD, caches, places)
    return self.final_norm(x_BLD), caches


class Block(nn.Module):
  """One layer: attention and feed-forward, each added to the stream."""

  cfg: "ModelConfig"
  dot_general: layers.DotGeneral | None = None

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, cache: LayerCache, places: attention.Places
  ) -> tuple[jax.Array, LayerCache]:
    """Returns the stream after the layer, and the layer's cache."""
    cfg = self.cfg

    def norm(name):
      return Norm(
        param_table.norm_specs(cfg), cfg.norm, cfg.norm_eps, name=name
      )

    attend = Attention(cfg, self.dot_general, name="attention")
    mlp = Mlp(cfg, self.dot_general, name="mlp")
    x_BLD = constrain(x_BLD, _RESIDUAL)
    if cfg.norm_position == "pre":
      out_BLD, cache = attend(norm("norm1")(x_BLD), cache, places)
      x_BLD = x_BLD + out_BLD
      x_BLD = x_BLD + mlp(norm("norm2")(x_BLD))
    else:
      out_BLD, cache = attend(x_BLD, cache, places)
      x_BLD = x_BLD + norm("norm1")(out_BLD)
      x_BLD = x_BLD + norm("norm2")(mlp(x_BLD))
    return constrain(x_BLD, _RESIDUAL), cache


class UnrolledBlocks(nn.Module):
  """The layers one by one, with the interface of the scanned ones."""

  cfg: "ModelConfig"
  dot_general: layers.DotGeneral | None = None

  @nn.compact
  def __call__(self, x_BLD, caches, places):
    """Returns the stream after all layers, and their caches stacked."""
    block = _remat(Block, self.cfg.remat, prevent_cse=True)
    after = []
    for i in range(self.cfg.N):
      layer = block(self.cfg, self.dot_general, name=str(i))
      cache = jax.tree.map(lambda x, i=i: x[i], caches)
      x_BLD, cache = layer(x_BLD, cache, places)
      after.append(cache)
    return x_BLD, jax.tree.map(lambda *x: jnp.stack(x), *after)


class Attention(nn.Module):
  """Projections around `attention.attend`."""

  cfg: "ModelConfig"
  dot_general: layers.DotGeneral | None = None

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, cache: LayerCache, places: attention.Places
  ) -> tuple[jax.Array, LayerCache]:
    """Returns what is added to the stream, and the layer's cache."""
    cfg = self.cfg
    w = _declare(self, param_table.attention_specs(cfg))
    contract = functools.partial(layers.contract, dot_general=self.dot_general)
    q_BLHK = contract("bld,dhk->blhk", x_BLD, w["q"])
    k_BLGK = contract("bld,dgk->blgk", x_BLD, w["k"])
    v_BLGK = contract("bld,dgk->blgk", x_BLD, w["v"])
    if cfg.qk_norm != "none":
      q_BLHK = self._qk_norm("q_norm", cfg.H, "heads")(q_BLHK)
      k_BLGK = self._qk_norm("k_norm", cfg.G, "kv_heads")(k_BLGK)
    if places.rope is not None:
      layout = cfg.positions.removeprefix("rope_")
      q_BLHK = layers.rope(q_BLHK, places.rope, layout)
      k_BLGK = layers.rope(k_BLGK, places.rope, layout)
    q_BLHK = constrain(checkpoint_name(q_BLHK, "q"), _HEADS)
    k_BLGK = constrain(checkpoint_name(k_BLGK, "k"), _HEADS)
    v_BLGK = constrain(checkpoint_name(v_BLGK, "v"), _HEADS)
    if cache is not None:
      cache = append(cache, (k_BLGK, v_BLGK), places.index_BL[:, 0])
      k_BLGK, v_BLGK = cache
    out_BLHK = attention.attend(q_BLHK, k_BLGK, v_BLGK, places, cfg)
    out_BLHK = checkpoint_name(out_BLHK, "attention")
    return contract("blhk,hkd->bld", out_BLHK, w["out"]), cache

  def _qk_norm(self, name, heads, axis):
    cfg = self.cfg
    specs = param_table.qk_norm_specs(cfg, heads, axis)
    return Norm(specs, cfg.qk_norm_type, cfg.norm_eps, name=name)


class Mlp(nn.Module):
  """W_out act(W_in x), or W_out (silu(W_gate x) * W_in x) for swiglu."""

  cfg: "ModelConfig"
  dot_general: layers.DotGeneral | None = None

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    """Returns what is added to the stream."""
    w = _declare(self, param_table.mlp_specs(self.cfg))
    contract = functools.partial(layers.contract, dot_general=self.dot_general)

    def project(name):
      y_BLF = contract("bld,df->blf", x_BLD, w[name])
      y_BLF = checkpoint_name(y_BLF, f"mlp_{name}")
      return constrain(y_BLF, ("batch", "seq", "act_mlp"))

    gate_BLF = project("gate") if "gate" in w else None
    hidden_BLF = layers.mlp_activation(self.cfg.mlp, project("in"), gate_BLF)
    return contract("blf,fd->bld", hidden_BLF, w["out"])


class Norm(nn.Module):
  """LayerNorm or RMSNorm; `specs` are its gain and perhaps bias."""

  specs: param_table.Tree
  kind: str
  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises over the axes of the gain."""
    w = _declare(self, self.specs)
    return layers.norm(
      x, w["gain"], w.get("bias"), kind=self.kind, eps=self.eps
    )


class Embedding(nn.Module):
  """The token table, and its transpose as the head of a tied model."""

  cfg: "ModelConfig"
  dot_general: layers.DotGeneral | None = None

  def setup(self):
    """Declares the table."""
    self.table_VD = _declare(self, param_table.embed_specs(self.cfg))["table"]

  def __call__(self, tokens_BL: jax.Array) -> jax.Array:
    """Rows of the table."""
    dtype = self.cfg.compute_dtype
    if axis_size("tensor") > 1:
      # A gather from a table split over its rows would be replicated first.
      onehot_BLV = jax.nn.one_hot(tokens_BL, self.cfg.V, dtype=dtype)
      return layers.contract("blv,vd->bld", onehot_BLV, self.table_VD)
    # Each device looks up its columns for all rows of its replica, which are
    # then exchanged for its rows. Left to the compiler, a mesh with replicas
    # sends the rows of all devices to each of them.
    tokens_BL = constrain(tokens_BL, ("replica_batch", "seq"))
    rows_BLD = self.table_VD.at[tokens_BL].get(mode="clip").astype(dtype)
    rows_BLD = constrain(rows_BLD, ("replica_batch", "seq", "embed"))
    return constrain(rows_BLD, _RESIDUAL)

  def attend(self, hidden_BLD: jax.Array) -> jax.Array:
    """Product with the transposed table, in float32."""
    return layers.contract(
      "bld,vd->blv",
      hidden_BLD,
      self.table_VD,
      out_dtype=jnp.float32,
      dot_general=self.dot_general,
    )


class PositionTable(nn.Module):
  """Learned positions."""

  cfg: "ModelConfig"

  @nn.compact
  def __call__(self, positions_BL: jax.Array) -> jax.Array:
    """Rows of the table."""
    table_LD = _declare(self, param_table.position_specs(self.cfg))["table"]
    rows_BLD = table_LD.at[positions_BL].get(mode="clip")
    return rows_BLD.astype(self.cfg.compute_dtype)


class Head(nn.Module):
  """The output matrix of an untied model."""

  cfg: "ModelConfig"
  dot_general: layers.DotGeneral | None = None

  @nn.compact
  def __call__(self, hidden_BLD: jax.Array) -> jax.Array:
    """Product with the kernel, in float32."""
    kernel_DV = _declare(self, param_table.head_specs(self.cfg))["kernel"]
    return layers.contract(
      "bld,dv->blv",
      hidden_BLD,
      kernel_DV,
      out_dtype=jnp.float32,
      dot_general=self.dot_general,
    )


def _declare(module, specs):
  """The module's parameters; NaN if anybody uses `Transformer.init`'s."""

  def nan(_, shape):
    return jnp.full(shape, jnp.nan, jnp.float32)

  return {
    name: module.param(name, nan, s.shape)
    for name, s in specs.items()
    if isinstance(s, param_table.ParamSpec)
  }


def _stack_of_blocks(cfg, dot_general):
  if cfg.layers == "unroll":
    return UnrolledBlocks(cfg, dot_general)
  # Inside a scan nothing can be merged with the recomputation anyway.
  block = _remat(Block, cfg.remat, prevent_cse=False)
  scanned = nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=(0, nn.broadcast),
    out_axes=0,
    length=cfg.N,
  )
  return scanned(cfg, dot_general)


def _remat(block, policy_name, *, prevent_cse):
  """`block` keeping only what `cfg.remat` names for the backward pass."""
  policies = jax.checkpoint_policies
  if policy_name == "none":
    return block
  if policy_name == "full":
    policy = policies.nothing_saveable
  elif policy_name == "dots":
    policy = policies.save_from_both_policies(
      is_weight_product, policies.dots_with_no_batch_dims_saveable
    )
  elif policy_name.startswith("names:"):
    names = policy_name.removeprefix("names:").split(",")
    policy = policies.save_only_these_names(*names)
  else:
    raise ValueError(
      f"config.model.remat={policy_name!r} is not a policy; use none, full, "
      f"dots or names:NAME,NAME with names out of {', '.join(SAVED)}."
    )
  return nn.remat(block, policy=policy, prevent_cse=prevent_cse)
