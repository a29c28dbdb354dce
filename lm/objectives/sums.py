"""Cross-entropy as sums, with the head applied in chunks if asked.

Dimension key: see `transformer.py`. Everything is a sum, so that microbatches
and devices add up. The mean loss is `loss / weight`. The training objective is
`(loss + cfg.z_loss * z_loss) / weight`, with the losses of the layers, if there
are any (`aux_losses`), in the numerator.
"""

import typing

import jax
import jax.numpy as jnp

from ..model.param_spec import Tree
from ..model.transformer import Sums, Transformer
from .view import View


class LossSums(typing.NamedTuple):
  """Sums over the targets that count, float32; `aux` is over all tokens."""

  loss: jax.Array  # Cross-entropy, nats.
  z_loss: jax.Array  # logsumexp(logits)^2; Chowdhery et al., "PaLM", 2022.
  weight: jax.Array  # Number of targets that count.
  correct: jax.Array  # Targets whose logit is the largest.
  aux: Sums = {}  # What the layers report: `Transformer.hidden`.


def aux_losses(aux: Sums) -> list[jax.Array]:
  """The sums of the layers that are trained on."""
  return [value for key, value in aux.items() if key.endswith("/loss")]


def view_sums(model: Transformer, params: Tree, view: View) -> LossSums:
  """Cross-entropy of the targets of a view; sums of each row, [B] each.

  `aux` is a sum over all rows, not of each row.

  Args:
    model: Its `cfg` says how the head is chunked (`loss_chunk`).
    params: Parameters of the model.
    view: What is asked.
  """
  hidden_BLD, aux = view_hidden(model, params, view)
  # Only these, or the scan over chunks would carry gradients of all others.
  head = {name: params[name] for name in ("embed", "head") if name in params}

  def sums(head, hidden_BLD, targets_BL, weights_BL, chunk=None):
    logits_BLV: typing.Any = model.apply(
      {"params": head}, hidden_BLD, view.draws, chunk, method="logits"
    )
    return token_sums(logits_BLV, targets_BL, weights_BL)

  parts = (hidden_BLD, view.targets_BL, view.weights_BL)
  if not model.cfg.loss_chunk:
    return sums(head, *parts)._replace(aux=aux)

  chunks = [_split_length(x, model.cfg.loss_chunk) for x in parts]
  if view.draws is not None:  # Each chunk draws its own numbers.
    chunks.append(jnp.arange(len(chunks[0])))

  def add_chunk(total, chunk):
    part = jax.checkpoint(sums, prevent_cse=False)(head, *chunk)
    return jax.tree.map(jnp.add, total, part), None

  zeros_B = jnp.zeros(len(view.inputs_BL), jnp.float32)
  zeros = LossSums(zeros_B, zeros_B, zeros_B, zeros_B)
  return jax.lax.scan(add_chunk, zeros, chunks)[0]._replace(aux=aux)


def view_hidden(model: Transformer, params: Tree, view: View) -> typing.Any:
  """Activations [B, L, D] for the head, and what the layers report."""
  return model.apply(
    {"params": params},
    view.inputs_BL,
    view.places,
    view.draws,
    method="hidden",
  )


def view_logits(model: Transformer, params: Tree, view: View) -> typing.Any:
  """Logits [B, L, V] of a view, all at once."""
  hidden_BLD, _ = view_hidden(model, params, view)
  return model.apply(
    {"params": params}, hidden_BLD, view.draws, method="logits"
  )


def token_sums(
  logits_BLV: jax.Array, targets_BL: jax.Array, weights_BL: jax.Array
) -> LossSums:
  """Sums over the positions of each row, [B] each, from logits.

  Args:
    logits_BLV: float32; -inf for ids that do not exist.
    targets_BL: Token ids.
    weights_BL: float32, 0 for the targets that do not count.
  """
  vocabulary_V = jnp.arange(logits_BLV.shape[-1], dtype=targets_BL.dtype)
  # Not a gather: its transpose, a scatter, would write all logits once more.
  is_target_BLV = vocabulary_V == targets_BL[..., None]
  target_BL = jnp.sum(jnp.where(is_target_BLV, logits_BLV, 0), axis=-1)
  highest_BL = jax.lax.stop_gradient(jnp.max(logits_BLV, axis=-1))
  shifted_BLV = logits_BLV - highest_BL[..., None]
  lse_BL = highest_BL + jnp.log(jnp.sum(jnp.exp(shifted_BLV), axis=-1))
  correct_BL = (target_BL >= highest_BL).astype(jnp.float32)
  return LossSums(
    jnp.sum(weights_BL * (lse_BL - target_BL), axis=1),
    jnp.sum(weights_BL * lse_BL**2, axis=1),
    jnp.sum(weights_BL, axis=1),
    jnp.sum(weights_BL * correct_BL, axis=1),
  )


def _split_length(x_BL, chunk_tokens):
  """[chunks, B, C, ...] with B C <= chunk_tokens, zeros at the end.

  The length is split, not the rows, since rows lie on different devices.
  """
  b, l = x_BL.shape[:2]
  c = min(l, max(1, chunk_tokens // b))
  num_chunks = -(-l // c)
  padding = [(0, 0), (0, num_chunks * c - l)] + [(0, 0)] * (x_BL.ndim - 2)
  x_BL = jnp.pad(x_BL, padding)
  x_BNC = x_BL.reshape(b, num_chunks, c, *x_BL.shape[2:])
  return jnp.moveaxis(x_BNC, 1, 0)
