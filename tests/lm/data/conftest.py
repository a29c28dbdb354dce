"""Small corpora in folders, and the configuration section that names them."""

import pathlib
import random
import types

import pytest

from lm.data import layout, prepare

_WORDS = (
  "the of and to in that a is was he for it with as his on be at by had not "
  "are but from or have an they which one you were all her she there would"
).split()


def write_folder(folder: pathlib.Path, documents: int, seed: int = 0) -> str:
  """Fills a folder with documents of random words; returns its `dir:PATH`."""
  rng = random.Random(seed)
  folder.mkdir(parents=True, exist_ok=True)
  for number in range(documents):
    lines = (
      " ".join(rng.choices(_WORDS, k=rng.randint(1, 12)))
      for _ in range(rng.randint(1, 6))
    )
    (folder / f"{number:03d}.txt").write_text("\n".join(lines) + "\n")
  return f"dir:{folder}"


def section(
  root: pathlib.Path, spec: str, /, **changes
) -> types.SimpleNamespace:
  """A `config.data` with one corpus, bytes and rows of 17."""
  values = {
    "root": str(root),
    "mixture": ((spec, 1.0),),
    "tokenizer": "bytes",
    "vocab_size": 320,
    "seq_length": 16,
    "batch_size": 4,
    "prefetch": 2,
    "limit_rows": 0,
    "select": "",
  }
  return types.SimpleNamespace(**(values | changes))


@pytest.fixture(scope="session")
def make_folder():
  """The function `write_folder`."""
  return write_folder


@pytest.fixture(scope="session")
def make_section():
  """The function `section`."""
  return section


@pytest.fixture(scope="session")
def folder_spec(tmp_path_factory) -> str:
  """A folder of 60 documents, some of them held out; never changed."""
  return write_folder(tmp_path_factory.mktemp("text") / "words", 60)


@pytest.fixture(scope="session")
def sotu(tmp_path_factory) -> tuple[types.SimpleNamespace, layout.Prepared]:
  """The default corpus at the default settings; never changed."""
  root = tmp_path_factory.mktemp("sotu")
  cfg = section(root, "sotu", tokenizer="bpe", vocab_size=4096, seq_length=256)
  return cfg, prepare.prepare(cfg, (), log=lambda _: None)["sotu"]
