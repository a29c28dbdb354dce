r"""Prepares all text that a configuration names; run once before training.

    python -m lm.data.prepare --config=ml_collections_configs/tiny.py
    python -m lm.data.prepare --config=ml_collections_configs/base.py \
        --config.data.tokenizer=bytes --config.data.root=/data

Documents -> tokenizer -> rows of seq_length + 1 ids -> ArrayRecord, with the
loss of n-gram models beside them (`lm/data/ngram.py`). Data that is prepared
already is compared with its hashes and kept. Exit code 2: bad input.
"""

import contextlib
import dataclasses
import fcntl
import functools
import itertools
import pathlib
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..cli import flags, program
from ..cli.text import format_table
from ..config import load
from ..config.errors import InputError
from . import builders, corpora, layout, ngram, packing
from . import tokenizer as tokenizers

Log = Callable[[str], None]

# The tokenizer is trained on at most so many characters, an equal share of each
# corpus.
_TOKENIZER_TEXT = 100_000_000
# The n-gram floor is fitted on at most this many training tokens.
_FLOOR_TOKENS = 20_000_000
_REPORT_SECONDS = 5.0

_FLAGS = (flags.CONFIG,)


def prepare(
  data_cfg, eval_sets: Sequence[str], *, log: Log = print
) -> dict[str, layout.Prepared]:
  """Prepares the mixture and the eval sets; returns them by name.

  Data that is there already and intact is kept.

  Args:
    data_cfg: The section `config.data`, checked.
    eval_sets: Names of further corpora, `config.eval.sets`.
    log: Called with lines for the person waiting.

  Raises:
    InputError: On bad input; nothing is left half-written.
  """
  root = pathlib.Path(data_cfg.root)
  mixture = [spec for spec, _ in data_cfg.mixture]
  with _locked(root):
    layout.remove_leftovers(root)
    hashes, sources = {}, {}
    for spec in dict.fromkeys([*mixture, *eval_sets]):
      sources[spec] = corpora.find(spec, root)
      hashes[spec] = sources[spec].content_hash()
      if left_out := sources[spec].left_out():
        log(left_out)
    documents = {
      spec: _Once(sources[spec], hashes[spec], root) for spec in sources
    }
    if data_cfg.tokenizer == "bpe":
      trained_on = {spec: hashes[spec] for spec in sorted(mixture)}
      _prepare_tokenizer(data_cfg, trained_on, documents, log)
    tokenizer = tokenizers.load(data_cfg)
    return {
      spec: _prepare_corpus(
        data_cfg, spec, hashes[spec], documents[spec], tokenizer, log
      )
      for spec in sources
    }


@contextlib.contextmanager
def _locked(root: pathlib.Path) -> Iterator[None]:
  """Locks the root, so that programs started together do not race."""
  try:
    root.mkdir(parents=True, exist_ok=True)
    file = (root / ".lock").open("w")
  except OSError as error:
    raise InputError(
      f"config.data.root={root} cannot be written ({error.strerror}). Choose "
      "another folder: --config.data.root=FOLDER."
    ) from None
  with file:
    fcntl.flock(file, fcntl.LOCK_EX)  # Released when the file is closed.
    yield


class _Once:
  """Opens the documents of a corpus when they are first needed."""

  def __init__(
    self, corpus: corpora.Corpus, content_hash: str, root: pathlib.Path
  ):
    self._open = functools.cache(
      lambda: builders.open_documents(corpus, content_hash, root)
    )

  def texts(self, split: str) -> Iterator[str]:
    return self._open().texts(split)


def _prepare_tokenizer(
  data_cfg, hashes: dict[str, str], documents: dict[str, _Once], log: Log
) -> None:
  """Trains the tokenizer on the training splits of the corpora in `hashes`."""
  folder = layout.tokenizer_dir(data_cfg)
  if folder.exists():
    trained_on = tokenizers.read_meta(folder)["corpora"]
    for spec, found in hashes.items():
      _check_unchanged(spec, trained_on.get(spec), found, folder.parent)
    return
  log(f"training tokenizer {folder.parent.name}")
  share = _TOKENIZER_TEXT // len(hashes)
  texts = itertools.chain.from_iterable(
    _first(documents[spec].texts("train"), share) for spec in hashes
  )
  model = tokenizers.train(texts, data_cfg.vocab_size)
  tokenizers.write(folder, model, hashes)


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
  for text in texts:
    if characters <= 0:
      return
    yield text
    characters -= len(text)


def _check_unchanged(
  spec: str, stored: str | None, found: str, folder: pathlib.Path
) -> None:
  if stored != found:
    raise InputError(
      f"Corpus {spec} changed since {folder} was prepared: its content hash "
      f"was {stored} and is {found}. Delete that folder to prepare it again, "
      "or keep it and choose another --config.data.root."
    )


