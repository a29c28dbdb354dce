"""How much of each matrix of a bucket is not padding."""

import math
from typing import Any

import numpy as np

from .plan import Bucket


def lengths(bucket: Bucket) -> np.ndarray:
  """[S, sides], or [1, sides] if no matrix of the bucket is padded.

  The last block of a side that is cut may be shorter than the others. Matrices
  that only fill up a stack are zeros, and count as whole.
  """
  rows = []
  for piece in bucket.pieces:
    sides = [
      np.minimum(n, length - n * np.arange(b))
      for n, b, length in zip(
        bucket.shape, piece.blocks, piece.lengths, strict=True
      )
    ]
    blocks = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)
    blocks = blocks.reshape(-1, len(sides))
    rows.append(np.tile(blocks, (math.prod(piece.stack_shape), 1)))
  found = np.concatenate(rows)
  if (found == bucket.shape).all():
    return found[:1]
  missing = np.tile([bucket.shape], (bucket.size - len(found), 1))
  return np.concatenate([found, missing])


def entries(bucket: Bucket, dtype: Any) -> np.ndarray:
  """Entries of each matrix, [S] or [1]."""
  return np.prod(lengths(bucket), axis=1).astype(dtype)


def others(bucket: Bucket, side: int, dtype: Any) -> np.ndarray:
  """The product of the lengths of all sides but one, [S] or [1]."""
  rest = np.delete(lengths(bucket), side, axis=1)
  return np.prod(rest, axis=1).astype(dtype)
