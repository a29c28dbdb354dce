"""What the page and the pictures both read from the JSON of a study."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Result = Mapping[str, Any]  # NAME.json; "inf" and "nan" are texts there.
Times = Mapping[str, Any]  # NAME.times.json; {} if there is none.
Row = Mapping[str, Any]  # Of `table` in NAME.json: an arm in a cell.


def pictures(result: Result) -> list[str]:
  """Kinds of pictures whose data exist; the file is NAME_KIND.png."""
  rows, fits = result["table"], result["critical_batch"].values()
  kinds = ["speed", "profile"] if any("speed" in row for row in rows) else []
  kinds += ["curves"] if any(curves(result, row) for row in rows) else []
  return kinds + (["batch"] if any(found["fits"] for found in fits) else [])


def ranked(result: Result, cell: str) -> list[Row]:
  """Rows of a cell, best first; a rate at an edge is not ranked and last."""

  def key(row):
    losses = next(iter(row["losses"].values())) or [math.inf]
    loss = np.nan_to_num(np.mean(np.array(losses, float)), nan=math.inf)
    return row["edge"], -np.nan_to_num(speed(row), nan=-1), loss

  rows = [r for r in result["table"] if (r["cell"], r["horizon"]) == (cell, 1)]
  return sorted(rows, key=key)


def speed(row: Row) -> float:
  """Speed-up; 1 of the reference, nan if it is not known."""
  known = 1.0 if row.get("speeds") else math.nan  # Only others have "speed".
  return float(row.get("speed", {}).get("estimate", known))


def curves(result: Result, row: Row) -> list[np.ndarray]:
  """Tokens and losses of the first score, [2, points] a seed."""
  use = {key: row[key] for key in ("arm", "cell", "horizon")}
  runs = [r for r in result["runs"] if use | {"role": "report"} in r["uses"]]
  found = [[*run.get("curves", {}).values()][:1] for run in runs]
  return [np.array(curve, float).T for some in found for curve in some if curve]