def _prepare_corpus(
  data_cfg,
  spec: str,
  content_hash: str,
  documents: _Once,
  tokenizer: tokenizers.Tokenizer,
  log: Log,
) -> layout.Prepared:
  """Writes the rows of a corpus, or checks those that are there."""
  path = layout.corpus_dir(data_cfg, spec)
  if path.exists():
    prepared = layout.find(data_cfg, spec)
    _check_unchanged(spec, prepared.meta.content_hash, content_hash, path)
    if prepared.meta.tokenizer_hash != tokenizer.hash:
      raise layout.damaged(path, "it was written with another tokenizer")
    verify(prepared)
    return prepared
  splits, tokens = {}, {}
  with layout.atomic_dir(path) as temporary:
    for split in builders.SPLITS:
      splits[split], tokens[split] = packing.write_split(
        temporary,
        split,
        documents.texts(split),
        tokenizer,
        seq_length=data_cfg.seq_length,
        keep_tokens=_FLOOR_TOKENS if split == "train" else sys.maxsize,
        progress=_progress(f"{spec}/{split}", log),
      )
      if not splits[split].documents:
        raise builders.empty_split(spec, split)
    log(f"{spec}: counting n-grams")
    model = ngram.WittenBell(tokens["train"], tokenizer.vocab_size)
    meta = layout.Meta(
      corpus=spec,
      content_hash=content_hash,
      tokenizer_hash=tokenizer.hash,
      vocab_size=tokenizer.vocab_size,
      eos_id=tokenizer.eos_id,
      pad_id=tokenizer.pad_id,
      seq_length=data_cfg.seq_length,
      dtype=packing.storage_dtype(tokenizer.vocab_size),
      splits=splits,
      floors=model.nats_per_token(tokens["validation"]),
    )
    bits = meta.bits_per_byte(meta.floors[ngram.ORDERS[-1]], "validation")
    meta.floors["bits_per_byte"] = bits
    layout.write_json(temporary / layout.META, dataclasses.asdict(meta))
  return layout.find(data_cfg, spec)


def verify(prepared: layout.Prepared) -> None:
  """Raises InputError unless every file is the one that was written."""
  for split, counts in prepared.meta.splits.items():
    layout.check_files(prepared, split)
    for name, _, digest in counts.files:
      if packing.sha256(prepared.path / name) != digest:
        raise layout.damaged(prepared.path, f"{name} has other contents")


def _progress(name: str, log: Log) -> Callable[[int, int], None]:
  """Reports the documents and bytes read, every few seconds."""
  started = reported = time.monotonic()

  def progress(documents: int, utf8_bytes: int) -> None:
    nonlocal reported
    now = time.monotonic()
    if now - reported > _REPORT_SECONDS:
      reported, megabytes = now, utf8_bytes / 1e6
      log(
        f"{name}: {documents} documents, {megabytes:.1f} MB, "
        f"{megabytes / (now - started):.1f} MB/s"
      )

  log(f"{name}: tokenising")
  return progress


def table(prepared: dict[str, layout.Prepared]) -> str:
  """Sizes of both splits and floors of prepared corpora, one line each."""
  header = (
    "corpus", "documents", "MB", "tokens", "rows", "bytes/token", "1-gram",
    "2-gram", "3-gram", "bits/byte",
  )  # fmt: skip
  lines = []
  for spec, item in prepared.items():
    meta = item.meta
    train, held_out = (meta.splits[split] for split in builders.SPLITS)
    lines.append([
      spec,
      f"{train.documents} + {held_out.documents}",
      f"{train.utf8_bytes / 1e6:.2f} + {held_out.utf8_bytes / 1e6:.2f}",
      f"{train.tokens} + {held_out.tokens}",
      f"{train.rows} + {held_out.rows}",
      f"{train.utf8_bytes / train.tokens:.2f}",
      *(f"{meta.floors[order]:.3f}" for order in ngram.ORDERS),
      f"{meta.floors['bits_per_byte']:.3f}",
    ])  # fmt: skip
  return format_table(header, lines)


@program.takes(__doc__, _FLAGS)
def main(args: types.SimpleNamespace) -> None:
  """Prepares the data and prints the table."""
  started = time.monotonic()
  config = load.from_config_dict(args.config)
  prepared = prepare(config.data, config.eval.sets)
  print(table(prepared))
  print(
    "Train + validation. n-grams: nats/token of the validation split, and "
    "bits/byte of the 3-gram."
  )
  for item in prepared.values():
    print(item.path)
  print(f"Ready after {time.monotonic() - started:.1f} s.")


if __name__ == "__main__":
  program.start(main)
