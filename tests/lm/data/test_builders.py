"""TFDS directories: written once, checked by content, and read from others."""

import pathlib

import pytest
import tensorflow_datasets as tfds

from lm.config.errors import InputError
from lm.config.names import CORPORA
from lm.data import builders, corpora


class _C4(tfds.core.GeneratorBasedBuilder):
  """Writes a small directory in the format of c4/en."""

  name = "c4"
  VERSION = tfds.core.Version("3.1.0")
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="en")]
  splits = {"train": range(40), "validation": range(40, 45)}

  def _info(self):
    names = ("text", "timestamp", "url", "content-length", "content-type")
    features = {name: tfds.features.Text() for name in names}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {s: self._generate_examples(r) for s, r in self.splits.items()}

  def _generate_examples(self, numbers):
    for number in numbers:
      example = dict.fromkeys(self.info.features, "")
      yield number, example | {"text": f"Page {number} of the web, ünïcode."}


class _OnlyTrain(_C4):
  """The same without a validation split."""

  name = "only_train"
  splits = {"train": range(40)}


def _write(cls, folder: pathlib.Path) -> pathlib.Path:
  builder = cls(data_dir=folder, file_format="array_record")
  builder.download_and_prepare(download_dir=folder / "downloads")
  return pathlib.Path(str(builder.data_dir))


def _texts(documents: builders.Documents) -> dict[str, list[str]]:
  return {split: list(documents.texts(split)) for split in builders.SPLITS}


def test_documents_are_all_there_and_split_by_id(tmp_path, folder_spec):
  corpus = corpora.find(folder_spec, tmp_path)
  documents = builders.open_documents(corpus, corpus.content_hash(), tmp_path)
  texts = _texts(documents)
  for split, held_out in (("train", False), ("validation", True)):
    expected = [
      t for k, t in corpus.read() if corpora.is_validation(k) is held_out
    ]
    assert sorted(texts[split]) == sorted(expected)
  assert texts["validation"]


def test_second_opening_reads_the_copy(tmp_path, make_folder, monkeypatch):
  corpus = corpora.find(make_folder(tmp_path / "words", 60), tmp_path)
  content_hash = corpus.content_hash()
  first = _texts(builders.open_documents(corpus, content_hash, tmp_path))
  with monkeypatch.context() as patch:
    patch.setattr(
      corpora.Corpus, "read", lambda self: pytest.fail("read again")
    )
    second = _texts(builders.open_documents(corpus, content_hash, tmp_path))
  assert first == second
  (tmp_path / "words" / "999.txt").write_text("A new one.")
  third = builders.open_documents(corpus, corpus.content_hash(), tmp_path)
  assert "A new one." in sum(_texts(third).values(), [])


def test_wrong_content_hash_leaves_nothing(tmp_path, folder_spec):
  corpus = corpora.find(folder_spec, tmp_path)
  with pytest.raises(InputError, match="content hash .* expected 123"):
    builders.open_documents(corpus, "123", tmp_path)
  assert not list(tmp_path.rglob("*.array_record*"))


def test_one_document_cannot_be_split(tmp_path, make_folder):
  corpus = corpora.find(make_folder(tmp_path / "words", 1), tmp_path)
  with pytest.raises(InputError, match="no document in its validation split"):
    builders.open_documents(corpus, corpus.content_hash(), tmp_path)
  assert not list(tmp_path.rglob("*.array_record*"))


def test_named_corpus_is_a_tfds_config(tmp_path):
  builder = tfds.builder(
    "text/sotu", data_dir=tmp_path, file_format="array_record"
  )
  assert set(builder.builder_configs) == set(CORPORA) - {"c4"}
  builder.download_and_prepare(download_dir=tmp_path / "downloads")
  assert len(builder.as_data_source(split="validation")) == 17


def test_c4_is_found_and_read_with_its_own_splits(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  directory = _write(_C4, tmp_path)
  corpus = corpora.find("c4", tmp_path / "root")
  assert corpus.directory == directory
  texts = _texts(
    builders.open_documents(corpus, corpus.content_hash(), tmp_path)
  )
  assert len(texts["train"]) == 40
  assert "Page 44 of the web, ünïcode." in texts["validation"]
  assert len(texts["validation"]) == 5


def test_directory_without_validation_is_split_by_hash(tmp_path):
  directory = _write(_OnlyTrain, tmp_path)
  corpus = corpora.find(f"tfds:{directory}", tmp_path)
  texts = _texts(
    builders.open_documents(corpus, corpus.content_hash(), tmp_path)
  )
  assert len(set(texts["train"] + texts["validation"])) == 40
  held_out = sum(corpora.is_validation(str(i)) for i in range(40))
  assert len(texts["validation"]) == held_out > 0


def test_directory_hash_follows_its_files(tmp_path):
  directory = _write(_C4, tmp_path)
  corpus = corpora.find(f"tfds:{directory}", tmp_path)
  before = corpus.content_hash()
  assert corpus.content_hash() == before
  shard = next(directory.glob("*train*"))
  shard.write_bytes(shard.read_bytes()[:-1])
  assert corpus.content_hash() != before


def test_directory_in_a_sequential_format_says_how_to_convert(tmp_path):
  directory = _write(_C4, tmp_path)
  info = directory / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  corpus = corpora.find(f"tfds:{directory}", tmp_path)
  with pytest.raises(InputError, match="convert_format"):
    builders.open_documents(corpus, corpus.content_hash(), tmp_path)


def test_folder_that_is_no_tfds_directory(tmp_path):
  with pytest.raises(InputError, match=r"no dataset_info\.json"):
    corpora.find(f"tfds:{tmp_path}", tmp_path).content_hash()


def test_damaged_copy_is_named(tmp_path, folder_spec):
  corpus = corpora.find(folder_spec, tmp_path)
  documents = builders.open_documents(corpus, corpus.content_hash(), tmp_path)
  shard = next(documents.folder.glob("*train*"))
  data = bytearray(shard.read_bytes())
  data[100:2000] = bytes(1900)
  shard.write_bytes(data)
  documents = builders.open_documents(corpus, corpus.content_hash(), tmp_path)
  with pytest.raises(InputError, match="is damaged.*Delete"):
    list(documents.texts("train"))
