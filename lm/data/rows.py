"""Random access to prepared rows."""

import hashlib
import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from ..config.errors import InputError
from . import layout


class Rows:
  """The rows of one prepared split; a source for grain as well.

  Attributes:
    prepared: The corpus's folder and description.
    split: "train" or "validation".
    width: seq_length + 1.
    chosen: A hash of the row numbers if only some rows are read; else "".
  """

  chosen = ""

  def __init__(self, prepared: layout.Prepared, split: str):
    """Opens the files and compares their sizes with the description.

    Raises:
      InputError: If a file is missing, has another size, or is no ArrayRecord.
    """
    self.prepared, self.split = prepared, split
    meta = prepared.meta
    self._length, self.width = meta.splits[split].rows, meta.seq_length + 1
    self._dtype = np.dtype(meta.dtype)
    layout.check_files(prepared, split)
    try:
      paths = [os.fspath(path) for path in prepared.files(split)]
      self._source = grain.sources.ArrayRecordDataSource(paths)
    except (RuntimeError, ValueError) as error:
      raise layout.damaged(prepared.path, _first_line(error)) from None
    if len(self._source) != self._length:
      reason = f"{len(self._source)} {split} rows instead of {self._length}"
      raise layout.damaged(prepared.path, reason)

  def __len__(self) -> int:
    """Number of rows."""
    return self._length

  def __getitem__(self, index: int) -> np.ndarray:
    """One row, int32 [seq_length + 1]."""
    return self.read([index])[0]

  def read(self, indices: Sequence[int]) -> np.ndarray:
    """Rows at these indices, int32 [n, seq_length + 1].

    Raises:
      InputError: If the file's checksums do not fit its contents.
    """
    if not len(indices):
      return np.empty((0, self.width), np.int32)
    try:
      records = self._source.__getitems__([int(i) for i in indices])
    except RuntimeError as error:
      raise layout.damaged(self.prepared.path, _first_line(error)) from None
    flat = np.frombuffer(b"".join(records), self._dtype)
    return flat.reshape(len(indices), self.width).astype(np.int32)


class Chosen(Rows):
  """Some rows of a split, in the order of the split."""

  def __init__(
    self, prepared: layout.Prepared, split: str, numbers: np.ndarray
  ):
    """Opens the files.

    Args:
      prepared: The corpus.
      split: Of it.
      numbers: Row numbers of the split, ascending, int64 [n].

    Raises:
      InputError: If the files are not those that were written.
    """
    super().__init__(prepared, split)
    self._numbers = numbers.astype("<i8")
    self._length = len(numbers)
    digest = hashlib.sha256(self._numbers.tobytes())
    self.chosen = digest.hexdigest()[:16]

  def read(self, indices: Sequence[int]) -> np.ndarray:
    """Rows at these indices of the choice, int32 [n, seq_length + 1]."""
    return super().read(self._numbers[np.asarray(indices, int)].tolist())


def open_training(data_cfg) -> list[Rows]:
  """The rows to train on of each corpus of `config.data.mixture`.

  These are all rows of the training split, or the first
  `config.data.limit_rows`, or the rows that the file `config.data.select`
  names: an .npz with an array of row numbers, in any order, for each corpus.

  Raises:
    InputError: If a corpus is not prepared or damaged, or the choice does not
      fit it.
  """
  found = [layout.find(data_cfg, spec) for spec, _ in data_cfg.mixture]
  if data_cfg.select:
    chosen = _read_selection(data_cfg.select, found)
  elif data_cfg.limit_rows:
    chosen = [_first(data_cfg.limit_rows, prepared) for prepared in found]
  else:
    return [Rows(prepared, "train") for prepared in found]
  return [Chosen(p, "train", n) for p, n in zip(found, chosen, strict=True)]


def _first(count: int, prepared: layout.Prepared) -> np.ndarray:
  meta = prepared.meta
  if count > meta.splits["train"].rows:
    raise InputError(
      f"config.data.limit_rows={count}, but the training split of "
      f"{meta.corpus} has {meta.splits['train'].rows} rows. Take fewer, or 0 "
      "for all."
    )
  return np.arange(count)


def _read_selection(
  path: str, found: Sequence[layout.Prepared]
) -> list[np.ndarray]:
  """Row numbers of each corpus, ascending."""
  key = f"config.data.select={path}"
  try:
    data = io.BytesIO(pathlib.Path(path).expanduser().read_bytes())
    with np.lib.npyio.NpzFile(data, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except Exception as error:  # Damaged files raise errors of many types.
    raise InputError(
      f"{key} cannot be read as an .npz file of integer arrays "
      f"({_first_line(error) or type(error).__name__})."
    ) from None
  names = [prepared.meta.corpus for prepared in found]
  if set(arrays) != set(names):
    raise InputError(
      f"{key} has arrays for {sorted(arrays)}; it must have one for each "
      f"corpus of config.data.mixture, and no other: {sorted(names)}."
    )
  return [
    _numbers(f"{key}, {p.meta.corpus}", arrays[p.meta.corpus], p) for p in found
  ]


def _numbers(where: str, array: Any, prepared: layout.Prepared) -> np.ndarray:
  rows = prepared.meta.splits["train"].rows
  if array.dtype.kind not in "iu" or array.ndim != 1 or not array.size:
    raise InputError(
      f"{where}: {array.dtype} of shape {array.shape}, expected row numbers: "
      "integers of shape [n], n > 0 (np.flatnonzero makes them of a mask)."
    )
  numbers, times = np.unique(array, return_counts=True)
  if numbers[0] < 0 or numbers[-1] >= rows:
    wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
    raise InputError(
      f"{where}: there is no row {wrong}; the training split has {rows}, "
      "numbered from 0."
    )
  if times.max() > 1:
    raise InputError(
      f"{where}: row {numbers[times.argmax()]} is named {times.max()} times."
    )
  return numbers


def open_split(data_cfg, corpus: str, split: str) -> Rows:
  """The prepared rows of `corpus`, "train" or "validation".

  Raises:
    InputError: If they are not prepared, or damaged.
  """
  return Rows(layout.find(data_cfg, corpus), split)


def _first_line(error: Exception) -> str:
  return str(error).strip().partition("\n")[0]
