"""The pictures of a study, drawn from its JSON files alone."""

import math
import pathlib

import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib import lines, ticker

from ..runs import plots
from . import curves, reading, tables
from .reading import Result, Times

# Exact B* of least squares at 2^6, 2^7, ... samples; it takes seconds to find.
THEORY = np.array([6.983093, 9.871194, 17.89973, 24.56113, 39.1957, 61.61177,
                   102.9283, 150.4463, 240.7909])  # fmt: skip
_INTERVAL = ("estimate", "low", "high")


def draw(result: Result, times: Times, out: pathlib.Path) -> list[pathlib.Path]:
  """Writes NAME_KIND.png to the folder `out`; see `tables.page`."""
  draws = {"speed": _speed, "profile": _profile, "curves": _curves}
  paths = []
  for kind in reading.pictures(result):
    paths.append(out / f"{result['study']}_{kind}.png")
    draws.get(kind, _batch)(result).savefig(paths[-1], dpi=150)
  return paths


def _speed(result: Result):
  """Speed-ups beside one another at each batch, a panel a group."""
  study, looks = result["declaration"], _looks(result, marked=True)
  cells, ends = study["cells"], (min(study["horizons"]), max(study["horizons"]))
  del looks[study["reference"]]
  titles = [*dict.fromkeys(cell["group"] for cell in cells.values())]
  batches = sorted({cell["batch"] for cell in cells.values()})
  figure, grid = _panels(len(titles), 4.6, sharey=True)
  for axes, title in zip(grid, titles, strict=True):
    axes.axhline(1, color="0.2", linewidth=1)
    axes.set(xticks=range(len(batches)), xticklabels=batches, title=title)
    axes.set(xlim=(-0.5, len(batches) - 0.5), xlabel="rows of a batch")
  for row in (row for row in result["table"] if "speed" in row):
    cell, look = cells[row["cell"]], looks[row["arm"]]
    axes = grid[titles.index(cell["group"])]
    place = ([*looks].index(row["arm"]) + 0.5) / len(looks) - 0.5
    x = batches.index(cell["batch"]) + 0.8 * place
    y, *bar = np.clip([float(row["speed"][k]) for k in _INTERVAL], *ends)
    pale = {"color": look["color"], "alpha": 0.4 if row["edge"] else 1}
    face = "white" if cell["settings_of"] else look["color"]
    axes.plot([x, x], bar, **pale)
    axes.plot(x, y, marker=look["marker"], markerfacecolor=face, **pale)
  grid[0].set_ylabel(f"speed-up over {study['reference']}")
  title = f"open: held out; pale: rate at an edge; cut at {ends[0]}, {ends[1]}"
  return _legend(figure, looks, title, linestyle="none")


def _profile(result: Result):
  """Share of cells within a factor of the best."""
  rows = [r for r in result["table"] if r["horizon"] == 1 and r.get("speeds")]
  found = {(row["arm"], row["cell"]): row for row in rows}
  cells, looks = {cell for _, cell in found}, _looks(result)
  arms = [arm for arm in looks if all((arm, cell) in found for cell in cells)]
  used = [found[arm, cell] for arm in arms for cell in cells]
  speeds = [0 if row["edge"] else reading.speed(row) for row in used]
  most = max(result["declaration"]["horizons"])
  with np.errstate(divide="ignore"):
    costs = 1 / np.clip(np.nan_to_num(speeds), 0, most)
  profile = curves.profile(costs.reshape(len(arms), len(cells)))
  figure, (axes,), labels = *_panels(1, 7), {}
  for i in np.argsort(-profile.integral, kind="stable"):
    labels[f"{arms[i]} {profile.integral[i]:.2f}"] = look = looks[arms[i]]
    axes.step(profile.factors, profile.share[i], where="post", **look)
  axes.set(xlim=(1, 4), xlabel="tokens to the loss over the best method's")
  axes.set(ylim=(0, 1.03), ylabel="share of cells")
  title = "numbers: the mean share; a rate at an edge counts as no speed-up"
  return _legend(figure, labels, title)


