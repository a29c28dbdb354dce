"""Decoder-only transformer.

Dimension key: B rows, L query position, M key position, D model width, H query
heads, G key-value heads, K head size, R = H / G query heads of a group, F
feed-forward width, V vocabulary (padded), N layers, T new tokens in decoding,
1 as in BL1: one more than L.

The modules only declare the parameters of `params.py`'s table and call the
functions of `layers.py`, of the mixer and of the feed-forward block. Values
come from `params.init_params`, not from `Transformer.init`, which fills in NaN.
Parameters are float32. Products run in `cfg.compute_dtype`; norms, softmax and
logits run in float32.

Documents need no array beside the tokens: `eos_id` stands before the first
token of each document, and attention and positions begin anew there.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..config.names import SAVED
from ..config.schema import ModelConfig
from . import attention, layers
from . import params as param_table
from .cache import Cache
from .draws import Draws
from .ffn import table as feed_forwards
from .mesh import axis_size, constrain
from .mixers import table as mixers
from .product import is_weight_product
from .products import Context

Sums = dict[str, jax.Array]  # Over tokens: see `ffn.table.FeedForward.apply`.

_RESIDUAL = ("batch", "seq", "act_embed")


class Transformer(nn.Module):
  """Tokens to logits.

  Attributes:
    cfg: Model section of the configuration, resolved.
  """

  cfg: ModelConfig

  def setup(self):
    """Declares the parts; their parameters are declared where used."""
    cfg = self.cfg
    self.embed = Embedding(cfg)
    if cfg.positions == "learned":
      self.positions = PositionTable(cfg)
    self.blocks = _stack_of_blocks(cfg)
    self.final_norm = Norm(param_table.norm_specs(cfg), cfg.norm, cfg.norm_eps)
    if not cfg.tied:
      self.head = Head(cfg)

  def __call__(self, tokens_BL: jax.Array) -> jax.Array:
    """Logits [B, L, V] of the next token, float32; -inf beyond `real_V`."""
    return self.logits(self.hidden(tokens_BL)[0])

  def hidden(
    self,
    tokens_BL: jax.Array,
    reach: attention.Reach | None = None,
    draws: Draws | None = None,
  ) -> tuple[jax.Array, Sums]:
    """Activations after the final norm, and sums that the layers report.

    Args:
      tokens_BL: Token ids.
      reach: What each position sees; None: what stands before it.
      draws: Keys of random numbers; None: nothing is drawn.

    Returns:
      Activations [B, L, D] in the compute dtype; sums over all tokens and
      layers, by "ffn/KEY" and "mixer/KEY".
    """
    index_BL = jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)[None]
    if reach is None:
      starts_BL = attention.document_starts(tokens_BL, self.cfg.eos_id)
      where = (starts_BL, None)
    else:
      where = tuple(reach)
    hidden_BLD, _, sums = self._run(tokens_BL, index_BL, *where, None, draws)
    return hidden_BLD, sums

  def logits(
    self,
    hidden_BLD: jax.Array,
    draws: Draws | None = None,
    chunk: int | jax.Array | None = None,
  ) -> jax.Array:
    """The head alone: float32 logits from the result of `hidden`.

    Args:
      hidden_BLD: Activations, or some positions of them.
      draws: As for `hidden`.
      chunk: Number of the positions, if the head is applied in parts.
    """
    output = self.embed.attend if self.cfg.tied else self.head
    logits_BLV = output(hidden_BLD, Context(self.cfg, chunk, draws))
    logits_BLV = layers.soft_cap(logits_BLV, self.cfg.logit_soft_cap)
    if self.cfg.real_V < self.cfg.V:
      is_real_V = jnp.arange(self.cfg.V) < self.cfg.real_V
      logits_BLV = jnp.where(is_real_V, logits_BLV, -jnp.inf)
    return constrain(logits_BLV, ("batch", "seq", "act_vocab"))

  def decode(
    self, tokens_BT: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """Logits of the token after each of `tokens_BT`, which continue `cache`.

    The result equals the last T positions of `__call__` on all tokens so far.
    The cache must have room for T more tokens; nothing checks this.

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
    hidden_BTD, caches, _ = self._run(
      tokens_BT, index_BT, starts_BT, None, cache.layers
    )
    cache = Cache(caches, length_B + offsets_T.size, starts_BT[:, -1])
    return self.logits(hidden_BTD), cache

  def _run(self, tokens_BL, index_BL, starts_BL, last_BL, caches, draws=None):
    cfg = self.cfg
    positions_BL = index_BL
    if cfg.restart_positions:
      positions_BL = index_BL - starts_BL
    x_BLD = self.embed(tokens_BL, Context(cfg, draws=draws))
    if cfg.positions == "learned":
      x_BLD += self.positions(positions_BL)
    rope = None
    if cfg.positions.startswith("rope_"):
      layout = cfg.positions.removeprefix("rope_")
      rope = layers.rope_angles(positions_BL, cfg.K, cfg.rope_base, layout)
    first_BL = starts_BL if cfg.isolate_documents else None
    places = attention.Places(index_BL, first_BL, rope, last_BL)
    layers_N = None if draws is None else jnp.arange(cfg.N)
    x_BLD, (caches, sums) = self.blocks(x_BLD, caches, layers_N, places, draws)
    sums = jax.tree.map(lambda sums_N: jnp.sum(sums_N, axis=0), sums)
    return self.final_norm(x_BLD), caches, sums


