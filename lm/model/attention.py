"""Attention, causal or not, that can be confined to documents; XLA or fused.

Dimension key: see `transformer.py`. The XLA form can be differentiated in
forward and in reverse mode, to any order. The fused kernels can be
differentiated once, in reverse mode.
"""

import typing

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ..config.schema import ModelConfig
from . import layers
from .mesh import RULES, platform
from .products import Context


class Places(typing.NamedTuple):
  """Where the queries stand in their rows; B may be 1 for all rows alike."""

  index_BL: jax.Array  # In the row.
  first_BL: jax.Array | None  # The first key it may see; None: 0.
  rope: tuple[jax.Array, jax.Array] | None  # From `layers.rope_angles`.
  last_BL: jax.Array | None = None  # The last one; None: itself, causal.


class Reach(typing.NamedTuple):
  """What each position may see where that is not all before it.

  Attributes:
    start_BL: Index of the first token of the position's document. With
      `restart_positions` positions count from this token. With
      `isolate_documents` this token is the first key that the position sees;
      otherwise key 0 is.
    last_BL: Index of the last key that the position sees.
  """

  start_BL: jax.Array
  last_BL: jax.Array


def both_ways(tokens_BL: jax.Array, cfg: ModelConfig) -> Reach:
  """Each position sees its whole document, or, not isolated, its whole row.

  Args:
    tokens_BL: Token ids; `cfg.eos_id` opens a document.
    cfg: Reads `eos_id` and `isolate_documents`.
  """
  start_BL = document_starts(tokens_BL, cfg.eos_id)
  end = tokens_BL.shape[1] - 1
  last_BL = jnp.full_like(start_BL, end)
  if cfg.isolate_documents:
    index_L = jnp.arange(end + 1, dtype=jnp.int32)
    opens_BL = jnp.where(tokens_BL == cfg.eos_id, index_L - 1, end)
    after_BL = jax.lax.cummin(opens_BL, axis=1, reverse=True)[:, 1:]
    last_BL = last_BL.at[:, :-1].set(after_BL)
  return Reach(start_BL, last_BL)


def document_starts(tokens_BL: jax.Array, eos_id: int) -> jax.Array:
  """Index in the row of the last `eos_id` up to each token; 0 before any.

  The separator opens the document that follows, so this is where the document
  of each token begins. A token attends within its document when it sees the
  keys from there to itself; its position in the document is the distance from
  there.
  """
  index_L = jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)
  opens_BL = jnp.where(tokens_BL == eos_id, index_L, 0)
  return jax.lax.cummax(opens_BL, axis=1)


def attend(
  q_BLHK: jax.Array,
  k_BMGK: jax.Array,
  v_BMGK: jax.Array,
  places: Places,
  context: Context,
) -> jax.Array:
  """Softmax attention of each query over the keys that `places` allows.

  Args:
    q_BLHK: Queries, not yet scaled by 1 / sqrt(K).
    k_BMGK: Keys; query head h reads group h // (H / G).
    v_BMGK: Values.
    places: Which keys each query sees.
    context: Reads `attention`, `positions`, `attention_soft_cap` of its `cfg`.

  Returns:
    Weighted values, [B, L, H, K] in the dtype of the values.

  Raises:
    ValueError: If the kernel named by `cfg.attention` cannot run here.
  """
  cfg = context.cfg
  if cfg.attention == "xla":
    return _attend_xla(q_BLHK, k_BMGK, v_BMGK, places, context)
  if cfg.attention == "cudnn":
    return _attend_cudnn(q_BLHK, k_BMGK, v_BMGK, places, cfg)
  if cfg.attention == "splash":
    return _attend_splash(q_BLHK, k_BMGK, v_BMGK, places, cfg)
  raise ValueError(
    f"config.model.attention={cfg.attention!r} is not a kernel; use xla, cudnn "
    "or splash."
  )


def _attend_xla(q_BLHK, k_BMGK, v_BMGK, places, context):
  cfg = context.cfg
  b, l, h, k = q_BLHK.shape
  m, g = k_BMGK.shape[1:3]
  # Heads first, and the query heads of a group as further rows: all products
  # are then plain stacks of matrices. The compiler's order makes the step 1.1
  # times as long.
  q_BHLK, k_BGMK, v_BGMK = (
    x.swapaxes(1, 2) for x in (q_BLHK * k**-0.5, k_BMGK, v_BMGK)
  )
  scores = context.contract(
    "attention.scores",
    "bgqk,bgmk->bgqm",
    q_BHLK.reshape(b, g, -1, k),
    k_BGMK,
    out_dtype=jnp.float32,
  )
  scores_BHLM = layers.soft_cap(scores, cfg.attention_soft_cap)
  scores_BHLM = scores_BHLM.reshape(b, h, l, m)
  if cfg.positions == "alibi":
    scores_BHLM += _alibi(places, m, h)
  mask_BLM = _mask(places, m)
  scores_BHLM = jnp.where(mask_BLM[:, None], scores_BHLM, -jnp.inf)
  weights_BHLM = jax.nn.softmax(scores_BHLM).astype(v_BMGK.dtype)
  out = context.contract(
    "attention.values",
    "bgqm,bgmk->bgqk",
    weights_BHLM.reshape(b, g, -1, m),
    v_BGMK,
  )
  return out.reshape(b, h, l, k).swapaxes(1, 2)


