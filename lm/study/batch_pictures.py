"""The picture of a study on the critical batch size."""

import numpy as np

from . import canvas, markdown
from .reading import Result, Times

# Exact B* of least squares: batches.theory_curve(SAMPLES, 2.0 ** np.arange(9)),
# nan left out. Kept here, since it takes seconds.
SAMPLES = 2.0 ** np.arange(6, 15)
THEORY = (
  6.983093, 9.871194, 17.89973, 24.56113, 39.1957, 61.61177, 102.9283, 150.4463,
  240.7909,
)  # fmt: skip


def figure(result: Result, times: Times):
  """Steps against batch, a panel an arm; then b / a against data."""
  found = {k: v for k, v in result["critical_batch"].items() if v["fits"]}
  figure, grid = canvas.panels(len(found) + 1, 4)
  law, looks = grid[-1], canvas.looks(result)
  canvas.logs(law, "")
  for i, (name, fit) in enumerate(found.items()):
    _steps(grid[i], fit)
    grid[i].set_title(name)
    _law(law, fit, looks.get(name) or canvas.look(i), name)
  low, high = law.get_ylim()
  law.set_ylim(low / (high / low) ** 0.6, high)  # Room for the legend.
  reference = result["declaration"]["reference"]
  first = next((k for k in found if k.split(" ")[0] == reference), [*found][0])
  _theory(law, found[first])
  law.set(title="critical batch", ylabel="b / a (rows)")
  canvas.count_tokens(law)
  law.set_xlabel("least data (tokens)")
  law.legend(
    frameon=False, fontsize=8, title="exponent in data [90 %]",
    title_fontsize=8, loc="lower right",
  )  # fmt: skip
  return figure


def _steps(axes, fit):
  """Steps to each target, means and ranges of the seeds, with the fits."""
  batches = np.array(fit["batches"], float)
  fine = np.geomspace(batches[0], batches[-1], 99)
  for j, share in enumerate(fit["targets"]):
    look, read = canvas.look(j), fit["fits"][j]
    steps = np.array(fit["steps"][j], float)  # [S, B]
    known = np.isfinite(steps).all(0)
    logs = np.log(steps[:, known])
    bare = look | {"linestyle": "none"}
    axes.plot(batches[known], np.exp(logs.mean(0)), label=share, **bare)
    ends = np.exp([logs.min(0), logs.max(0)])
    axes.vlines(batches[known], *ends, color=look["color"])
    a, b = float(read["steps_min"]), float(read["samples_min"])
    axes.plot(fine, a + b / fine, color=look["color"], linewidth=1)
  canvas.logs(axes, "rows of a batch")
  axes.set_xticks(batches, [f"{rows:g}" for rows in batches])
  axes.minorticks_off()
  axes.set_ylabel("steps; lines: a + b / B")
  axes.legend(
    frameon=False, fontsize=8, title="loss at this part\nof the run",
    title_fontsize=8,
  )  # fmt: skip


def _points(fit):
  """Data, b / a and its ends where all fits have one, [4, J]."""
  ratio = np.array(
    [[f["ratio"][k] for k in ("estimate", "low", "high")] for f in fit["fits"]],
    float,
  )
  points = np.array([np.array(fit["data"], float), *ratio.T])
  return points[:, np.isfinite(points[:2]).all(0)]


def _law(axes, fit, look, name):
  """b / a with intervals by data, and its power law."""
  x, y, low, high = _points(fit)
  if not x.size:
    return
  slope = fit["slope"]["ratio"]
  label = f"{name}: {markdown.span(slope)}"
  axes.plot(x, y, label=label, **look | {"linestyle": "none"})
  narrow = (low > 0) & (high < np.inf)
  axes.vlines(x[narrow], low[narrow], high[narrow], color=look["color"])
  at = np.exp(np.mean(np.log([x, y]), 1))
  law = at[1] * (x / at[0]) ** float(slope["estimate"])
  axes.plot(x, law, color=look["color"], linewidth=1)


def _theory(axes, fit):
  """The exact curve of least squares, moved onto an arm's points."""
  x, y = _points(fit)[:2]
  if not x.size:
    return
  limits, middle = (axes.get_xlim(), axes.get_ylim()), len(THEORY) // 2
  scale = np.exp([np.log(x).mean(), np.log(y).mean()])
  axes.plot(
    SAMPLES / SAMPLES[middle] * scale[0],
    np.array(THEORY) / THEORY[middle] * scale[1],
    color="0.4", linestyle="--", label="least squares: exact B*, moved here",
  )  # fmt: skip
  axes.set(xlim=limits[0], ylim=limits[1])
