"""Text to ids and back, exactly.

`bpe` is sentencepiece BPE with identity normalisation and byte fallback:
`decode(encode(text)) == text` for every string. `bytes` is UTF-8. `sp:FILE` is
an existing sentencepiece model, which decides itself what it keeps.
"""

import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sentencepiece

from ..config.errors import InputError
from . import layout

MODEL = "tokenizer.model"
# Sentencepiece writes a space as this character, so the character itself has
# to be written as its three bytes.
_SPACE = "\u2581"
_NUM_THREADS = 2  # Fixed: it is stored in the model file, which is hashed.
_BATCH_BYTES = 4_000_000  # Text encoded in one call of `encode_all`.

SETTINGS = {
  "model_type": "bpe",
  "normalization_rule_name": "identity",
  "add_dummy_prefix": False,
  "remove_extra_whitespaces": False,
  "allow_whitespace_only_pieces": True,
  "byte_fallback": True,
  "character_coverage": 0.9999,  # Rarer characters become their bytes.
  "max_sentence_length": 1 << 24,  # Bytes; longer lines are left out.
  "num_threads": _NUM_THREADS,
  "pad_id": 0,
  "eos_id": 1,
  "unk_id": 2,
  "bos_id": -1,
}


class Bytes:
  """UTF-8 bytes, then eos and pad.

  Attributes:
    vocab_size: Number of ids.
    eos_id: Separates documents.
    pad_id: Fills rows; never a target.
    hash: Identifies the mapping.
  """

  vocab_size = 258
  eos_id = 256
  pad_id = 257
  hash = "bytes"

  def encode(self, text: str) -> list[int]:
    """The bytes of `text`."""
    return list(text.encode())

  def encode_all(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """The ids of each text, int32."""
    for text in texts:
      yield np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  def decode(self, ids: Sequence[int]) -> str:
    """The text; invalid UTF-8 becomes U+FFFD, eos and pad nothing."""
    return bytes(int(i) for i in ids if i < 256).decode(errors="replace")


class SentencePiece:
  """A sentencepiece model; attributes as in `Bytes`.

  Models without an eos or pad piece get ids after their own.
  """

  def __init__(self, model: bytes):
    """Takes the bytes of a .model file."""
    self._model = sentencepiece.SentencePieceProcessor()
    try:
      self._model.LoadFromSerializedProto(model)
      self._size = self._model.vocab_size()
    except RuntimeError as error:
      raise InputError(
        f"The tokenizer file is not a sentencepiece model ({error})."
      ) from None
    missing = iter((self._size, self._size + 1))
    self.eos_id, self.pad_id = (
      id_ if id_ >= 0 else next(missing)
      for id_ in (self._model.eos_id(), self._model.pad_id())
    )
    self.vocab_size = max(self._size, self.eos_id + 1, self.pad_id + 1)
    self.hash = hashlib.sha256(model).hexdigest()[:16]
    self._newline = self._byte_ids("\n")
    self._space = self._byte_ids(_SPACE)
    self._by_line = self._lines_are_separate()

  def encode(self, text: str) -> list[int]:
    """Ids of the text, without eos."""
    return next(self.encode_all([text])).tolist()

  def encode_all(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """The ids of each text, int32; faster than `encode` on each."""
    batch, size = [], 0
    for text in texts:
      batch.append(text)
      size += len(text)
      if size > _BATCH_BYTES:
        yield from self._encode_batch(batch)
        batch, size = [], 0
    yield from self._encode_batch(batch)

  def decode(self, ids: Sequence[int]) -> str:
    """The text; eos and pad are nothing, broken UTF-8 is U+FFFD."""
    return self._model.decode([int(i) for i in ids if i < self._size])

  def _encode_batch(self, texts: list[str]) -> Iterator[np.ndarray]:
    """Encodes all lines of all texts in one parallel call."""
    lines = [t.split("\n") if self._by_line else [t] for t in texts]
    flat = [line for text in lines for line in text]
    for line in flat:
      line.encode()  # Raises on a lone surrogate, which has no UTF-8 form.
    encoded = iter(self._model.encode(flat, num_threads=_NUM_THREADS))
    for text in lines:
      ids: list[int] = []
      for number, line in enumerate(text):
        ids += self._newline if number else []
        line_ids = next(encoded)
        ids += self._encode_spaces(line) if _SPACE in line else line_ids
      yield np.array(ids, np.int32)

  def _encode_spaces(self, line: str) -> list[int]:
    if not self._space:
      return self._model.encode(line)
    ids: list[int] = []
    for number, part in enumerate(line.split(_SPACE)):
      ids += self._space if number else []
      ids += self._model.encode(part)
    return ids

  def _byte_ids(self, text: str) -> list[int]:
    """Ids of the byte pieces of `text`; empty without byte fallback."""
    pieces = [f"<0x{byte:02X}>" for byte in text.encode()]
    ids = [self._model.piece_to_id(piece) for piece in pieces]
    return [] if self._model.unk_id() in ids else ids

  def _lines_are_separate(self) -> bool:
    """Whether joining the ids of lines gives the ids of the text.

    False for models that put a space before each text or change newlines. Such
    models encode whole texts, which is slower for long texts.
    """
    if not self._newline:
      return False
    first, second = "  Two lines, ", " of\ttext "
    joined = [
      *self._model.encode(first),
      *self._newline,
      *self._model.encode(second),
    ]
    return self._model.encode(f"{first}\n{second}") == joined


Tokenizer = Bytes | SentencePiece


def train(texts: Iterable[str], vocab_size: int) -> bytes:
  """Trains BPE on texts; returns the bytes of the model file.

  The same texts give the same bytes.

  Args:
    texts: Training documents.
    vocab_size: Number of pieces, of which 259 are bytes and special ids.

  Raises:
    InputError: If the texts have too few distinct words for that many pieces.
  """
  lines = (line for text in texts for line in text.split("\n") if line)
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=lines,
      model_writer=model,
      vocab_size=vocab_size,
      minloglevel=3,
      **SETTINGS,
    )
  except RuntimeError as error:
    reason = str(error).strip().splitlines()[-1].rpartition("] ")[2]
    raise InputError(
      f"config.data.vocab_size={vocab_size} does not suit the training text: "
      f"sentencepiece says {reason!r}. Change it, add text, or use "
      "--config.data.tokenizer=bytes."
    ) from None
  return model.getvalue()


def load(data_cfg) -> Tokenizer:
  """The tokenizer that `config.data` asks for.

  Raises:
    InputError: If it was not prepared, or the file is missing or changed.
  """
  name = layout.tokenizer_name(data_cfg)
  if data_cfg.tokenizer == "bytes":
    return Bytes()
  if data_cfg.tokenizer.startswith("sp:"):
    return SentencePiece(layout.read_model(data_cfg.tokenizer))
  folder = layout.tokenizer_dir(data_cfg)
  if not (folder / layout.META).is_file():
    raise InputError(
      f"The tokenizer {name} is not trained: there is no {folder}. "
      f"{layout.how_to_prepare(data_cfg, 'the corpora')}"
    )
  meta = read_meta(folder)
  try:
    tokenizer = SentencePiece((folder / MODEL).read_bytes())
  except (OSError, InputError) as error:
    raise layout.damaged(folder, str(error)) from None
  if tokenizer.hash != meta["hash"]:
    raise layout.damaged(folder, f"{MODEL} changed since it was trained")
  return tokenizer


def write(folder: pathlib.Path, model: bytes, corpora: dict[str, str]) -> None:
  """Writes a trained model and its description, all or nothing.

  Args:
    folder: `layout.tokenizer_dir(data_cfg)`.
    model: Bytes of the .model file.
    corpora: Content hash of each corpus it was trained on.
  """
  trained = SentencePiece(model)
  meta = {"hash": trained.hash, "vocab_size": trained.vocab_size}
  with layout.atomic_dir(folder) as temporary:
    (temporary / MODEL).write_bytes(model)
    meta |= {"corpora": corpora, "settings": SETTINGS}
    layout.write_json(temporary / layout.META, meta)


def read_meta(folder: pathlib.Path) -> dict:
  """What `write` wrote: hash, vocab_size, corpora and settings."""
  try:
    meta = json.loads((folder / layout.META).read_text())
    return {key: meta[key] for key in ("hash", "vocab_size", "corpora")}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise layout.damaged(folder, f"{layout.META}: {error}") from None