def _mask(places, num_keys):
  key_M = jnp.arange(num_keys, dtype=jnp.int32)
  last_BL = places.index_BL if places.last_BL is None else places.last_BL
  mask_BLM = key_M <= last_BL[..., None]
  if places.first_BL is not None:
    mask_BLM &= key_M >= places.first_BL[..., None]
  return mask_BLM


def _alibi(places, num_keys, num_heads):
  # Distances in the row: within a document they equal those of positions.
  key_M = jnp.arange(num_keys, dtype=jnp.int32)
  distance_BLM = places.index_BL[..., None] - key_M
  if places.last_BL is not None:
    distance_BLM = jnp.abs(distance_BLM)
  slopes_H = layers.alibi_slopes(num_heads)
  return -slopes_H[:, None, None] * distance_BLM[:, None]


def _attend_cudnn(q_BLHK, k_BMGK, v_BMGK, places, cfg):
  _require_platform("cudnn", "gpu")
  _require_plain_scores(cfg, allow_alibi=True)
  if q_BLHK.dtype != jnp.bfloat16:
    raise ValueError(
      f"config.model.attention='cudnn' computes in bfloat16, not in "
      f"{q_BLHK.dtype}. Set config.model.compute_dtype='bfloat16' or "
      "config.model.attention='xla'."
    )
  bias = None
  if cfg.positions == "alibi":
    bias = _alibi(places, k_BMGK.shape[1], q_BLHK.shape[2]).astype(q_BLHK.dtype)
  return jax.nn.dot_product_attention(
    q_BLHK,
    k_BMGK,
    v_BMGK,
    bias=bias,
    mask=_mask(places, k_BMGK.shape[1])[:, None],
    implementation="cudnn",
  )


def _attend_splash(q_BLHK, k_BMGK, v_BMGK, places, cfg):
  _require_platform("splash", "tpu")
  _require_plain_scores(cfg, allow_alibi=False)
  if places.last_BL is not None:
    raise ValueError(
      "config.model.attention='splash' is causal, but "
      "config.train.objective looks ahead. Set config.model.attention='xla'."
    )
  return splash_attention(q_BLHK, k_BMGK, v_BMGK, places.first_BL)


def splash_attention(
  q_BLHK: jax.Array,
  k_BMGK: jax.Array,
  v_BMGK: jax.Array,
  first_BL: jax.Array | None,
  *,
  interpret: bool = False,
) -> jax.Array:
  """JAX's fused TPU kernel on whole rows; causal, confined to documents.

  The compiler does not split a Pallas call, so on a mesh the call is mapped
  over the shards of rows and heads.

  Args:
    q_BLHK: Queries, not yet scaled.
    k_BMGK: Keys, M = L.
    v_BMGK: Values.
    first_BL: Index of the first token of each token's document, or None.
    interpret: Run on any platform, slowly.
  """
  # Not at the top: importing Pallas takes a second.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  def kernel(q_BLHK, k_BMGK, v_BMGK, segment_BL):
    _, l, h, k = q_BLHK.shape
    mask = splash.MultiHeadMask([splash.CausalMask((l, l))] * h)
    attend_one = splash.make_splash_mha(
      mask, head_shards=1, q_seq_shards=1, interpret=interpret
    )
    groups = h // k_BMGK.shape[2]

    def row(q_LHK, k_MGK, v_MGK, segment_L):
      q, k_, v = (x.swapaxes(0, 1) for x in (q_LHK, k_MGK, v_MGK))
      ids = splash.SegmentIds(segment_L, segment_L)
      k_, v = (jnp.repeat(x, groups, axis=0) for x in (k_, v))
      out: typing.Any = attend_one(q * k**-0.5, k_, v, ids)
      return out.swapaxes(0, 1)

    return jax.vmap(row)(q_BLHK, k_BMGK, v_BMGK, segment_BL)

  if first_BL is None:
    first_BL = jnp.zeros(q_BLHK.shape[:2], jnp.int32)
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    rows = PartitionSpec(RULES["batch"])
    heads = PartitionSpec(RULES["batch"], None, RULES["act_heads"])
    kernel = jax.shard_map(
      kernel,
      in_specs=(heads, heads, heads, rows),
      out_specs=heads,
      check_vma=False,
    )
  return kernel(q_BLHK, k_BMGK, v_BMGK, first_BL)


def _require_platform(name, needed):
  if platform() != needed:
    raise ValueError(
      f"config.model.attention={name!r} runs on {needed.upper()} only; this "
      f"process has {platform()} devices. Set config.model.attention='xla'."
    )


def _require_plain_scores(cfg, allow_alibi):
  cap, alibi = cfg.attention_soft_cap, cfg.positions == "alibi"
  if cap or (alibi and not allow_alibi):
    raise ValueError(
      f"config.model.attention={cfg.attention!r} does not offer "
      f"config.model.attention_soft_cap={cap} with "
      f"config.model.positions={cfg.positions!r}. Set "
      "config.model.attention='xla'."
    )
