"""Interpolated Witten-Bell n-grams: the loss that a corpus allows for free.

    p_k(w | h) = (c(h w) + t(h) p_{k-1}(w | h')) / (c(h) + t(h)),  p_0 = 1 / V

c counts in the training tokens, t(h) is the number of distinct tokens seen
after h, and h' is h without its oldest token. A context never seen has
c = t = 0 and takes p_{k-1}. A trained transformer that does not beat the
trigram has learned nothing from the order of tokens beyond two.

Source: Witten and Bell, "The zero-frequency problem", IEEE Trans. Inf. Theory
37 (1991), method C; interpolated as in Chen and Goodman, 1999, section 2.5.
"""

from typing import NamedTuple

import numpy as np

ORDERS = ("unigram", "bigram", "trigram")
_CHUNK = 1 << 20  # Tokens evaluated at a time, to bound the memory.


class _Counts(NamedTuple):
  """Counts of one order; an n-gram is coded as a number in base V."""

  grams: np.ndarray  # Sorted distinct codes of h w.
  gram_counts: np.ndarray  # c(h w).
  contexts: np.ndarray  # Sorted distinct codes of h.
  context_counts: np.ndarray  # c(h).
  continuations: np.ndarray  # t(h).


class WittenBell:
  """n-gram models of orders 1, 2 and 3, fitted to a token stream."""

  def __init__(self, tokens: np.ndarray, vocab_size: int):
    """Counts the n-grams.

    Args:
      tokens: Token stream, integers below `vocab_size`; the first is context
        only.
      vocab_size: V, at most 2**21 - 1.
    """
    if vocab_size ** len(ORDERS) >= 2**63:
      raise ValueError(f"vocab_size={vocab_size} exceeds 2**21 - 1.")
    self._vocab_size = vocab_size
    history, targets = _windows(_pad(tokens))
    self._counts = [
      _count(codes, vocab_size) for codes in self._codes(history, targets)
    ]

  def probabilities(
    self, history: np.ndarray, targets: np.ndarray
  ) -> np.ndarray:
    """Probability of each target under each order, [3, T] float64.

    Args:
      history: [T, 2], the tokens two and one places before the target.
      targets: [T].
    """
    p = np.full(len(targets), 1 / self._vocab_size)
    orders = []
    for codes, table in zip(
      self._codes(history, targets), self._counts, strict=True
    ):
      contexts = codes // self._vocab_size
      count = _look_up(table.grams, table.gram_counts, codes)
      total = _look_up(table.contexts, table.context_counts, contexts)
      types = _look_up(table.contexts, table.continuations, contexts)
      seen = total > 0
      p = np.where(seen, (count + types * p) / np.maximum(total + types, 1), p)
      orders.append(p)
    return np.stack(orders)

  def nats_per_token(self, tokens: np.ndarray) -> dict[str, float]:
    """Mean -log p of all tokens after the first, by order."""
    total, padded = np.zeros(len(ORDERS)), _pad(tokens)
    for start in range(0, len(tokens) - 1, _CHUNK):
      p = self.probabilities(*_windows(padded[start : start + _CHUNK + 2]))
      total -= np.log(p).sum(axis=1)
    mean = total / (len(tokens) - 1)
    return dict(zip(ORDERS, mean.tolist(), strict=True))

  def _codes(self, history: np.ndarray, targets: np.ndarray):
    """Codes of h w for h of 0, 1 and 2 tokens, oldest token first."""
    v = self._vocab_size
    codes, place = targets.astype(np.int64), 1
    yield codes
    for distance in range(1, len(ORDERS)):
      place *= v
      codes = codes + place * history[:, -distance].astype(np.int64)
      yield codes


def _pad(tokens: np.ndarray) -> np.ndarray:
  """Puts a copy of the first token in front, so the second has a history."""
  return np.concatenate([tokens[:1], tokens])


def _windows(padded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """History [T, 2] and target [T] of all tokens but the first two."""
  return np.stack([padded[:-2], padded[1:-1]], axis=1), padded[2:]


def _count(codes: np.ndarray, vocab_size: int) -> _Counts:
  grams, gram_counts = np.unique(codes, return_counts=True)
  contexts, start, continuations = np.unique(
    grams // vocab_size, return_index=True, return_counts=True
  )
  context_counts = np.add.reduceat(gram_counts, start)
  return _Counts(grams, gram_counts, contexts, context_counts, continuations)


def _look_up(
  keys: np.ndarray, values: np.ndarray, queries: np.ndarray
) -> np.ndarray:
  """values[keys == query], or 0 where there is none."""
  index = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
  return np.where(keys[index] == queries, values[index], 0)
