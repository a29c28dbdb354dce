"""Tokenizers: exact round trips, determinism, special ids."""

import io
import random

import hypothesis
import numpy as np
import pytest
import sentencepiece
from hypothesis import strategies as st

from lm.config.errors import InputError
from lm.data import layout, tokenizer

_TEXTS = [
  " ".join(
    random.Random(i).choices(["the", "cat", "sat", "on", "a", "mat,"], k=40)
  )
  + "\n    indented line\n"
  for i in range(50)
]
# Spellings of the pieces themselves, the character that stands for a space,
# and what normalisation would change.
_AWKWARD = ["</s>", "<pad>", "<0x0A>", "\u2581", "\n", "\r\n", "\0", "ﬁ", "é",
            "e\u0301", "\u2028", "  ", "\t", "😀", "\ufeff"]  # fmt: skip
_ANY_TEXT = st.one_of(
  st.text(),
  st.lists(st.sampled_from([*_AWKWARD, "the cat", " "])).map("".join),
)


@pytest.fixture(scope="module")
def bpe():
  return tokenizer.SentencePiece(tokenizer.train(_TEXTS, 290))


@pytest.fixture(scope="module")
def foreign():
  """A model with sentencepiece's defaults: a space in front, no pad."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(_TEXTS), model_writer=model, vocab_size=35,
    model_type="bpe", eos_id=-1, minloglevel=3,
  )  # fmt: skip
  return tokenizer.SentencePiece(model.getvalue())


@hypothesis.given(_ANY_TEXT)
@hypothesis.settings(
  max_examples=300, deadline=None, derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_bpe_round_trip_is_exact(bpe, text):
  ids = bpe.encode(text)
  assert bpe.decode(ids) == text
  assert not {bpe.eos_id, bpe.pad_id} & set(ids)


@hypothesis.given(_ANY_TEXT)
@hypothesis.settings(deadline=None, derandomize=True)
def test_bytes_round_trip_is_exact(text):
  coder = tokenizer.Bytes()
  ids = coder.encode(text)
  assert ids == list(text.encode())
  assert coder.decode(ids) == text


@hypothesis.given(st.lists(_ANY_TEXT, max_size=5))
@hypothesis.settings(
  deadline=None, derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_encoding_together_is_encoding_alone(bpe, texts):
  for coder in (bpe, tokenizer.Bytes()):
    together = [ids.tolist() for ids in coder.encode_all(texts)]
    assert together == [coder.encode(text) for text in texts]


def test_batches_of_text_keep_the_order(bpe, monkeypatch):
  monkeypatch.setattr(tokenizer, "_BATCH_BYTES", 1000)
  decoded = [bpe.decode(ids) for ids in bpe.encode_all(_TEXTS)]
  assert decoded == _TEXTS


def test_lines_are_encoded_as_in_the_whole_text(bpe):
  whole = bpe._model.encode(_TEXTS[0])
  assert bpe._by_line
  assert bpe.encode(_TEXTS[0]) == whole


def test_training_is_deterministic():
  assert tokenizer.train(_TEXTS, 290) == tokenizer.train(iter(_TEXTS), 290)


def test_long_lines_are_learned_from():
  # Sentencepiece leaves out lines above 4192 bytes unless told otherwise.
  model = tokenizer.train(["zebra " * 2000], 270)
  assert len(tokenizer.SentencePiece(model).encode("zebra")) == 1


@pytest.mark.parametrize("name", ["bpe", "bytes", "foreign"])
def test_special_ids_are_distinct_and_decode_to_nothing(name, request):
  coder = (
    tokenizer.Bytes() if name == "bytes" else request.getfixturevalue(name)
  )
  assert coder.eos_id != coder.pad_id
  assert max(coder.eos_id, coder.pad_id) < coder.vocab_size
  ids = [coder.eos_id, *coder.encode("the cat"), coder.eos_id, coder.pad_id]
  assert coder.decode(np.array(ids)) == "the cat"


def test_foreign_model_is_used_as_it_is(foreign):
  assert (foreign.eos_id, foreign.pad_id, foreign.vocab_size) == (35, 36, 37)
  assert not foreign._by_line
  assert foreign.encode("the cat") == foreign._model.encode("the cat")


def test_broken_utf8_decodes_to_replacement_characters(bpe):
  first = bpe.encode("😀")[:2]
  assert set(bpe.decode(first)) == {"\ufffd"}
  assert tokenizer.Bytes().decode([0xF0, 0x9F]) == "\ufffd"


def test_lone_surrogate_is_refused(bpe):
  for coder in (bpe, tokenizer.Bytes()):
    with pytest.raises(UnicodeEncodeError):
      coder.encode("\ud800")


def test_vocabulary_too_large_for_the_text_names_the_limit():
  with pytest.raises(InputError, match="vocab_size=4096.*<= 2"):
    tokenizer.train(["too little text"], 4096)


def test_load_by_file_and_by_mixture(tmp_path, make_section, bpe):
  model = tokenizer.train(_TEXTS, 290)
  file = tmp_path / "my.model"
  file.write_bytes(model)
  by_file = make_section(tmp_path, "sotu", tokenizer=f"sp:{file}")
  assert tokenizer.load(by_file).hash == bpe.hash
  by_mixture = make_section(tmp_path, "sotu", tokenizer="bpe")
  with pytest.raises(InputError, match=r"not trained.*lm\.data\.prepare"):
    tokenizer.load(by_mixture)
  folder = layout.tokenizer_dir(by_mixture)
  tokenizer.write(folder, model, {"sotu": "0123"})
  assert tokenizer.load(by_mixture).hash == bpe.hash
  (folder / tokenizer.MODEL).write_bytes(tokenizer.train(_TEXTS, 291))
  with pytest.raises(InputError, match="changed since it was trained"):
    tokenizer.load(by_mixture)


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_missing_or_wrong_file(tmp_path, make_section, content):
  file = tmp_path / "my.model"
  if content is not None:
    file.write_bytes(content)
  with pytest.raises(InputError, match="no file|not a sentencepiece model"):
    tokenizer.load(make_section(tmp_path, "sotu", tokenizer=f"sp:{file}"))


def test_names_of_tokenizers(tmp_path, make_section):
  def name(**changes):
    return layout.tokenizer_name(make_section(tmp_path, "sotu", **changes))

  assert name() == "bytes"
  assert name(tokenizer="bpe", vocab_size=512) == "bpe512-sotu"
  both = (("sotu", 1.0), ("wiki", 2.0))
  mixed = name(tokenizer="bpe", mixture=both)
  assert mixed == name(tokenizer="bpe", mixture=both[::-1])
  assert mixed != name(tokenizer="bpe", mixture=(("sotu", 1.0), ("c4", 1.0)))
  with pytest.raises(InputError, match="sp:FILE"):
    name(tokenizer="wordpiece")
