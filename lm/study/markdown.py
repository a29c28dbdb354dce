"""Tables and numbers in Markdown.

Numbers that are not finite are texts in a study's JSON, and `float` reads them.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..cli import text


def table(lines: Sequence[Mapping[str, str]]) -> str:
  """Rows by title of the column; a column without content is left out."""
  names = list(dict.fromkeys(name for line in lines for name in line))
  names = [name for name in names if any(line.get(name) for line in lines)]
  rows = [names, ["---"] * len(names)]
  rows += [[line.get(name, "") for name in names] for line in lines]
  return "\n".join(
    "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    for row in rows
  )


def mean(losses: Sequence[Any]) -> str:
  """Mean and standard error, or how many diverged."""
  x = [float(loss) for loss in losses]
  lost = sum(not math.isfinite(loss) for loss in x)
  if lost or not x:
    return f"diverged in {lost} of {len(x)}" if x else ""
  error = statistics.stdev(x) / math.sqrt(len(x)) if len(x) > 1 else math.nan
  return f"{statistics.fmean(x):.4f}{number(error, ' ± {:.4f}')}"


def short(value: float) -> str:
  """Three digits; "-" if not finite."""
  if not math.isfinite(value):
    return "-"
  return f"{value:.3g}" if abs(value) < 999.5 else text.human(value)


def span(found: Mapping[str, Any], show: Callable[[float], str] = short) -> str:
  """Estimate and ends; [-] if there are too few seeds for an interval."""
  middle, low, high = (float(found[k]) for k in ("estimate", "low", "high"))
  none = low in (0, -math.inf) and high == math.inf
  return f"{show(middle)} [{'-' if none else f'{show(low)}, {show(high)}'}]"


def speed(
  row: Mapping[str, Any], ends: tuple[float, float], scale: float = 1.0
) -> str:
  """A speed-up [90 %] times scale; "> 4" or "< 0.5" beyond the ends.

  Args:
    row: Of `table` in NAME.json; the reference's has `speeds`, but no `speed`.
    ends: The least and the largest horizon of the reference.
    scale: nan if it is not known: the text is then empty.
  """

  def show(value: float) -> str:
    if math.isnan(value):
      return "not read"
    if value == math.inf:
      return f"> {ends[1] * scale:.3g}"
    return f"{value * scale:.2f}" if value > 0 else f"< {ends[0] * scale:.3g}"

  if not row.get("speeds") or math.isnan(scale):
    return ""
  return span(row["speed"], show) if "speed" in row else show(1.0)


def outside(row: Mapping[str, Any], ends: tuple[float, float]) -> str:
  """Seeds without a number where others have one, e.g. "; 1 of 3 > 4"."""
  kinds = {">": f"> {ends[1]:g}", "<": f"< {ends[0]:g}"}
  found = [
    kinds.get(bound, "not read")
    for _, value, bound in row["speeds"]
    if not 0 < float(value) < math.inf
  ]
  n = len(row["speeds"])
  return "".join(
    f"; {found.count(kind)} of {n} {kind}"
    for kind in dict.fromkeys(found)
    if found.count(kind) < n
  )


def number(value: Any, form: str) -> str:
  """A number, or nothing if it is not finite."""
  return form.format(float(value)) if math.isfinite(float(value)) else ""


def settings(given: Mapping[str, Any], skip: Any = ()) -> str:
  """Keys and values, e.g. "b2 0.95, weight_decay 0.1"."""
  texts = {
    key: f"{value:.4g}" if isinstance(value, float) else str(value)
    for key, value in given.items()
    if key not in skip
  }
  return ", ".join(f"{key} {value}" for key, value in texts.items())


def trial(
  given: Mapping[str, Any], loss: Any, chosen: Mapping[str, Any], rate: str
) -> str:
  """E.g. "0.003 (b2 0.98): 4.4240": the rate, and what is not as chosen."""
  other = settings(given, [rate, *(k for k in given if given[k] == chosen[k])])
  words = f"{given[rate]:.4g}{other and f' ({other})'}: "
  words += number(loss, "{:.4f}") or "diverged"
  return f"**{words}**" if given == chosen else words


def names(ids: Sequence[str]) -> str:
  """Names of runs."""
  return ", ".join(f"`{id_}`" for id_ in ids)
