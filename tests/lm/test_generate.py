"""Decoding with the cache is decoding by definition, and draws are fair."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import generate as lib
from lm.config import load
from lm.eval import sampler
from lm.model import mesh as meshes
from lm.model import params as param_table
from lm.model.transformer import Transformer
from lm.objectives import decoding
from ml_collections_configs import base

_EOS, _PAD, _REAL_V = 68, 69, 70


def _model(**changes):
  default = load.from_config_dict(base.get_config()).model
  small: dict[str, Any] = dict(D=32, N=2, H=2, G=1, F=64, V=128, real_V=_REAL_V)
  small |= dict(L=32, eos_id=_EOS, pad_id=_PAD, layers="unroll")
  small |= dict(compute_dtype="float32") | changes
  cfg = dataclasses.replace(default, **small)
  return Transformer(cfg), param_table.init_params(cfg, jax.random.key(3))


@pytest.fixture(scope="module")
def small():
  """A model of random weights, and its parameters."""
  return _model(N=1)


def _greedy_by_definition(forward, prompt, num_tokens):
  """The most likely token after a forward pass over everything, repeated."""
  tokens_1L = np.full((1, 16), _PAD, np.int32)
  tokens_1L[0, : len(prompt)] = prompt
  for i in range(len(prompt), len(prompt) + num_tokens):
    if tokens_1L[0, i - 1] == _EOS and i > len(prompt):
      break
    logits_V = np.array(forward(tokens_1L)[0, i - 1])
    logits_V[_PAD] = -np.inf
    tokens_1L[0, i] = np.argmax(logits_V)
  return tokens_1L[0, len(prompt) : len(prompt) + num_tokens]


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"layers": "scan", "positions": "learned"},
    {"positions": "alibi", "isolate_documents": False},
  ],
)
def test_greedy_decoding_is_the_argmax_of_full_forward_passes(changes):
  model, params = _model(**changes)
  prompts = [[_EOS, 5, 6, 7, 8, 9], [_EOS], [_EOS, 1, 2, _EOS, 3, 4, 11, 12]]
  key = jax.random.key(0)
  new_BS = decoding.generate(
    model, params, prompts, 8, key, decoding.Sampling(0)
  )
  assert new_BS.shape == (3, 8)
  forward = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
  for prompt, new_S in zip(prompts, new_BS, strict=True):
    expected_S = _greedy_by_definition(forward, prompt, 8)
    np.testing.assert_array_equal(new_S, expected_S)


def test_after_the_end_of_a_document_comes_padding(small):
  # Random weights end a document at about every 70th token.
  new_BS = decoding.generate(*small, [[_EOS]] * 32, 60, jax.random.key(1))
  ended = 0
  for new_S in new_BS:
    ends = np.flatnonzero(new_S == _EOS)
    end = ends[0] if ends.size else len(new_S)
    ended += bool(ends.size)
    assert (new_S[:end] < _REAL_V).all()
    assert (new_S[:end] != _PAD).all()
    assert (new_S[end + 1 :] == _PAD).all()
  assert 8 < ended < 32


def test_a_key_gives_the_same_text_whatever_the_other_rows_are(small):
  prompts = [[_EOS, 1], [_EOS, 2]]
  key = jax.random.key(5)
  both_BS = decoding.generate(*small, prompts, 8, key)
  np.testing.assert_array_equal(
    both_BS, decoding.generate(*small, prompts, 8, key)
  )
  alone_BS = decoding.generate(*small, prompts[:1], 8, key)
  np.testing.assert_array_equal(both_BS[:1], alone_BS)
  other_BS = decoding.generate(*small, prompts, 8, jax.random.key(6))
  assert (both_BS != other_BS).any(axis=1).all()
  twins_BS = decoding.generate(*small, prompts[:1] * 2, 8, key)
  assert (twins_BS[0] != twins_BS[1]).any()


def test_the_smallest_nucleus_is_greedy(small):
  prompts, key = [[_EOS, 1], [_EOS, 2]], jax.random.key(0)
  greedy_BS = decoding.generate(*small, prompts, 8, key, decoding.Sampling(0))
  new_BS = decoding.generate(
    *small, prompts, 8, key, decoding.Sampling(2.0, 3, 1e-6)
  )
  np.testing.assert_array_equal(new_BS, greedy_BS)


def test_devices_of_a_mesh_give_the_tokens_of_one(small):
  model, params = small
  prompts, key = [[_EOS, 1], [_EOS, 2]], jax.random.key(0)
  expected_BS = decoding.generate(model, params, prompts, 8, key)
  mesh = meshes.make_mesh((2, 1, 1), jax.devices()[:2])
  with jax.set_mesh(mesh):
    np.testing.assert_array_equal(
      decoding.generate(model, params, prompts, 8, key), expected_BS
    )


# Of hundredths: neighbouring float32 would be ties after the softmax.
_LOGITS = st.lists(
  st.integers(-800, 800), min_size=8, max_size=8, unique=True
).map(lambda numbers: [x / 100 for x in numbers])


@given(_LOGITS, st.floats(0.01, 0.99), st.integers(1, 9))
@settings(deadline=None, max_examples=50)  # The first compiles.
def test_restrictions_keep_what_the_definitions_say(logits, top_p, top_k):
  logits_V = np.array(logits, np.float32)
  order = np.argsort(-logits_V)

  def kept(**settings):
    logits_BV = decoding.restrict(logits_V[None], decoding.Sampling(**settings))
    return set(np.flatnonzero(np.isfinite(logits_BV[0])).tolist())

  assert kept(top_k=top_k) == set(order[:top_k].tolist())
  probs_V = np.exp(logits_V.astype(np.float64) - logits_V.max())
  probs_V /= probs_V.sum()
  nucleus = kept(top_p=top_p)
  assert nucleus == set(order[: len(nucleus)].tolist())  # The likeliest ...
  mass = sum(probs_V[i] for i in nucleus)
  assert mass >= top_p - 1e-5  # ... of enough mass,
  assert mass - probs_V[order[len(nucleus) - 1]] < top_p + 1e-5  # ... fewest.


def test_top_p_counts_the_mass_within_top_k():
  # Of 0.4 0.3 0.2 0.1 two are left, 4/7 and 3/7: the first has half of it.
  logits_BV = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
  both = decoding.restrict(logits_BV, decoding.Sampling(top_k=2, top_p=0.5))
  assert np.isfinite(both).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_have_the_probabilities_of_the_softmax(temperature):
  n = 40_000
  logits_V = np.array([0.0, 1.0, -1.0, 0.5, -np.inf])
  keys_B = jax.random.split(jax.random.key(0), n)
  logits_BV = jnp.broadcast_to(jnp.float32(logits_V), (n, 5))
  drawn_B = decoding.sample(logits_BV, keys_B, decoding.Sampling(temperature))
  share_V = np.bincount(drawn_B, minlength=5) / n
  probs_V = np.exp(logits_V / temperature)
  probs_V /= probs_V.sum()
  stderr_V = np.sqrt(probs_V * (1 - probs_V) / n)
  np.testing.assert_array_less(
    np.abs(share_V - probs_V), 4.5 * stderr_V + 1e-12
  )


def test_texts_begin_with_their_prompts():
  model, params = _model(V=384, real_V=258, eos_id=256, pad_id=257)
  data = base.get_config().data
  data.tokenizer = "bytes"
  train = types.SimpleNamespace(objective="next_token", objective_kwargs=())
  config = types.SimpleNamespace(data=data, train=train, seed=0)
  parts = types.SimpleNamespace(model=model, config=config)
  texts = sampler.sample_texts(
    parts,
    params,
    prompts=["", "Grüße"],
    num_tokens=5,
    key=jax.random.key(0),
  )
  assert len(texts) == 2
  assert texts[0]
  assert texts[1].startswith("Grüße")
  assert len(texts[1]) > len("Grüße")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"prompts": [[1], []]}, "prompt needs a token.*eos_id"),
    ({"num_tokens": 0}, "num_tokens=0"),
    ({"temperature": -1.0}, "temperature=-1.0"),
    ({"top_k": -1}, "top_k=-1"),
    ({"top_p": 0.0}, "top_p=0.0"),
  ],
)
def test_settings_out_of_range(small, changes, message):
  found = {"prompts": [[1]], "num_tokens": 4} | changes
  prompts, num_tokens = found.pop("prompts"), found.pop("num_tokens")
  sampling = decoding.Sampling(**found)
  with pytest.raises(ValueError, match=message):
    decoding.generate(*small, prompts, num_tokens, jax.random.key(0), sampling)


def test_learned_positions_end_somewhere():
  model, params = _model(positions="learned")
  with pytest.raises(ValueError, match="33 together.*for 32"):
    decoding.generate(model, params, [[_EOS]], 32, jax.random.key(0))


def test_the_program_wants_a_run(tmp_path, capsys):
  assert lib.main([f"--workdir={tmp_path}"]) == 2
  assert "holds no run" in capsys.readouterr().err
