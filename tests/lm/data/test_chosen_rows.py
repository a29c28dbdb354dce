"""Some rows of a corpus: which, in which order, and errors of the choice."""

import io
import pathlib

import numpy as np
import pytest

from lm.config.errors import InputError
from lm.data import packing, prepare, rows, stream


@pytest.fixture(scope="module")
def whole(tmp_path_factory, folder_spec, make_folder, make_section):
  """Two prepared corpora and the configuration that names them."""
  folder = tmp_path_factory.mktemp("chosen")
  other = make_folder(folder / "other", 60, seed=1)
  cfg = make_section(
    folder / "data", folder_spec, mixture=((folder_spec, 0.7), (other, 0.3))
  )
  prepare.prepare(cfg, (), log=lambda _: None)
  return cfg


def _with(cfg, **changes):
  return type(cfg)(**(vars(cfg) | changes))


def _stored(cfg, spec):
  """All training rows of a corpus."""
  source = rows.open_split(cfg, spec, "train")
  return source.read(range(len(source)))


def _save(path, **arrays):
  np.savez(path, **arrays)
  return str(path)


def _alone(cfg):
  return _with(cfg, mixture=((cfg.mixture[0][0], 1.0),))


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_a_batch_of_all_first_rows_holds_each_once(whole, count):
  cfg = _with(_alone(whole), limit_rows=count)
  s = stream.open_stream(cfg, seed=3)
  first = _stored(cfg, cfg.mixture[0][0])[:count]
  wanted = sorted(map(bytes, first))
  orders = []
  for update in range(6):
    batch = s.rows(update * count, count)
    assert sorted(map(bytes, batch)) == wanted
    orders.append(batch.tobytes())
  assert len(set(orders)) > 1 or count == 1


def test_chosen_rows_come_as_from_a_corpus_that_has_only_them(whole, tmp_path):
  """The order is that of the stream over a file of just these rows."""
  specs = [spec for spec, _ in whole.mixture]
  rng = np.random.default_rng(0)
  numbers, small = {}, []
  for i, spec in enumerate(specs):
    stored = _stored(whole, spec)
    chosen = rng.permutation(len(stored))[: 20 + 5 * i]
    numbers[spec] = chosen
    folder = tmp_path / str(i)
    folder.mkdir()
    writer = packing.RowWriter(folder, "train", "<u2")
    writer.write(stored[np.sort(chosen)])
    rows_hash, files = writer.close()
    old = rows.open_split(whole, spec, "train").prepared.meta
    split = old.splits["train"].__class__(
      1, 1, 1, len(chosen), rows_hash, files
    )
    meta = old.__class__(**(vars(old) | {"splits": {"train": split}}))
    prepared = rows.open_split(whole, spec, "train").prepared
    prepared = prepared.__class__(folder, meta)
    small.append(rows.Rows(prepared, "train"))
  oracle = stream.Stream(small, [0.7, 0.3], seed=4)
  cfg = _with(whole, select=_save(tmp_path / "s.npz", **numbers))
  chosen = stream.open_stream(cfg, seed=4)
  np.testing.assert_array_equal(chosen.rows(0, 300), oracle.rows(0, 300))
  np.testing.assert_array_equal(chosen.rows(7777, 60), oracle.rows(7777, 60))


def test_the_fingerprint_is_that_of_the_rows_chosen(whole, tmp_path):
  cfg = _alone(whole)
  spec = cfg.mixture[0][0]

  def fingerprint(numbers=None, **changes):
    if numbers is not None:
      array = np.array(numbers, changes.pop("dtype", np.int64))
      changes["select"] = _save(tmp_path / "s.npz", **{spec: array})
    return stream.open_stream(_with(cfg, **changes), seed=0).fingerprint

  assert fingerprint([5, 2, 3]) == fingerprint([2, 3, 5], dtype=np.uint16)
  assert fingerprint([0, 1, 2]) == fingerprint(limit_rows=3)
  different = [
    fingerprint(), fingerprint([2, 3, 5]), fingerprint([2, 3, 6]),
    fingerprint([2, 3]), fingerprint(limit_rows=3), fingerprint(limit_rows=4),
  ]  # fmt: skip
  assert len(set(different)) == len(different)


def test_the_validation_split_is_whole(whole):
  spec = whole.mixture[0][0]
  limited = rows.open_split(_with(whole, limit_rows=1), spec, "validation")
  assert len(limited) == len(rows.open_split(whole, spec, "validation"))


def test_more_rows_than_there_are_is_an_error(whole):
  with pytest.raises(InputError, match=r"limit_rows=99999, .* has \d+ rows"):
    stream.open_stream(_with(whole, limit_rows=99_999), seed=0)


_NUMBERS = {
  "mask": (np.array([True, False]), "bool of shape .*flatnonzero"),
  "fractions": (np.array([0.0, 1.0]), "float64 of shape"),
  "table": (np.array([[0, 1]]), r"shape \(1, 2\)"),
  "nothing": (np.array([], int), r"shape \(0,\)"),
  "negative": (np.array([3, -1]), "no row -1"),
  "beyond": (np.array([3, 10**9]), "no row 1000000000; .* has"),
  "twice": (np.array([4, 3, 4]), "row 4 is named 2 times"),
}


@pytest.mark.parametrize("case", _NUMBERS)
def test_wrong_numbers_are_named(whole, tmp_path, case):
  array, words = _NUMBERS[case]
  cfg = _alone(whole)
  path = _save(tmp_path / "s.npz", **{cfg.mixture[0][0]: array})
  with pytest.raises(InputError, match=words):
    stream.open_stream(_with(cfg, select=path), seed=0)


def test_a_file_for_other_corpora_is_named(whole, tmp_path):
  spec = whole.mixture[0][0]
  for keys in (("other",), (spec,), (spec, whole.mixture[1][0], "more"), ()):
    path = _save(tmp_path / "s.npz", **{key: np.arange(3) for key in keys})
    with pytest.raises(InputError, match="one for each corpus") as error:
      stream.open_stream(_with(whole, select=path), seed=0)
    assert spec in str(error.value)


def _npy():
  file = io.BytesIO()
  np.save(file, np.arange(3))
  return file.getvalue()


def _damage(path: pathlib.Path):
  np.savez(path, a=np.arange(1000))
  path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
  "make",
  [
    lambda path: None,
    lambda path: path.mkdir(),
    lambda path: path.write_text("1 2 3"),
    lambda path: path.write_bytes(b""),
    _damage,
    lambda path: np.savez(path, a=np.array([{}], object)),
    lambda path: path.write_bytes(_npy()),
  ],
  ids=["missing", "folder", "text", "empty", "damaged", "objects", "npy"],
)
def test_a_bad_file_is_named(whole, tmp_path, make):
  path = tmp_path / "s.npz"
  make(path)
  with pytest.raises(InputError, match=r"s\.npz cannot be read as an \.npz"):
    stream.open_stream(_with(whole, select=str(path)), seed=0)
