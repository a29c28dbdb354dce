"""Documents to rows of fixed length, written as ArrayRecord.

The stream is `eos d_1 eos d_2 ... eos d_n eos`. Row i holds its tokens
[i L, i L + L], so neighbours share one token and each token after the first is
a target exactly once. The last row is filled with pad.
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from array_record.python import array_record_module

from . import layout
from .tokenizer import Tokenizer

_CHUNK = 1 << 20  # Tokens held before rows are cut.
ROWS_PER_FILE = 1 << 20


def pack(
  documents: Iterable[np.ndarray], seq_length: int, eos_id: int, pad_id: int
) -> Iterator[np.ndarray]:
  """Yields blocks of rows, int32 [n, seq_length + 1].

  Args:
    documents: Ids of each document, without eos.
    seq_length: L, targets a row.
    eos_id: Separator.
    pad_id: Filler of the last row.
  """
  eos = np.array([eos_id], np.int32)
  held, size = [eos], 1
  for ids in documents:
    held += [ids.astype(np.int32, copy=False), eos]
    size += len(ids) + 1
    if size > max(_CHUNK, seq_length):
      tokens = np.concatenate(held)
      rows = (size - 1) // seq_length
      yield _cut(tokens[: rows * seq_length + 1], seq_length)
      held = [tokens[rows * seq_length :]]  # Its first token was a target.
      size = len(held[0])
  if size > 1:
    fill = -(size - 1) % seq_length
    held.append(np.full(fill, pad_id, np.int32))
    yield _cut(np.concatenate(held), seq_length)


def _cut(tokens: np.ndarray, seq_length: int) -> np.ndarray:
  windows = np.lib.stride_tricks.sliding_window_view(tokens, seq_length + 1)
  return windows[::seq_length]


def unpack(rows: np.ndarray, pad_id: int) -> np.ndarray:
  """The token stream that consecutive rows were cut from."""
  tokens = np.concatenate([rows[:1, 0], rows[:, 1:].ravel()])
  return tokens[tokens != pad_id]


def storage_dtype(vocab_size: int) -> str:
  """Little-endian unsigned type that holds all ids."""
  return "<u2" if vocab_size <= 1 << 16 else "<u4"


class RowWriter:
  """Writes rows to `<split>-00000.array_record` and so on.

  One row a record and a group, which is what makes random reading cheap.
  """

  def __init__(self, folder: pathlib.Path, split: str, dtype: str):
    """Takes the folder and the stored type of an id."""
    self._folder, self._split, self._dtype = folder, split, dtype
    self._names: list[str] = []
    self._writer: Any = None
    self._hasher = hashlib.sha256()
    self.rows = 0

  def write(self, rows: np.ndarray) -> None:
    """Appends rows, [n, seq_length + 1]."""
    for row in rows.astype(self._dtype):
      if self.rows % ROWS_PER_FILE == 0:
        self._next_file()
      data = row.tobytes()
      self._hasher.update(data)
      self._writer.write(data)
      self.rows += 1

  def close(self) -> tuple[str, tuple[tuple[str, int, str], ...]]:
    """Finishes; returns the hash of the rows and [name, size, sha256]s."""
    if self._writer is not None:
      self._writer.close()
    return self._hasher.hexdigest()[:16], tuple(
      (name, (self._folder / name).stat().st_size, sha256(self._folder / name))
      for name in self._names
    )

  def _next_file(self) -> None:
    if self._writer is not None:
      self._writer.close()
    name = f"{self._split}-{len(self._names):05d}.array_record"
    self._names.append(name)
    self._writer = array_record_module.ArrayRecordWriter(
      str(self._folder / name), "group_size:1"
    )


def sha256(path: pathlib.Path) -> str:
  """Hash of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def write_split(
  folder: pathlib.Path,
  split: str,
  texts: Iterable[str],
  tokenizer: Tokenizer,
  *,
  seq_length: int,
  keep_tokens: int,
  progress: Callable[[int, int], None],
) -> tuple[layout.Split, np.ndarray]:
  """Writes the rows of a split; returns its description and its tokens.

  Args:
    folder: Where the files go.
    split: Its name.
    texts: The documents.
    tokenizer: Encodes them.
    seq_length: Targets a row.
    keep_tokens: The returned stream is cut after about so many tokens.
    progress: Called with the documents and bytes read so far.
  """
  documents = utf8_bytes = 0

  def counted() -> Iterator[str]:
    nonlocal documents, utf8_bytes
    for text in texts:
      documents += 1
      utf8_bytes += len(text.encode())
      progress(documents, utf8_bytes)
      yield text

  pad_id = tokenizer.pad_id
  ids = tokenizer.encode_all(counted())
  writer = RowWriter(folder, split, storage_dtype(tokenizer.vocab_size))
  kept, tokens = [], 0
  for rows in pack(ids, seq_length, tokenizer.eos_id, pad_id):
    writer.write(rows)
    if tokens < keep_tokens:
      kept.append(rows)
    tokens += int(np.count_nonzero(rows[:, 1:] != pad_id))
  rows_hash, files = writer.close()
  description = layout.Split(
    documents, utf8_bytes, tokens, writer.rows, rows_hash, files
  )
  stream = unpack(np.concatenate(kept), pad_id) if kept else np.empty(0)
  return description, stream
