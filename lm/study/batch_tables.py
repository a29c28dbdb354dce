"""The part of a study's page on the critical batch size."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import markdown

_STEPS = """
Steps to each target by batch: the mean of the seeds' logs. "k of n": only k of
n seeds reached the target, and the steps are the median."""
_FITS = """
The fit a + b / B, and the critical batch by two definitions: 0.2 b / a, and the
paper's B\\* = 1.2 B_ref + 0.2 b / a. "Measured" is B\\* without the form.
Intervals of 90 %, and the estimate in tokens."""
_READINGS = {
  "ratio": "b / a",
  "free": "0.2 b / a",
  "paper": "B\\*",
  "measured": "measured",
}


def section(name: str, found: Mapping[str, Any]) -> list[str]:
  """Blocks of Markdown.

  Args:
    name: Arm and group.
    found: Of `critical_batch` in NAME.json.
  """
  titles = [f"{rows:g} rows" for rows in found["batches"]]
  again = np.sum(found["recrossings"], axis=1)
  steps, left, fits = [], [], []
  for j, (share, loss) in enumerate(found["targets"].items()):
    goal = {"run": share, "loss": f"{float(loss):.4f}"}
    seeds = np.array(found["steps"][j], float).T
    texts = map(_steps, seeds)
    steps.append(goal | dict(zip(titles, texts, strict=True)))
    if again[j].any():
      left.append(goal | dict(zip(titles, map(str, again[j]), strict=True)))
    fits.append(goal | _fit(found, j))
  slopes = [
    {"of": _READINGS[kind].replace("b / a", "b / a and 0.2 b / a"),
     "exponent in data [90 %]": markdown.span(slope)}
    for kind, slope in found["slope"].items()
  ]  # fmt: skip
  blocks = [f"## Critical batch of {name}", _STEPS, markdown.table(steps)]
  if left:
    words = "How often the curves left a target again, all seeds:"
    blocks += [words, markdown.table(left)]
  return [*blocks, _FITS, markdown.table(fits), markdown.table(slopes)]


def _steps(seeds: np.ndarray) -> str:
  """Steps [S] to a target at a batch; "-" for inf."""
  n, reached = len(seeds), int(np.isfinite(seeds).sum())
  if reached == n:
    return f"{np.exp(np.log(seeds).mean()):.4g}"
  median = float(np.exp(np.median(np.log(seeds))))
  return f"{markdown.number(median, '{:.4g}') or '-'} ({reached} of {n})"


def _fit(found: Mapping[str, Any], j: int) -> dict[str, str]:
  fit, out = found["fits"][j], {}
  for name, value in (
    ("tokens, least", found["data"][j]),
    ("a, steps", fit["steps_min"]),
    ("b, rows", fit["samples_min"]),
  ):
    out[name] = markdown.short(float(value))
  for kind, name in _READINGS.items():
    tokens = float(fit[kind]["estimate"]) * found["row_tokens"]
    known = math.isfinite(tokens)
    out[f"{name}, rows"] = markdown.span(fit[kind]) if known else "-"
    out[f"{name}, rows"] += f"; {markdown.short(tokens)}" if known else ""
  return out | {"notes": "; ".join(fit["notes"])}
