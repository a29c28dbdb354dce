"""Where prepared data lies, and how a configuration finds it.

    <root>/wheels/                       downloaded wheels
    <root>/text/<corpus>/1.0.0/          documents (TFDS, ArrayRecord)
    <root>/<tokenizer>/tokenizer/        tokenizer.model, meta.json
    <root>/<tokenizer>/<corpus>-L256/    train-*.array_record,
                                         validation-*.array_record, meta.json

The names are functions of `config.data` alone, so every process of a run finds
the same folder without an index that could be out of date. The meta.json of a
folder describes what the folder holds, with hashes. `<tokenizer>` is `bytes`,
`bpe4096-sotu` (trained on the mixture's training splits; a mixture of several
corpora is named by a hash of their names) or `sp-<file name>-<hash>`.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import shlex
import shutil
import uuid
from collections.abc import Iterator
from typing import Any

from ..config.errors import InputError
from . import corpora

_TEMPORARY = ".tmp-"
META = "meta.json"


@dataclasses.dataclass(frozen=True)
class Split:
  """What a prepared split holds."""

  documents: int  # Number of documents.
  utf8_bytes: int  # Size of their text.
  tokens: int  # Number of targets: every token, and one eos a document.
  rows: int  # Number of records, each of seq_length + 1 tokens.
  rows_hash: str  # sha256 of the rows' bytes, first 16 digits.
  # [name, size in bytes, sha256] of each file, in order.
  files: tuple[tuple[str, int, str], ...]


@dataclasses.dataclass(frozen=True)
class Meta:
  """Contents of the meta.json of a prepared corpus.

  Attributes:
    corpus: Name in the configuration.
    content_hash: Of the documents (`corpora.Corpus.content_hash`).
    tokenizer_hash: Of the tokenizer (`tokenizer.Tokenizer.hash`).
    vocab_size: Number of ids, special ones included.
    eos_id: Before each document and after the last.
    pad_id: Fills the last row.
    seq_length: Targets a row.
    dtype: Of the stored ids, little-endian: "<u2" or "<u4".
    splits: By name.
    floors: Loss of n-gram models on the validation split in nats per token,
      "unigram", "bigram", "trigram"; and the last one's "bits_per_byte".
  """

  corpus: str
  content_hash: str
  tokenizer_hash: str
  vocab_size: int
  eos_id: int
  pad_id: int
  seq_length: int
  dtype: str
  splits: dict[str, Split]
  floors: dict[str, float]

  def bits_per_byte(self, nats_per_token: float, split: str) -> float:
    """nats/token * tokens / bytes / ln 2: comparable between tokenizers."""
    counts = self.splits[split]
    return nats_per_token * counts.tokens / counts.utf8_bytes / math.log(2)


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A prepared corpus: its folder and what is in it."""

  path: pathlib.Path
  meta: Meta

  def files(self, split: str) -> list[pathlib.Path]:
    """Paths of a split's files, in order."""
    return [self.path / name for name, _, _ in self.meta.splits[split].files]


def tokenizer_name(data_cfg) -> str:
  """Folder name of the tokenizer that `config.data` asks for."""
  kind, _, path = data_cfg.tokenizer.partition(":")
  if data_cfg.tokenizer == "bytes":
    return "bytes"
  if data_cfg.tokenizer == "bpe":
    names = sorted(corpora.slug(spec) for spec, _ in data_cfg.mixture)
    digest = hashlib.sha256(" ".join(names).encode()).hexdigest()[:6]
    source = names[0] if len(names) == 1 else f"mix-{digest}"
    return f"bpe{data_cfg.vocab_size}-{source}"
  if kind == "sp" and path:
    data = read_model(data_cfg.tokenizer)
    digest = hashlib.sha256(data).hexdigest()[:8]
    return f"sp-{pathlib.PurePath(path).stem}-{digest}"
  raise InputError(
    f"config.data.tokenizer={data_cfg.tokenizer!r} is none of: bpe (trained "
    "here), bytes, sp:FILE (a sentencepiece model)."
  )