class Block(nn.Module):
  """One layer: mixer and feed-forward block, each added to the stream."""

  cfg: ModelConfig
  number: int | None = None  # Of the layer, where layers stand one by one.

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    cache: param_table.Tree,
    layer: int | jax.Array | None,
    places: attention.Places,
    draws: Draws | None,
  ) -> tuple[jax.Array, tuple[param_table.Tree, Sums]]:
    """Returns the stream after the layer, the layer's cache and its sums."""
    cfg = self.cfg
    number = layer if self.number is None else self.number
    context = Context(cfg, number, draws)
    w = _declare(self, param_table.block_specs(cfg))
    mixer, feed_forward = mixers.of(cfg), feed_forwards.of(cfg)

    def norm(name, x_BLD):
      return layers.norm(x_BLD, **w[name], kind=cfg.norm, eps=cfg.norm_eps)

    def mix(x_BLD):
      return mixer.apply(w["attention"], x_BLD, cache, places, context)

    def feed(x_BLD):
      return feed_forward.apply(w["mlp"], x_BLD, context)

    x_BLD = constrain(x_BLD, _RESIDUAL)
    if cfg.norm_position == "pre":
      out_BLD, cache, mixed = mix(norm("norm1", x_BLD))
      x_BLD = x_BLD + out_BLD
      out_BLD, fed = feed(norm("norm2", x_BLD))
      x_BLD = x_BLD + out_BLD
    else:
      out_BLD, cache, mixed = mix(x_BLD)
      x_BLD = x_BLD + norm("norm1", out_BLD)
      out_BLD, fed = feed(x_BLD)
      x_BLD = x_BLD + norm("norm2", out_BLD)
    sums = {
      f"{part}/{key}": jnp.asarray(value, jnp.float32)
      for part, found in (("mixer", mixed), ("ffn", fed))
      for key, value in found.items()
    }
    return constrain(x_BLD, _RESIDUAL), (cache, sums)


class UnrolledBlocks(nn.Module):
  """The layers one by one, with the interface of the scanned ones."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x_BLD, caches, layers_N, places, draws):
    """Returns the stream after all layers, their caches and sums stacked."""
    del layers_N
    block = _remat(Block, self.cfg.remat, prevent_cse=True)
    after = []
    for i in range(self.cfg.N):
      layer = block(self.cfg, number=i, name=str(i))
      cache = jax.tree.map(lambda x, i=i: x[i], caches)
      x_BLD, left = layer(x_BLD, cache, None, places, draws)
      after.append(left)
    return x_BLD, jax.tree.map(lambda *x: jnp.stack(x), *after)


class Norm(nn.Module):
  """LayerNorm or RMSNorm; `specs` are its gain and perhaps bias."""

  specs: param_table.Tree
  kind: str
  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises over the axes of the gain."""
    w = _declare(self, self.specs)
    return layers.norm(x, **w, kind=self.kind, eps=self.eps)


class Embedding(nn.Module):
  """The token table, and its transpose as the head of a tied model."""

  cfg: ModelConfig

  def setup(self):
    """Declares the table."""
    self.table_VD = _declare(self, param_table.embed_specs(self.cfg))["table"]

  def __call__(self, tokens_BL: jax.Array, context: Context) -> jax.Array:
    """Rows of the table."""
    dtype = self.cfg.compute_dtype
    if axis_size("tensor") > 1:
      # A gather from a table split over its rows would be replicated first.
      onehot_BLV = jax.nn.one_hot(tokens_BL, self.cfg.V, dtype=dtype)
      return context.contract("embed", "blv,vd->bld", onehot_BLV, self.table_VD)
    # Each device looks up its columns for all rows of its replica. The columns
    # are then exchanged for the device's rows. The compiler's own plan sends
    # the rows of all devices to each device of a mesh with replicas.
    tokens_BL = constrain(tokens_BL, ("replica_batch", "seq"))
    rows_BLD = self.table_VD.at[tokens_BL].get(mode="clip").astype(dtype)
    rows_BLD = constrain(rows_BLD, ("replica_batch", "seq", "embed"))
    return constrain(rows_BLD, _RESIDUAL)

  def attend(self, hidden_BLD: jax.Array, context: Context) -> jax.Array:
    """Product with the transposed table, in float32."""
    return _logits(context, "bld,vd->blv", hidden_BLD, self.table_VD)


class PositionTable(nn.Module):
  """Learned positions."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, positions_BL: jax.Array) -> jax.Array:
    """Rows of the table."""
    table_LD = _declare(self, param_table.position_specs(self.cfg))["table"]
    rows_BLD = table_LD.at[positions_BL].get(mode="clip")
    return rows_BLD.astype(self.cfg.compute_dtype)


class Head(nn.Module):
  """The output matrix of an untied model."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, hidden_BLD: jax.Array, context: Context) -> jax.Array:
    """Product with the kernel, in float32."""
    kernel_DV = _declare(self, param_table.head_specs(self.cfg))["kernel"]
    return _logits(context, "bld,dv->blv", hidden_BLD, kernel_DV)


def _logits(context, equation, hidden_BLD, w):
  return context.contract(
    "head", equation, hidden_BLD, w, out_dtype=jnp.float32
  )


def _declare(module, specs):
  """The module's parameters; `Transformer.init` would fill them with NaN."""

  def nan(_, specs):
    return jax.tree.map(
      lambda spec: jnp.full(spec.shape, jnp.nan, jnp.float32), specs
    )

  return {name: module.param(name, nan, s) for name, s in specs.items()}


def _stack_of_blocks(cfg):
  if cfg.layers == "unroll":
    return UnrolledBlocks(cfg)
  # Inside a scan nothing can be merged with the recomputation anyway.
  block = _remat(Block, cfg.remat, prevent_cse=False)
  scanned = nn.scan(
    block,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=(0, 0, nn.broadcast, nn.broadcast),
    out_axes=0,
    length=cfg.N,
  )
  return scanned(cfg)


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