def _curves(result: Result):
  """Means and ranges of the seeds after a fifth of the run, a panel a cell."""
  looks, cells = _looks(result), result["declaration"]["cells"]
  figure, grid = _panels(len(cells), 4)
  for axes, cell in zip(grid, cells, strict=True):
    for row in reversed(reading.ranked(result, cell)):
      if runs := reading.curves(result, row):
        x, look = min(runs, key=np.size)[0], looks[row["arm"]]
        x = x[x.size // 5 :]
        y = np.array([np.interp(x, *run) for run in runs])
        axes.plot(x, y.mean(0), **look)
        axes.fill_between(x, y.min(0), y.max(0), color=look["color"], alpha=0.2)
    axes.set(title=cell, ylabel="loss (nats/token)", xlabel="tokens")
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
  return _legend(figure, looks, "")


def _batch(result: Result):
  """Steps against batch, a panel an arm; then b / a against data."""
  found = {k: v for k, v in result["critical_batch"].items() if v["fits"]}
  figure, (*grid, law) = _panels(len(found) + 1, 4)
  labels, theory, shape = {}, [], THEORY / THEORY[4]
  for i, (name, fit) in enumerate(found.items()):
    _steps(grid[i], name, fit)
    look, slope = plots.look(i, marked=True), fit["slope"]["ratio"]
    labels[f"{name}: {tables.span(slope)}"] = look
    ratio = [[f["ratio"][k] for f in fit["fits"]] for k in _INTERVAL]
    points = np.array([fit["data"], *ratio], float)
    x, y, *ends = points[:, np.isfinite(points).all(0)]
    if x.size:
      at = np.exp(np.mean(np.log([x, y]), 1))
      law.plot(x, y, **look | {"linestyle": "none"})
      law.vlines(x, *ends, color=look["color"])
      line = at[1] * (x / at[0]) ** float(slope["estimate"])
      law.plot(x, line, color=look["color"])
      theory = theory or [at[0] * 2.0 ** np.arange(-4, 5), at[1] * shape]
  law.set(title="critical batch", ylabel="b / a (rows)")
  law.set(xscale="log", yscale="log", xlabel="least data (tokens)")
  limits, look = law.axis(), {"color": "0.4", "linestyle": "--"}
  law.plot(*theory, **look)
  law.axis(limits)
  labels["least squares: exact B*, moved to the first"] = look
  return _legend(figure, labels, "exponent in data [90 %]")


def _steps(axes, name, fit):
  """Steps to each target, means and ranges of the seeds, with the fits."""
  batches = np.array(fit["batches"], float)
  fine = np.geomspace(batches[0], batches[-1])
  for j, share in enumerate(fit["targets"]):
    look, read = plots.look(j, marked=True), fit["fits"][j]
    steps = np.array(fit["steps"][j], float)  # [S, B]; inf is not drawn.
    mean = np.exp(np.log(steps).mean(0))
    axes.plot(batches, mean, label=share, **look | {"linestyle": "none"})
    axes.vlines(batches, steps.min(0), steps.max(0), color=look["color"])
    line = float(read["steps_min"]) + float(read["samples_min"]) / fine
    axes.plot(fine, line, color=look["color"])
  axes.set(title=name, yscale="log", xlabel="rows of a batch", ylabel="steps")
  axes.set_xscale("log", base=2)
  title = "loss at this part of\nthe run, with a + b / B"
  axes.legend(title=title, frameon=False, fontsize=8, title_fontsize=8)


def _looks(result: Result, marked: bool = False):
  """Looks of lines by arm, best first; the reference is black, number 6."""
  reference, cells = (result["declaration"][k] for k in ("reference", "cells"))
  rows = [row for cell in cells for row in reading.ranked(result, cell)]
  arms = [*dict.fromkeys(row["arm"] for row in rows)]
  others = [arm for arm in arms if arm != reference]
  numbers = {arm: i + i // 6 for i, arm in enumerate(others)} | {reference: 6}
  return {arm: plots.look(numbers[arm], marked) for arm in arms}


def _panels(count, width, **share):
  """A figure and its axes, at most three beside one another."""
  columns, rows = min(count, 3), math.ceil(count / 3)
  size = max(7.0, width * columns), 3.4 * rows + 1.1
  figure = mpl_figure.Figure(figsize=size, layout="constrained")
  grid = figure.subplots(rows, columns, squeeze=False, **share).ravel()
  for i, axes in enumerate(grid):
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.set_visible(i < count)
  return figure, grid[:count]


def _legend(figure, looks, title, **change):
  """The figure, with one entry a label below all panels."""
  figure.legend(
    handles=[lines.Line2D([], [], label=k, **looks[k] | change) for k in looks],
    loc="outside lower center", ncols=int(figure.get_figwidth() / 1.7),
    title=title, frameon=False, fontsize=8, title_fontsize=8,
  )  # fmt: skip
  return figure
