"""What tables and pictures both read from the JSON of a study."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]  # NAME.json.
Times = Mapping[str, Any]  # NAME.times.json; {} if there is none.
Row = Mapping[str, Any]  # Of `table` in NAME.json.


def pictures(result: Result) -> list[str]:
  """Kinds of pictures whose data exist; the file is NAME_KIND.png."""
  rows = result["table"]
  speeds = any(math.isfinite(float(r["speed"]["estimate"])) for r in rows
               if "speed" in r)  # fmt: skip
  shown = {
    "speed": speeds,
    "profile": speeds,
    "curves": any(curves(result, row) for row in rows),
    "batch": any(c["fits"] for c in result["critical_batch"].values()),
  }
  return [kind for kind, exists in shown.items() if exists]


def ranked(result: Result, cell: str) -> list[Row]:
  """Rows of a cell, best first; a rate at an edge is not ranked and last."""
  rows = [r for r in result["table"] if (r["cell"], r["horizon"]) == (cell, 1)]

  def key(row):
    fast = speed(result, row)
    known = not math.isnan(fast)
    return row["edge"], not known, -fast if known else 0.0, loss(row)

  return sorted(rows, key=key)


def loss(row: Row) -> float:
  """Mean of the first score; inf if it is not known, or a run diverged."""
  losses = [float(value) for value in next(iter(row["losses"].values()))]
  mean = statistics.fmean(losses) if losses else math.nan
  return math.inf if math.isnan(mean) else mean


def speed(result: Result, row: Row) -> float:
  """Speed-up; 1 of the reference, nan if it is not known."""
  if row["arm"] == result["declaration"]["reference"] and row.get("speeds"):
    return 1.0
  return float(row["speed"]["estimate"]) if "speed" in row else math.nan


def horizons(result: Result) -> tuple[float, float]:
  """The least and the largest of the reference, in those of a cell."""
  found = result["declaration"]["horizons"] or (1.0,)
  return min(found), max(found)


def time_ratio(result: Result, times: Times, row: Row) -> float:
  """Time of an update by that of the reference; nan if it is not known."""
  ms, cell = times.get("update_ms", {}), row["cell"]
  mine = ms.get(f"{row['arm']} in {cell}", math.nan)
  return mine / ms.get(f"{result['declaration']['reference']} in {cell}", 1.0)


def curves(result: Result, row: Row) -> list[list[list[float]]]:
  """Curves of the first score, [points, 2] a seed: tokens and loss.

  A run is of a row if the settings and the length are the row's.
  """
  cell, found = result["declaration"]["cells"][row["cell"]], []
  use = {"arm": row["arm"], "cell": row["cell"], "role": "report"}
  for run in result["runs"]:
    length = run["tokens"] / cell["tokens"] / row["horizon"]
    if use in run["uses"] and abs(math.log(length)) < math.log(1.3):
      found += [
        curve for curve in [*run.get("curves", {}).values()][:1] if curve
      ]
  return found
