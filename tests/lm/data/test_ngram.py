"""Witten-Bell n-grams: a proper distribution, equal to a slow oracle."""

import itertools
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lm.data import ngram


class _Oracle:
  """The recursion of the module docstring, with dictionaries."""

  def __init__(self, tokens, vocab_size):
    padded = [tokens[0], *tokens]
    self.v, self.count, self.follow = vocab_size, {}, {}
    for i in range(2, len(padded)):
      for k in range(3):
        h, w = tuple(padded[i - k : i]), padded[i]
        self.count[h, w] = self.count.get((h, w), 0) + 1
        self.follow.setdefault(h, set()).add(w)

  def probability(self, h, w):
    below = self.probability(h[1:], w) if h else 1 / self.v
    types = len(self.follow.get(h, ()))
    total = sum(self.count[h, x] for x in self.follow.get(h, ()))
    if not total:
      return below
    return (self.count.get((h, w), 0) + types * below) / (total + types)


_STREAMS = st.lists(st.integers(0, 4), min_size=2, max_size=60)


@hypothesis.given(_STREAMS)
@hypothesis.settings(deadline=None, max_examples=50, derandomize=True)
def test_equals_oracle_and_sums_to_one(stream):
  v = 6  # One id is never seen.
  model, oracle = ngram.WittenBell(np.array(stream), v), _Oracle(stream, v)
  history = np.array(list(itertools.product(range(v), repeat=2)))
  by_target = np.stack(
    [model.probabilities(history, np.full(len(history), w)) for w in range(v)]
  )
  np.testing.assert_allclose(by_target.sum(axis=0), 1, rtol=1e-12)
  assert (by_target > 0).all()
  for (w, k, i), p in np.ndenumerate(by_target):
    h = tuple(history[i].tolist())[2 - k :]
    assert p == pytest.approx(oracle.probability(h, w), rel=1e-12)


def test_by_hand():
  # Targets of 0 1 1: c(1) = 2, N = 2, T = 1, V = 2, so p(1) = (2 + 1/2) / 3;
  # after 1: c(1 1) = 1, t = 1, so p(1 | 1) = (1 + p(1)) / 2.
  model = ngram.WittenBell(np.array([0, 1, 1]), 2)
  p = model.probabilities(np.array([[1, 1]]), np.array([1]))[:, 0]
  unigram = 2.5 / 3
  # The trigram context (1, 1) was never seen before a target.
  np.testing.assert_allclose(p, [unigram, (1 + unigram) / 2] + [p[1]])


def test_mean_loss_over_chunks(monkeypatch):
  rng = np.random.default_rng(0)
  model = ngram.WittenBell(rng.integers(0, 50, 2000), 50)
  held_out = rng.integers(0, 50, 333)
  whole = model.nats_per_token(held_out)
  history = np.stack([np.r_[held_out[0], held_out[:-2]], held_out[:-1]], axis=1)
  targets = held_out[1:]
  direct = -np.log(model.probabilities(history, targets)).mean(axis=1)
  monkeypatch.setattr(ngram, "_CHUNK", 10)
  chunked = model.nats_per_token(held_out)
  for order, loss in zip(ngram.ORDERS, direct, strict=True):
    assert whole[order] == pytest.approx(loss, rel=1e-12)
    assert chunked[order] == pytest.approx(loss, rel=1e-12)
  # Independent uniform tokens: nothing beats log V.
  assert whole["unigram"] == pytest.approx(math.log(50), abs=0.05)


def test_ids_of_large_vocabularies_do_not_overflow():
  v = 2**21 - 1
  tokens = np.array([v - 1, v - 2, v - 1, v - 2, v - 1], np.int32)
  loss = ngram.WittenBell(tokens, v).nats_per_token(tokens)
  assert loss["trigram"] < loss["bigram"] < loss["unigram"] < math.log(v)
  with pytest.raises(ValueError, match="2097152"):
    ngram.WittenBell(tokens, 2**21)
