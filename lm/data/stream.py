"""The training stream: row j is a pure function of (seed, j).

A mixture is a fixed pattern of `BLOCK` = 1000 rows, repeated. Corpus c, with
weight w_c, has n_c = round(1000 w_c) places in it. Let j = 1000 b + p, let c
own place p, and let p be its r-th place of the pattern. Then row j is

    row perm(c, k // R_c)[k mod R_c] of corpus c,  where k = b n_c + r

counts the rows taken from corpus c before j, and R_c is the corpus's number of
rows. Each epoch k // R_c of a corpus has its own permutation, given by a hash
of (seed, corpus, epoch). Hosts, workers, batch size and its schedule cannot
change the stream. The whole state of the stream is the number of rows seen.

`grain.MapDataset.mix(...).shuffle().repeat()` is the same construction with the
same `index_shuffle`. It is three times slower, and adds seed and epoch up, so
epoch 1 of seed 0 equals epoch 0 of seed 1.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from grain.experimental import index_shuffle

from ..config.errors import InputError
from . import rows as rows_lib

T = TypeVar("T")

BLOCK = 1000  # Rows after which the shares of a mixture are exact.
_ROUNDS = 4  # Of the shuffle's cipher, as in grain.


class Stream:
  """Endless shuffled rows of a mixture of corpora.

  Attributes:
    fingerprint: Changes with the rows, their order and the mixture; a
      checkpoint that stores it can tell that its data is no longer the same.
  """

  def __init__(
    self, sources: Sequence[rows_lib.Rows], weights: Sequence[float], seed: int
  ):
    """Combines the corpora.

    Args:
      sources: Rows of each corpus, with distinct names and equal length.
      weights: Positive shares; they need not sum to 1.
      seed: Of the order and of the pattern, >= 0.

    Raises:
      InputError: If a share rounds to nothing.
    """
    self._sources, self._seed = tuple(sources), seed
    self._names = [rows.prepared.meta.corpus for rows in sources]
    self._counts = shares(dict(zip(self._names, weights, strict=True)))
    self._owner, self._rank = _pattern(self._counts, seed)
    self.fingerprint = self._fingerprint()

  def rows(self, start: int, n: int) -> np.ndarray:
    """Rows start, ..., start + n - 1, int32 [n, seq_length + 1]."""
    examples = np.arange(n, dtype=np.int64) + start
    block, place = np.divmod(examples, BLOCK)
    owner = self._owner[place]
    result = np.empty((n, self._sources[0].width), np.int32)
    for c, (source, count) in enumerate(
      zip(self._sources, self._counts, strict=True)
    ):
      mine = owner == c
      taken = block[mine] * count + self._rank[place[mine]]
      result[mine] = source.read([self._shuffled(c, int(k)) for k in taken])
    return result

  def _shuffled(self, c: int, taken: int) -> int:
    """Index of the row that is drawn from corpus c after `taken` others."""
    length = len(self._sources[c])
    epoch, index = divmod(taken, length)
    seed = _hash(self._seed, self._names[c], epoch)
    return index_shuffle(index, max_index=length - 1, seed=seed, rounds=_ROUNDS)

  def _fingerprint(self) -> str:
    parts = []
    for rows, count in zip(self._sources, self._counts, strict=True):
      meta = rows.prepared.meta
      digest = meta.splits[rows.split].rows_hash
      parts.append([meta.corpus, count, digest, meta.tokenizer_hash])
      parts[-1] += [rows.chosen] if rows.chosen else []
    text = json.dumps([self._seed, BLOCK, _ROUNDS, parts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_stream(data_cfg, seed: int) -> Stream:
  """The stream of `config.data.mixture` in the order of `seed`."""
  sources = rows_lib.open_training(data_cfg)
  return Stream(sources, [weight for _, weight in data_cfg.mixture], seed)


def shares(weights: dict[str, float]) -> list[int]:
  """Rows of each corpus in a block, by largest remainders; they sum to BLOCK.

  Raises:
    InputError: If a weight is not positive or rounds to no row at all.
  """
  exact = np.array(list(weights.values()), float)
  if not (exact > 0).all():
    raise InputError(
      f"config.data.mixture: weights must be > 0, got {weights}."
    )
  exact *= BLOCK / exact.sum()
  counts = np.floor(exact).astype(int)
  by_remainder = np.argsort(counts - exact, kind="stable")
  counts[by_remainder[: BLOCK - counts.sum()]] += 1
  if not counts.all():
    name = list(weights)[int(np.argmin(counts))]
    raise InputError(
      f"config.data.mixture: the share of {name} is below 1/{BLOCK}, the "
      "smallest there is. Raise its weight or leave it out."
    )
  return counts.tolist()


def _pattern(counts: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Owner of each place of a block, and its rank among the owner's places."""
  ordered = np.repeat(np.arange(len(counts)), counts)
  key = _hash(seed, "mixture", 0)
  places = [
    index_shuffle(i, max_index=BLOCK - 1, seed=key, rounds=_ROUNDS)
    for i in range(BLOCK)
  ]
  owner = ordered[places]
  rank = np.empty(BLOCK, np.int64)
  for c, count in enumerate(counts):
    rank[owner == c] = np.arange(count)
  return owner, rank


