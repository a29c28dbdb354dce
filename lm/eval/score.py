r"""Loss of a set with its error, from sums of rows.

The loss of a set is a ratio of sums over its targets. Rows and batches of any
size count by their targets; a row of padding has no target.

Dimension key: R rows of a set.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..cli import text
from ..data import layout
from ..data.rows import Rows


class EvalResult(NamedTuple):
  """The score of a set."""

  loss: float  # Nats per token.
  stderr: float  # Of the loss; NaN with fewer than two rows.
  perplexity: float  # exp(loss).
  bits_per_byte: float
  tokens: int  # Targets scored.
  rows: int  # Rows with a target.

  def scalars(self) -> dict[str, float]:
    """What goes into metrics.jsonl, by the last part of its key."""
    keys = ("loss", "stderr", "perplexity", "bits_per_byte")
    return {key: getattr(self, key) for key in keys}

  def __str__(self) -> str:
    """One line for people."""
    return (
      f"loss {self.loss:.4f} ± {self.stderr:.4f}, "
      f"{self.bits_per_byte:.4f} bits/byte, {self.tokens} tokens"
    )


def summarize(
  loss_R: np.ndarray, weight_R: np.ndarray, rows: Rows
) -> EvalResult:
  r"""Mean loss of a token and its standard error, from sums of rows.

  With l_r the summed loss and w_r the number of targets of row r,

      m = \sum_r l_r / \sum_r w_r,
      stderr^2 = n / (n - 1) \sum_r (l_r - m w_r)^2 / (\sum_r w_r)^2,

  the linearised error of a ratio of means over n independent rows. For equal
  w_r this is the usual error of the mean of n numbers. Tokens within a row may
  depend on each other. The estimate ignores that neighbouring rows of one long
  document depend on each other too.

  Args:
    loss_R: Summed loss of each row, nats.
    weight_R: Targets of each row; rows without any do not count.
    rows: The split they are of; its tokens and bytes in all convert the loss
      to bits per byte.

  Returns:
    The score; all NaN if there is no target.

  References:
    Cochran, "Sampling Techniques", 3rd ed., 1977, eq. 6.9 (the ratio
    estimator).
  """
  loss_R = np.asarray(loss_R, np.float64)
  weight_R = np.asarray(weight_R, np.float64)
  counts = weight_R > 0
  loss_R, weight_R = loss_R[counts], weight_R[counts]
  n, tokens = len(loss_R), float(weight_R.sum())
  loss = float(loss_R.sum()) / tokens if n else math.nan
  stderr = math.nan
  if n > 1:
    square = float(np.square(loss_R - loss * weight_R).sum())
    stderr = math.sqrt(n / (n - 1) * square) / tokens
  return EvalResult(
    loss=loss,
    stderr=stderr,
    perplexity=float(np.exp(np.float64(loss))),
    bits_per_byte=rows.prepared.meta.bits_per_byte(loss, rows.split),
    tokens=int(tokens),
    rows=n,
  )


def table(
  results: Mapping[str, EvalResult], data: Mapping[str, layout.Prepared]
) -> str:
  """One line a set: the score, and the best n-gram model's beside it."""
  rows = []
  for name, result in results.items():
    floors = data[name].meta.floors
    grams = {k: v for k, v in floors.items() if k.endswith("gram")}
    best = min(grams, key=grams.__getitem__)
    rows.append(
      [
        name,
        f"{result.loss:.4f} ± {result.stderr:.4f}",
        f"{result.perplexity:.2f}",
        f"{result.bits_per_byte:.4f}",
        str(result.tokens),
        f"{grams[best]:.4f} ({best})",
        f"{floors['bits_per_byte']:.4f}",
      ]
    )
  header = ["set", "loss ± stderr", "perplexity", "bits/byte", "tokens"]
  return text.format_table([*header, "n-gram loss", "n-gram bits/byte"], rows)
