"""Rows: every token a target once, and the files give them back."""

import hashlib

import hypothesis
import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import strategies as st

from lm.data import packing
from lm.data import tokenizer as tokenizers

_EOS, _PAD = 256, 257
_DOCUMENT = st.lists(st.integers(0, 255), max_size=30)
_DOCUMENTS = st.lists(
  _DOCUMENT.map(lambda ids: np.array(ids, np.int32)), min_size=1, max_size=12
)


@hypothesis.given(_DOCUMENTS, st.integers(1, 20), st.integers(1, 40))
@hypothesis.settings(
  deadline=None, derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_every_token_is_a_target_once(monkeypatch, documents, length, chunk):
  monkeypatch.setattr(packing, "_CHUNK", chunk)
  stream = [_EOS]
  for ids in documents:
    stream += [*ids.tolist(), _EOS]
  rows = np.concatenate(list(packing.pack(documents, length, _EOS, _PAD)))
  assert rows.shape == (-(-(len(stream) - 1) // length), length + 1)
  targets = rows[:, 1:].ravel()
  assert targets[: len(stream) - 1].tolist() == stream[1:]
  assert (targets[len(stream) - 1 :] == _PAD).all()
  assert (rows[1:, 0] == rows[:-1, -1]).all()
  assert packing.unpack(rows, _PAD).tolist() == stream


def test_no_documents_make_no_rows():
  assert list(packing.pack([], 4, _EOS, _PAD)) == []


def test_storage_type_holds_the_largest_id():
  for vocab_size in (258, 1 << 16, (1 << 16) + 1):
    dtype = np.dtype(packing.storage_dtype(vocab_size))
    assert np.array([vocab_size - 1]).astype(dtype)[0] == vocab_size - 1
    assert dtype.itemsize == (2 if vocab_size <= 1 << 16 else 4)


def test_split_is_described_and_written_in_several_files(tmp_path, monkeypatch):
  monkeypatch.setattr(packing, "ROWS_PER_FILE", 5)
  texts = ["one two three four", "fünf", "six seven eight nine ten"]
  seen = []
  split, stream = packing.write_split(
    tmp_path, "train", texts, tokenizers.Bytes(), seq_length=4,
    keep_tokens=10**6, progress=lambda *counts: seen.append(counts),
  )  # fmt: skip
  size = sum(len(text.encode()) for text in texts)
  assert (split.documents, split.utf8_bytes) == (3, size)
  assert split.tokens == size + 3 == len(stream) - 1
  assert split.rows == -(-split.tokens // 4)
  assert seen[-1] == (3, size)
  names = [f"train-{i:05d}.array_record" for i in range(3)]
  assert [name for name, _, _ in split.files] == names
  records = []
  for name, file_size, digest in split.files:
    data = (tmp_path / name).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (file_size, digest)
    reader = array_record_module.ArrayRecordReader(str(tmp_path / name))
    assert "group_size:1," in reader.writer_options_string()
    records += reader.read_all()
    reader.close()
  assert hashlib.sha256(b"".join(records)).hexdigest()[:16] == split.rows_hash
  rows = np.frombuffer(b"".join(records), "<u2").reshape(split.rows, 5)
  text = tokenizers.Bytes().decode(packing.unpack(rows, _PAD))
  assert text == "".join(texts)


def test_kept_stream_is_cut(tmp_path, monkeypatch):
  monkeypatch.setattr(packing, "_CHUNK", 16)
  split, stream = packing.write_split(
    tmp_path, "train", ["abcdefgh" * 4] * 20, tokenizers.Bytes(), seq_length=4,
    keep_tokens=100, progress=lambda *_: None,
  )  # fmt: skip
  assert split.tokens == 660
  assert 100 <= len(stream) < 200
  with pytest.raises(ValueError, match="0 is not in range|not in list"):
    stream.tolist().index(_PAD)