def _hash(seed: int, name: str, epoch: int) -> int:
  """A 32-bit seed."""
  digest = hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()
  return int.from_bytes(digest[:4], "little")


class EvalBatch(NamedTuple):
  """Rows to score together.

  Attributes:
    tokens: int32 [batch_size, seq_length + 1]; rows past `rows` are all pad,
      so they hold no target.
    rows: Number of real rows.
  """

  tokens: np.ndarray
  rows: int


def eval_batches(
  rows: rows_lib.Rows, batch_size: int, limit: int = 0, multiple: int = 1
) -> Iterator[EvalBatch]:
  """Consecutive batches of a split, all of one shape.

  Args:
    rows: The split.
    batch_size: Rows a batch.
    limit: At most so many batches; 0: the whole split.
    multiple: Batches are filled up with rows of padding to a multiple of it.
  """
  whole = -(-batch_size // multiple) * multiple
  end = min(len(rows), limit * batch_size) if limit else len(rows)
  for start in range(0, end, batch_size):
    real = rows.read(range(start, min(start + batch_size, end)))
    fill = ((0, whole - len(real)), (0, 0))
    pad_id = rows.prepared.meta.pad_id
    yield EvalBatch(np.pad(real, fill, constant_values=pad_id), len(real))


class Prefetcher(Generic[T]):
  """Iterator over `read(start, size)` for a schedule, made ahead by a thread.

  The batches are the same as in a plain loop. An exception of `read` is raised
  in the place of its batch. Close the iterator, or use it in a `with` block.

  Attributes:
    wait_seconds: Time the consumer has waited for data so far.
  """

  def __init__(
    self,
    read: Callable[[int, int], T],
    schedule: Iterable[tuple[int, int]],
    depth: int,
  ):
    """Starts reading.

    Args:
      read: E.g. `stream.rows`; called with (start, size).
      schedule: The calls to make, in order; may be endless.
      depth: Batches made ahead; 0 reads when asked, without a thread.
    """
    self._read, self._schedule = read, iter(schedule)
    self._depth, self.wait_seconds = depth, 0.0
    self._pending: deque[futures.Future] = deque()
    self._thread = futures.ThreadPoolExecutor(1, "prefetch") if depth else None
    self._fill()

  def __iter__(self) -> Iterator[T]:
    """Itself."""
    return self

  def __next__(self) -> T:
    """The next batch."""
    started = time.perf_counter()
    try:
      if self._thread is None:
        return self._read(*next(self._schedule))
      if not self._pending:
        raise StopIteration
      batch = self._pending.popleft().result()
      self._fill()
      return batch
    finally:
      self.wait_seconds += time.perf_counter() - started

  def __enter__(self) -> "Prefetcher[T]":
    """Itself."""
    return self

  def __exit__(self, *unused) -> None:
    """Closes."""
    self.close()

  def close(self) -> None:
    """Ends the thread after the batch it is making; no batches follow."""
    self._schedule = iter(())
    self._pending.clear()
    if self._thread is not None:
      self._thread.shutdown(wait=True, cancel_futures=True)

  def _fill(self) -> None:
    while self._thread is not None and len(self._pending) < self._depth:
      call = next(self._schedule, None)
      if call is None:
        return
      self._pending.append(self._thread.submit(self._read, *call))
