"""The stream is a function of (seed, j): whoever reads it, and however."""

import dataclasses
import itertools
import threading
import time
import types
from collections import Counter

import hypothesis
import numpy as np
import pytest
import waiting
from hypothesis import strategies as st

from lm.config.errors import InputError
from lm.data import layout, packing, prepare, rows, stream

_L = 4
_ONE, _OTHER = 997, 401  # Rows; grain's shuffle is slow for very few.
_SETTINGS = hypothesis.settings(
  deadline=None, max_examples=40, derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip


def _write(folder, name: str, number: int, first: int) -> rows.Rows:
  """Rows that can be told apart: row i starts with the token first + i."""
  writer = packing.RowWriter(folder, "train", "<u4")
  tokens = np.arange(number)[:, None] + np.array([first, 7, 7, 7, 7])
  tokens[:, 1:] = 7
  writer.write(tokens)
  rows_hash, files = writer.close()
  split = layout.Split(1, 1, number * _L, number, rows_hash, files)
  meta = layout.Meta(
    name, "0", "0", 10**6, 1, 0, _L, "<u4", {"train": split}, {}
  )
  return rows.Rows(layout.Prepared(folder, meta), "train")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  return _write(tmp_path_factory.mktemp("one"), "one", _ONE, 10_000)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
  return _write(tmp_path_factory.mktemp("other"), "other", _OTHER, 20_000)


@pytest.fixture(scope="module")
def mixed(one, other):
  return stream.Stream([one, other], [0.7, 0.3], seed=5)


def _ids(stream_, start, n):
  return stream_.rows(start, n)[:, 0].tolist()


@hypothesis.given(
  start=st.integers(0, 10**7), sizes=st.lists(st.integers(0, 50), max_size=6)
)
@_SETTINGS
def test_batch_schedule_does_not_matter(mixed, start, sizes):
  whole = mixed.rows(start, sum(sizes))
  position, parts = start, [np.empty((0, _L + 1), np.int32)]
  for size in sizes:
    parts.append(mixed.rows(position, size))
    position += size
  np.testing.assert_array_equal(np.concatenate(parts), whole)
  assert whole.dtype == np.int32


@pytest.mark.parametrize("seed", [0, 1])
def test_each_epoch_is_a_new_permutation(one, seed):
  s = stream.Stream([one], [1.0], seed)
  epochs = [_ids(s, _ONE * e, _ONE) for e in range(5)]
  for ids in epochs:
    assert sorted(ids) == list(range(10_000, 10_000 + _ONE))
  assert len(set(map(tuple, epochs))) == 5
  # A batch across the boundary takes the end of one and the start of the next.
  assert _ids(s, _ONE - 7, 20) == epochs[0][-7:] + epochs[1][:13]


def test_seeds_share_no_epoch(one):
  seeds = [stream.Stream([one], [1.0], seed) for seed in range(4)]
  orders = {tuple(_ids(s, _ONE * e, 20)) for s in seeds for e in range(6)}
  assert len(orders) == 24


def test_first_places_are_uniform(tmp_path):
  # Each row leads an epoch with probability 1 / 16; 4.5 standard errors.
  s = stream.Stream([_write(tmp_path, "few", 16, 0)], [1.0], seed=3)
  first = Counter(_ids(s, 16 * e, 1)[0] for e in range(480))
  assert sorted(first) == list(range(16))
  assert max(abs(n - 30) for n in first.values()) < 4.5 * (30 * 15 / 16) ** 0.5


@hypothesis.given(block=st.integers(0, 1000), seed=st.integers(0, 5))
@hypothesis.settings(_SETTINGS, max_examples=10)
def test_mixture_is_exact_in_each_block(one, other, block, seed):
  s = stream.Stream([one, other], [7, 3], seed)
  owners = [i // 10_000 for i in _ids(s, block * 1000, 1000)]
  assert Counter(owners) == {1: 700, 2: 300}
  assert owners != sorted(owners)


def test_corpora_of_a_mixture_keep_their_own_order(one, other, mixed):
  ids = _ids(mixed, 0, 5000)
  for source, number in ((one, 1), (other, 2)):
    alone = stream.Stream([source], [1.0], seed=5)
    mine = [i for i in ids if i // 10_000 == number]
    assert mine == _ids(alone, 0, len(mine))


def test_order_is_the_one_of_old_checkpoints(one, mixed):
  # A change here makes every saved run continue on other data.
  s = stream.Stream([one], [1.0], seed=0)
  assert _ids(s, 0, 6) == [10362, 10540, 10914, 10516, 10775, 10367]
  assert _ids(mixed, 10**6, 6) == [20356, 10678, 10182, 10923, 20085, 10367]


@hypothesis.given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6))
@_SETTINGS
def test_shares_are_the_nearest_integers(weights):
  counts = stream.shares({str(i): w for i, w in enumerate(weights)})
  exact = np.array(weights) / sum(weights) * stream.BLOCK
  assert sum(counts) == stream.BLOCK
  assert np.abs(counts - exact).max() < 1


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), 1e-5])
def test_shares_refuse_nothing(weight):
  with pytest.raises(InputError, match="mixture"):
    stream.shares({"a": 1.0, "b": weight})


