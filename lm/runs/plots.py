"""Figures of runs, as `read.py` reads them.

Colours are Okabe and Ito's, which the colour-blind can tell apart. Line style
and marker change with the colour, so that a print without colour still works.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib import lines, ticker

from .read import Run

_COLORS = (
  "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
_STYLES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_LEGEND_CHARACTERS = 110  # In a line.
_SMOOTHING = 20  # The running mean spans this part of a curve.
_UNITS = ("steps", "tokens", "seconds")
_NORMS = (
  ("train/grad_norm", "gradient norm"),
  ("train/update_norm", "update norm"),
  ("train/param_norm", "parameter norm"),
)


def draw(
  runs: Sequence[Run], out: str | pathlib.Path, *, log_x: bool = False
) -> list[pathlib.Path]:
  """Writes loss.png, learning_rate.png and norms.png, of some microscaling.png.

  Returns:
    The files.
  """
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  figures = {
    "loss.png": loss_figure(runs, log_x=log_x),
    "learning_rate.png": _learning_rate_figure(runs, log_x),
    "norms.png": _norms_figure(runs, log_x),
  }
  if any("microscaling/zeta" in run.columns for run in runs):
    figures["microscaling.png"] = _microscaling_figure(runs)
  for name, figure in figures.items():
    figure.savefig(out / name, dpi=150)
  return [out / name for name in figures]


def loss_figure(
  runs: Sequence[Run], *, log_x: bool = False
) -> mpl_figure.Figure:
  """Train loss (light: as logged; full: smoothed) and evaluations (markers).

  One row an evaluation set, with the n-gram losses of its corpus as
  horizontal lines. `runs` are in the order of the legend.
  """
  sets = list(dict.fromkeys(name for run in runs for name in run.eval_sets()))
  figure, grid = _grid(runs, rows=max(1, len(sets)), log_x=log_x)
  for row, name in zip(grid, sets or [""], strict=True):
    _draw_row(row, runs, "train/loss", smoothed=True)
    for key in ("loss", "final_loss"):
      _draw_row(row, runs, f"eval/{name}/{key}", marked=True)
    row[0].set_ylabel(f"{name} loss (nats/token)".strip())
    row[0].set_ylim(*_loss_limits(runs, name, 0 if log_x else 0.04))
    _draw_floors(row, runs, name)
  title = "lines: train loss; markers: validation loss"
  _legend(figure, runs, title if sets else None)
  return figure


def _learning_rate_figure(runs, log_x):
  figure, grid = _grid(runs, rows=1, log_x=log_x)
  _draw_row(grid[0], runs, "train/learning_rate")
  grid[0][0].set_ylabel("learning rate")
  grid[0][0].set_ylim(bottom=0)
  grid[0][0].ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
  _legend(figure, runs)
  return figure


def _norms_figure(runs, log_x):
  """Global norms of gradients (before clipping), updates and parameters."""
  # The update's norm is written with `config.log.details_every` only.
  norms = [n for n in _NORMS if any(n[0] in run.columns for run in runs)]
  norms = norms or _NORMS[:1]
  figure, grid = _grid(runs, rows=len(norms), log_x=log_x)
  for row, (key, label) in zip(grid, norms, strict=True):
    noisy = key != "train/param_norm"
    _draw_row(row, runs, key, smoothed=noisy)
    row[0].set_ylabel(label)
    columns = [run.columns[key] for run in runs if key in run.columns]
    if noisy and any((column.values > 0).any() for column in columns):
      row[0].set_yscale("log")
      row[0].yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      row[0].yaxis.set_major_formatter("{x:g}")
      row[0].yaxis.set_minor_formatter(ticker.NullFormatter())
  _legend(figure, runs)
  return figure


def _microscaling_figure(runs):
  """The bias of gradients against the loss; then what the probe saw of gains.

  zeta grows while the loss falls, since the true gradient shrinks and the error
  does not: so it is drawn against the loss.
  """
  panels = (
    ("microscaling/zeta", "|g_low - g| / |g|", "train/loss"),
    ("microscaling/gain_last/floor", "share of gains in the last code", None),
    ("microscaling/weight_over", "share of weights beyond it", None),
  )
  figure = mpl_figure.Figure(figsize=(10, 3.6), layout="constrained")
  for axes, (key, label, other) in zip(
    figure.subplots(1, 3), panels, strict=True
  ):
    for i, run in enumerate(runs):
      if key not in run.columns:
        continue
      found = run.columns[key]
      x = found.steps
      if other:
        known = run.columns[other]
        x = np.interp(x, known.steps, known.values)
      axes.plot(x, found.values, **look(i, marked=True))
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.set(ylabel=label, xlabel="train loss" if other else "steps")
  figure.axes[0].invert_xaxis()
  _legend(figure, runs, "at the updates that the probe measured")
  return figure


def smooth(values: np.ndarray, width: int) -> np.ndarray:
  """Centred running mean that ignores non-finite values.

  Args:
    values: Shape [T].
    width: Values in the mean; fewer at the ends.

  Returns:
    Shape [T]; NaN where the window has no finite value.
  """
  finite = np.isfinite(values)
  kernel = np.ones(width)
  total = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
  count = np.convolve(finite.astype(np.float64), kernel, mode="same")
  with np.errstate(invalid="ignore"):
    return np.where(count > 0.5, total / count, np.nan)


def _grid(
  runs: Sequence[Run], rows: int, log_x: bool
) -> tuple[mpl_figure.Figure, np.ndarray]:
  """Axes [rows, 3] that share the vertical axis along a row."""
  height = 2.5 * rows + 0.6 + 0.22 * math.ceil(len(runs) / _columns(runs))
  figure = mpl_figure.Figure(figsize=(10, height), layout="constrained")
  grid = figure.subplots(rows, 3, sharex="col", sharey="row", squeeze=False)
  for axes in grid.flat:
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if log_x:
      axes.set_xscale("log")
  labels = ("steps", "tokens", f"time ({_time_unit(runs)[1]})")
  for axes, label in zip(grid[-1], labels, strict=True):
    axes.set_xlabel(label)
    counts = label in ("steps", "tokens")
    axes.xaxis.set_major_formatter(
      ticker.EngFormatter(sep="") if counts else "{x:g}"
    )
  return figure, grid


def _legend(
  figure: mpl_figure.Figure, runs: Sequence[Run], title: str | None = None
) -> None:
  """One entry a run, below all panels; with a title, its marker as well."""
  figure.legend(
    handles=[
      lines.Line2D([], [], label=run.name, **look(i, bool(title)))
      for i, run in enumerate(runs)
    ],
    loc="outside lower center",
    ncols=_columns(runs),
    frameon=False,
    handlelength=3.5,
    title=title,
    title_fontsize=9,
  )


def _columns(runs: Sequence[Run]) -> int:
  """Columns of the legend: up to three, as the names allow."""
  longest = max(len(run.name) for run in runs)
  return max(1, min(3, len(runs), _LEGEND_CHARACTERS // (longest + 10)))


def _time_unit(runs: Sequence[Run]) -> tuple[float, str]:
  """Seconds in the unit of the time axis, and its name."""
  timed = [run.columns["seconds"] for run in runs if "seconds" in run.columns]
  longest = max((seconds.values[-1] for seconds in timed), default=0.0)
  for scale, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
    if longest >= 3 * scale:
      return scale, name
  return 1.0, "seconds"


def look(i: int, marked: bool = False) -> dict[str, Any]:
  """Arguments of a line: the colour, style and marker of number i."""
  color = _COLORS[i % len(_COLORS)]
  found = {
    "color": color,
    "linestyle": _STYLES[i % len(_STYLES)],
    "linewidth": 1.6,
    "markersize": 5.5,
    "markerfacecolor": color,
    "markeredgecolor": "white",
    "markeredgewidth": 0.7,
  }
  return found | ({"marker": _MARKERS[i % len(_MARKERS)]} if marked else {})


def _draw_row(
  row: np.ndarray,
  runs: Sequence[Run],
  key: str,
  *,
  smoothed: bool = False,
  marked: bool = False,
) -> None:
  """The curve of a key, or a marker for each value, against three clocks."""
  scale = _time_unit(runs)[0]
  for axes, unit in zip(row, _UNITS, strict=True):
    for i, run in enumerate(runs):
      if key not in run.columns:
        continue
      steps, values = run.columns[key]
      x = run.clock(unit, steps) / (scale if unit == "seconds" else 1.0)
      width = len(values) // _SMOOTHING if smoothed else 1
      if width > 1:
        raw = look(i) | {"alpha": 0.25, "linewidth": 0.7, "linestyle": "-"}
        axes.plot(x, values, **raw)
        values = smooth(values, width)
      bare = {"linestyle": "none", "zorder": 4} if marked else {}
      axes.plot(x, values, **(look(i, marked) | bare))


def _draw_floors(row: np.ndarray, runs: Sequence[Run], name: str) -> None:
  """A line for each distinct n-gram loss in view, named beside the row."""
  floors = {
    (round(value, 3), gram)
    for run in runs
    for gram, value in run.floors(name).items()
  }
  low, high = row[-1].get_ylim()
  at = -math.inf  # Height of the last label.
  for value, gram in sorted(floors):
    if not low <= value <= high:
      continue
    for axes in row:
      axes.axhline(value, color="0.45", linewidth=0.9, linestyle=(0, (4, 3)))
    at = max(value, at + (high - low) / 16)  # Else close labels would overlap.
    row[-1].annotate(
      f"{gram} {value:.2f}",
      xy=(1, at),
      xycoords=("axes fraction", "data"),
      xytext=(3, 0),
      textcoords="offset points",
      va="center",
      fontsize=8,
      color="0.3",
      annotation_clip=False,
    )


def _loss_limits(
  runs: Sequence[Run], name: str, skip: float
) -> tuple[float, float]:
  """Room for all the losses but those of the first `skip` of each run."""
  lows, highs = [], []
  for run in runs:
    for key in ("train/loss", f"eval/{name}/loss", f"eval/{name}/final_loss"):
      if key in run.columns:
        values = run.columns[key].values
        values = values[np.isfinite(values)]
        lows.append(np.min(values, initial=math.inf))
        highs.append(
          np.max(values[int(skip * len(values)) :], initial=-math.inf)
        )
  low, high = min(lows, default=math.inf), max(highs, default=-math.inf)
  if not low < high:  # Nothing finite, or a single value.
    return (low - 0.5, low + 0.5) if math.isfinite(low) else (0.0, 1.0)
  return low - 0.05 * (high - low), high + 0.05 * (high - low)
