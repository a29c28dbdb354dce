"""The decoder in NumPy float64, one row and one query at a time.

Written from the equations, with loops where the package has arrays. Parameters
are nested dicts with one child a layer, as in the unrolled layout.
"""

import math

import numpy as np


def forward(params, tokens, o):
  """Logits [B, L, V] of a batch; `o` holds the options as attributes."""
  return np.stack([_row(params, row, o) for row in tokens])


def losses(logits, targets, counted):
  """Sums: cross-entropy, squared log-normaliser, weight, hits."""
  total = np.zeros(4)
  for z, y, w in zip(
    logits.reshape(-1, logits.shape[-1]),
    targets.ravel(),
    counted.ravel(),
    strict=True,
  ):
    lse = math.log(np.exp(z - z.max()).sum()) + z.max()
    total += w * np.array([lse - z[y], lse**2, 1, z.argmax() == y])
  return total


def _row(params, tokens, o):
  starts, start = [], 0
  for i, token in enumerate(tokens):
    start = i if token == o.eos_id else start
    starts.append(start)
  positions = [
    i - s if o.restart_positions else i for i, s in enumerate(starts)
  ]
  x = params["embed"]["table"][tokens]
  if o.positions == "learned":
    x = x + params["positions"]["table"][positions]
  for layer in range(o.N):
    w = params["blocks"][str(layer)]

    def attend(h, w=w):
      return _attention(w["attention"], h, starts, positions, o)

    def feed(h, w=w):
      return _mlp(w["mlp"], h, o)

    for name, f in (("norm1", attend), ("norm2", feed)):
      if o.norm_position == "pre":
        x = x + f(_norm(w[name], x, o.norm, o))
      else:
        x = x + _norm(w[name], f(x), o.norm, o)
  x = _norm(params["final_norm"], x, o.norm, o)
  head = params["embed"]["table"].T if o.tied else params["head"]["kernel"]
  logits = _cap(x @ head, o.logit_soft_cap)
  logits[:, o.real_V :] = -np.inf
  return logits


def _norm(w, x, kind, o):
  """Over the last axis of x [L, C]."""
  if kind == "layernorm":
    x = x - x.mean(-1, keepdims=True)
  y = x / np.sqrt((x**2).mean(-1, keepdims=True) + o.norm_eps)
  y = y * w["gain"].ravel()
  return y + w["bias"].ravel() if "bias" in w else y


def _attention(w, x, starts, positions, o):
  length, d = x.shape
  size = d // o.H

  def heads(name, count):
    y = x @ w[name].reshape(d, count * size)
    if o.qk_norm == "full" and name in "qk":
      y = _norm(w[f"{name}_norm"], y, o.qk_norm_type, o)
    y = y.reshape(length, count, size)
    if o.qk_norm == "head" and name in "qk":
      y = _norm(w[f"{name}_norm"], y, o.qk_norm_type, o)
    return y

  q, k, v = heads("q", o.H), heads("k", o.G), heads("v", o.G)
  if o.positions.startswith("rope"):
    q, k = (_rotate(y, positions, o) for y in (q, k))
  out = np.zeros((length, o.H, size))
  for h in range(o.H):
    g = h // (o.H // o.G)
    for i in range(length):
      seen = range(starts[i] if o.isolate_documents else 0, i + 1)
      scores = np.array([q[i, h] @ k[j, g] / math.sqrt(size) for j in seen])
      scores = _cap(scores, o.attention_soft_cap)
      if o.positions == "alibi":
        slope = 2 ** (-8 * (h + 1) / o.H)
        scores = scores - slope * np.array([i - j for j in seen])
      weights = np.exp(scores - scores.max())
      weights /= weights.sum()
      out[i, h] = sum(p * v[j, g] for p, j in zip(weights, seen, strict=True))
  return out.reshape(length, -1) @ w["out"].reshape(-1, d)


def _rotate(y, positions, o):
  y, size = y.copy(), y.shape[-1]
  for i, p in enumerate(positions):
    for pair in range(size // 2):
      angle = p * o.rope_base ** (-2 * pair / size)
      a, b = (
        (pair, pair + size // 2)
        if o.positions == "rope_half"
        else (2 * pair, 2 * pair + 1)
      )
      turned = y[i, :, a] + 1j * y[i, :, b]
      turned = turned * np.exp(1j * angle)
      y[i, :, a], y[i, :, b] = turned.real, turned.imag
  return y


def _mlp(w, x, o):
  hidden = x @ w["in"]
  if o.mlp == "gelu":
    inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
    hidden = hidden * (1 + np.tanh(inner)) / 2
  elif o.mlp == "relu2":
    hidden = np.maximum(hidden, 0) ** 2
  else:
    gate = x @ w["gate"]
    hidden = gate / (1 + np.exp(-gate)) * hidden
  return hidden @ w["out"]


def _cap(x, cap):
  return cap * np.tanh(x / cap) if cap else x