def test_fingerprint_follows_what_the_stream_depends_on(one, other, tmp_path):
  base = stream.Stream([one, other], [0.7, 0.3], 5).fingerprint
  assert stream.Stream([one, other], [7, 3], 5).fingerprint == base
  moved = _write(tmp_path, "one", _ONE, 10_000)  # The same rows elsewhere.
  assert stream.Stream([moved, other], [0.7, 0.3], 5).fingerprint == base
  (tmp_path / "b").mkdir()
  changed = _write(tmp_path / "b", "one", _ONE, 10_001)
  others = [
    stream.Stream([one, other], [0.7, 0.3], 6),
    stream.Stream([one, other], [0.6, 0.4], 5),
    stream.Stream([one], [1.0], 5),
    stream.Stream([changed, other], [0.7, 0.3], 5),
  ]
  assert len({base, *(s.fingerprint for s in others)}) == 5


@pytest.mark.parametrize(
  ("batch", "limit"), [(50, 0), (_ONE, 0), (2000, 0), (50, 3)]
)
def test_eval_batches_cover_the_rows_once(one, batch, limit):
  batches = list(stream.eval_batches(one, batch, limit))
  number = min(_ONE, batch * limit) if limit else _ONE
  assert {b.tokens.shape for b in batches} == {(batch, _L + 1)}
  assert sum(b.rows for b in batches) == number
  real = np.concatenate([b.tokens[: b.rows] for b in batches])
  assert real[:, 0].tolist() == list(range(10_000, 10_000 + number))
  for b in batches:
    assert (b.tokens[b.rows :] == 0).all()


def test_configuration_opens_the_stream(tmp_path, make_section, folder_spec):
  cfg = make_section(tmp_path, folder_spec)
  prepare.prepare(cfg, (), log=lambda _: None)
  s = stream.open_stream(cfg, seed=1)
  source = rows.open_split(cfg, folder_spec, "train")
  drawn, stored = s.rows(0, len(source)), source.read(range(len(source)))
  assert sorted(map(bytes, drawn)) == sorted(map(bytes, stored))
  np.testing.assert_array_equal(source[3], source.read([3])[0])


def _schedule():
  position = 0
  for size in itertools.cycle([2, 6, 4]):
    yield position, size
    position += size


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_prefetched_data_is_the_same(mixed, depth):
  schedule = list(itertools.islice(_schedule(), 20))
  with stream.Prefetcher(mixed.rows, schedule, depth) as batches:
    made = list(batches)
    assert next(batches, None) is None
  assert len(made) == 20
  for batch, call in zip(made, schedule, strict=True):
    np.testing.assert_array_equal(batch, mixed.rows(*call))


def test_prefetch_runs_ahead_but_not_without_bound():
  calls = []

  def read(start, size):
    calls.append(start)
    return start

  before = threading.active_count()
  batches = stream.Prefetcher(
    read, ((i, 1) for i in itertools.count()), depth=3
  )
  assert next(batches) == 0
  waiting.until(lambda: len(calls) >= 4)
  time.sleep(0.05)
  assert calls == [0, 1, 2, 3]
  batches.close()
  assert threading.active_count() == before
  assert next(batches, None) is None


@pytest.mark.parametrize("depth", [0, 3])
def test_error_comes_where_its_batch_would(depth):
  def read(start, size):
    if start == 2:
      raise OSError("disk gone")
    return start

  with stream.Prefetcher(read, ((i, 1) for i in range(5)), depth) as batches:
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
      next(batches)


@pytest.mark.parametrize("depth", [0, 2])
def test_wait_is_measured(monkeypatch, depth):
  """By a clock that goes on by 3 s whenever it is read."""
  clock = types.SimpleNamespace(perf_counter=itertools.count(0, 3).__next__)
  monkeypatch.setattr(stream, "time", clock)
  with stream.Prefetcher(lambda start, size: start, [(0, 1)], depth) as batches:
    assert batches.wait_seconds == 0
    assert next(batches) == 0
    assert batches.wait_seconds == 3
    assert next(batches, None) is None  # The end is waited for too.
    assert batches.wait_seconds == 6


def test_meta_survives_its_file(one, tmp_path):
  meta = one.prepared.meta
  layout.write_json(tmp_path / layout.META, dataclasses.asdict(meta))
  assert layout.read_meta(tmp_path) == meta