def read_model(tokenizer: str) -> bytes:
  """Bytes of the model that `sp:FILE` names."""
  path = pathlib.Path(tokenizer.partition(":")[2]).expanduser()
  if not path.is_file():
    raise InputError(
      f"config.data.tokenizer={tokenizer!r}: there is no file {path}."
    )
  return path.read_bytes()


def tokenizer_dir(data_cfg) -> pathlib.Path:
  """Folder of the trained tokenizer's files."""
  return pathlib.Path(data_cfg.root) / tokenizer_name(data_cfg) / "tokenizer"


def corpus_dir(data_cfg, spec: str) -> pathlib.Path:
  """Folder of a corpus's rows."""
  name = f"{corpora.slug(spec)}-L{data_cfg.seq_length}"
  return pathlib.Path(data_cfg.root) / tokenizer_name(data_cfg) / name


def find(data_cfg, spec: str) -> Prepared:
  """The prepared rows of a corpus.

  Args:
    data_cfg: The section `config.data`.
    spec: A corpus of the mixture or of `config.eval.sets`.

  Raises:
    InputError: If it is not prepared; the message says how to prepare it.
  """
  path = corpus_dir(data_cfg, spec)
  if not (path / META).is_file():
    others = sorted(
      p.name.rpartition("-L")[2]
      for p in path.parent.glob(f"{corpora.slug(spec)}-L*")
    )
    lengths = f" (lengths prepared: {', '.join(others)})" if others else ""
    raise InputError(
      f"Corpus {spec} is not prepared for the tokenizer "
      f"{path.parent.name} at seq_length {data_cfg.seq_length}: there is no "
      f"{path}{lengths}. {how_to_prepare(data_cfg, spec)}"
    )
  return Prepared(path, read_meta(path))


def how_to_prepare(data_cfg, spec: str) -> str:
  """The command that prepares a corpus, as a sentence."""
  settings = {
    "data.root": data_cfg.root,
    "data.tokenizer": data_cfg.tokenizer,
    "data.vocab_size": data_cfg.vocab_size,
    "data.seq_length": data_cfg.seq_length,
    "data.mixture": tuple(tuple(pair) for pair in data_cfg.mixture),
    "eval.sets": (spec,),
  }
  flags = (f"--config.{key}={value}" for key, value in settings.items())
  return (
    "Prepare it: python -m lm.data.prepare "
    f"--config=ml_collections_configs/base.py {shlex.join(flags)}"
  )


def check_files(prepared: Prepared, split: str) -> None:
  """Raises InputError unless the split's files have their sizes."""
  for name, size, _ in prepared.meta.splits[split].files:
    path = prepared.path / name
    if not path.is_file():
      raise damaged(prepared.path, f"{name} is missing")
    found = path.stat().st_size
    if found != size:
      reason = f"{name} has {found} bytes instead of {size}"
      raise damaged(prepared.path, reason)


def read_meta(path: pathlib.Path) -> Meta:
  """The description in a prepared folder."""
  try:
    fields = json.loads((path / META).read_text())
    splits = fields.pop("splits")
    for split in splits.values():
      split["files"] = tuple(tuple(file) for file in split["files"])
    splits = {name: Split(**split) for name, split in splits.items()}
    return Meta(**fields, splits=splits)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise damaged(path, f"its {META} cannot be read ({error})") from None


def damaged(path: pathlib.Path, reason: str) -> InputError:
  """The error for prepared data that is not what was written."""
  return InputError(
    f"{path} is damaged: {reason}. Delete the folder and prepare it again."
  )


@contextlib.contextmanager
def atomic_dir(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary folder that becomes `path` if the block succeeds.

  Files and folders reach the disk before the rename, so a crash leaves either
  everything or nothing under the final name.
  """
  temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex[:8]}")
  temporary.mkdir(parents=True)
  try:
    yield temporary
    for file in temporary.iterdir():
      _sync(file)
    _sync(temporary)
    temporary.rename(path)
    _sync(path.parent)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(root: pathlib.Path) -> None:
  """Deletes the temporary folders of killed programs; needs the root's lock."""
  for pattern in (f"*/{_TEMPORARY}*", "text/*/incomplete.*"):
    for path in root.glob(pattern):
      shutil.rmtree(path, ignore_errors=True)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file for people to read."""
  path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _sync(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
