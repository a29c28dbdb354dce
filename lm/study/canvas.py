"""Panels, looks and legends of a study's pictures."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import reading
from .reading import Result

_COLOURED = 6  # Best methods; the reference is black, the others grey.
_BLACK = 6  # Its number in the palette.
GREY = "0.6"


def looks(result: Result) -> dict[str, dict[str, Any]]:
  """Looks of lines by arm, best first by the mean rank over cells."""
  ranks: dict[str, list[int]] = {}
  for cell in result["declaration"]["cells"]:
    for i, row in enumerate(reading.ranked(result, cell)):
      ranks.setdefault(row["arm"], []).append(i)
  reference = result["declaration"]["reference"]
  arms = sorted(ranks, key=lambda arm: np.mean(ranks[arm]))
  order = [arm for arm in arms if arm != reference]
  grey = {"color": GREY, "markerfacecolor": GREY, "linewidth": 0.9}
  found = {
    arm: look(i) | (grey if i >= _COLOURED else {})
    for i, arm in enumerate(order)
  }
  found[reference] = look(_BLACK) | {"linestyle": "-"}
  return {arm: found[arm] for arm in arms}


def look(i: int) -> dict[str, Any]:
  """Look number i of the palette."""
  from ..runs import plots  # It imports matplotlib, which is not always there.

  return plots.look(i, marked=True)


def panels(count: int, width: float, *, share_y: bool = False):
  """A figure and its axes, at most three beside one another."""
  from matplotlib import figure as mpl_figure

  columns = 2 if count == 4 else min(count, 3)
  lines = math.ceil(count / columns)
  size = max(7.0, width * columns), 3.4 * lines + 1.1
  figure = mpl_figure.Figure(figsize=size, layout="constrained")
  grid = figure.subplots(lines, columns, squeeze=False, sharey=share_y).ravel()
  for i, axes in enumerate(grid):
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_visible(i < count)
  return figure, grid[:count]


def logs(axes, label: str) -> None:
  """Both axes in logs, with numbers at 1, 2 and 5 of each decade."""
  from matplotlib import ticker

  axes.set(xscale="log", yscale="log", xlabel=label)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())


def count_tokens(axes) -> None:
  """Writes tokens as 100k."""
  from matplotlib import ticker

  axes.set_xlabel("tokens")
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))


def legend(figure, looks: Mapping[str, Any], title: str = "") -> None:
  """One entry a label below all panels."""
  from matplotlib import lines

  columns = max(1, int(figure.get_size_inches()[0] / 1.7))
  figure.legend(
    handles=[lines.Line2D([], [], label=k, **v) for k, v in looks.items()],
    loc="outside lower center", ncols=columns, frameon=False, fontsize=8,
    handlelength=3, title=title, title_fontsize=8,
  )  # fmt: skip
