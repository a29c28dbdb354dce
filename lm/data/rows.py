"""Random access to prepared rows."""

import os
from collections.abc import Sequence

import grain
import numpy as np

from . import layout


class Rows:
  """The rows of one prepared split; a source for grain as well.

  Attributes:
    prepared: The corpus's folder and description.
    split: "train" or "validation".
    width: seq_length + 1.
  """

  def __init__(self, prepared: layout.Prepared, split: str):
    """Opens the files and compares their sizes with the description.

    Raises:
      DataError: If a file is missing, has another size, or is no ArrayRecord.
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
      DataError: If the file's checksums do not fit its contents.
    """
    if not len(indices):
      return np.empty((0, self.width), np.int32)
    try:
      records = self._source.__getitems__([int(i) for i in indices])
    except RuntimeError as error:
      raise layout.damaged(self.prepared.path, _first_line(error)) from None
    flat = np.frombuffer(b"".join(records), self._dtype)
    return flat.reshape(len(indices), self.width).astype(np.int32)


def open_split(data_cfg, corpus: str, split: str) -> Rows:
  """The prepared rows of `corpus`, "train" or "validation".

  Raises:
    DataError: If they are not prepared, or damaged.
  """
  return Rows(layout.find(data_cfg, corpus), split)


def _first_line(error: Exception) -> str:
  return str(error).strip().partition("\n")[0]
