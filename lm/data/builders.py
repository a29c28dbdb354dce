"""TFDS builder of document corpora, and reading any prepared text directory.

Documents are extracted once into ArrayRecord under `<root>/text`. The content
hash of the corpus is compared at each use, so a stale copy is never read.
TensorFlow is not needed.

Only the program that prepares imports this file: tensorflow_datasets takes a
second to import.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from ..config.errors import InputError
from ..config.names import CORPORA
from . import corpora, layout

SPLITS = ("train", "validation")
_BLOCK = 256  # Documents read at a time; one by one costs seven times more.


class Text(tfds.core.GeneratorBasedBuilder):
  """Documents with an id and a text, split by a hash of the id.

  `tfds.builder("text/sotu", data_dir=..., file_format="array_record")` builds
  a corpus by name; a corpus that has no name is given as `corpus`.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=name) for name in CORPORA if name != "c4"
  ]

  def __init__(self, *, corpus: corpora.Corpus | None = None, **kwargs):
    """Takes a corpus beside the arguments of every builder."""
    if corpus is not None and corpus.slug not in self.builder_configs:
      kwargs["config"] = tfds.core.BuilderConfig(name=corpus.slug)
    elif corpus is not None:
      kwargs["config"] = corpus.slug
    self._corpus = corpus
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    features = {"id": tfds.features.Text(), "text": tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self,
      description="Documents for language modelling.",
      features=tfds.features.FeaturesDict(features),
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager):
    corpus = self._corpus or corpora.find(
      self.builder_config.name, self._data_dir_root
    )
    documents = list(corpus.read())
    hasher = corpora.ContentHash()
    for document in documents:
      hasher.update(document)
    self.info.metadata["content_hash"] = hasher.hexdigest()
    generators = {}
    for split in SPLITS:
      held_out = split == "validation"
      kept = [d for d in documents if corpora.is_validation(d[0]) == held_out]
      if not kept:  # TFDS would fail later, without saying why.
        raise empty_split(corpus.spec, split)
      generators[split] = self._generate_examples(kept)
    return generators

  def _generate_examples(self, documents):
    for key, text in documents:
      yield key, {"id": key, "text": text}


@dataclasses.dataclass(frozen=True)
class Documents:
  """Texts of the two splits of a corpus."""

  folder: pathlib.Path  # Of the files.
  sources: dict[str, Any]  # Random-access TFDS source of each split.
  # Whether the splits are cut out of one source by the id.
  hashed: bool = False

  def texts(self, split: str) -> Iterator[str]:
    """Every text of the split, in stored order."""
    for index, example in self._examples(self.sources[split]):
      if self.hashed:
        key = example.get("id", index)
        key = key.decode() if isinstance(key, bytes) else str(key)
        if corpora.is_validation(key) != (split == "validation"):
          continue
      text = example["text"].decode()
      if text.strip():
        yield text

  def _examples(self, source) -> Iterator[tuple[int, dict]]:
    for start in range(0, len(source), _BLOCK):
      block = list(range(start, min(start + _BLOCK, len(source))))
      try:
        examples = source.__getitems__(block)
      except (RuntimeError, ValueError) as error:
        raise layout.damaged(self.folder, str(error)) from None
      yield from zip(block, examples, strict=True)


def open_documents(
  corpus: corpora.Corpus, content_hash: str, root: str | os.PathLike
) -> Documents:
  """The documents of a corpus, extracted into `<root>/text` if need be.

  Args:
    corpus: What to read.
    content_hash: `corpus.content_hash()`.
    root: `config.data.root`.

  Raises:
    InputError: If the documents are not those that the hash was taken of, a
      split is empty, or a prepared directory cannot be read.
  """
  if corpus.directory is not None:
    return _open_directory(corpus.spec, corpus.directory)
  builder = _builder(corpus, pathlib.Path(root))
  folder = pathlib.Path(str(builder.data_dir))
  stored = (builder.info.metadata or {}).get("content_hash")
  if folder.exists() and stored != content_hash:
    shutil.rmtree(folder)  # The corpus has changed; the copy is made anew.
    builder = _builder(corpus, pathlib.Path(root))
  tfds.disable_progress_bar()
  with (
    contextlib.redirect_stdout(io.StringIO()),  # TFDS prints its progress.
    tempfile.TemporaryDirectory() as downloads,  # None, but TFDS wants a place.
  ):
    builder.download_and_prepare(download_dir=downloads)
  found = (builder.info.metadata or {}).get("content_hash")
  if found != content_hash:
    shutil.rmtree(folder)
    raise InputError(
      f"Corpus {corpus.spec}: its documents have the content hash {found}, "
      f"expected {content_hash}. If its files changed just now, run this again."
    )
  return Documents(
    folder, {split: builder.as_data_source(split=split) for split in SPLITS}
  )


def _builder(corpus: corpora.Corpus, root: pathlib.Path) -> Text:
  return Text(corpus=corpus, data_dir=root, file_format="array_record")


def empty_split(name: str, split: str) -> InputError:
  """The error for a corpus without documents in one of its splits."""
  return InputError(
    f"Corpus {name} has no document in its {split} split (one in 20 is held "
    "out, by a hash of its id). Give it more documents: split long files, or "
    "write one a line in a .jsonl file."
  )


def _open_directory(name: str, directory: pathlib.Path) -> Documents:
  builder = tfds.builder_from_directory(directory)
  if "text" not in (builder.info.features or {}):
    raise InputError(
      f"Corpus {name}: {directory} has no feature `text`, only "
      f"{sorted(builder.info.features or {})}."
    )
  if not builder.info.splits.get("train"):
    raise InputError(f"Corpus {name}: {directory} has no split `train`.")
  try:
    train = builder.as_data_source(split="train")
    if "validation" not in builder.info.splits:
      sources = dict.fromkeys(SPLITS, train)
      return Documents(directory, sources, hashed=True)
    validation = builder.as_data_source(split="validation")
  except NotImplementedError as error:
    raise InputError(
      f"Corpus {name}: {directory} cannot be read at random ({error}). "
      "Prepare it with file_format=array_record, or convert it with "
      "tfds convert_format --out_file_format=array_record."
    ) from None
  return Documents(directory, {"train": train, "validation": validation})
