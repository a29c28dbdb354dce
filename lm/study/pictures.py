"""Pictures of a study, drawn from its JSON files."""

import math
import pathlib

import numpy as np

from . import batch_pictures, canvas, curves, reading
from .reading import Result, Times


def draw(result: Result, times: Times, out: pathlib.Path) -> list[pathlib.Path]:
  """Writes NAME_KIND.png of each kind in `reading.pictures`.

  Args:
    result: NAME.json, as `lm/study/report.py` writes it.
    times: NAME.times.json; {} if there is none.
    out: Folder, which exists.

  Returns:
    The files.
  """
  paths, figures = [], {
    "speed": _speed, "profile": _profile, "curves": _curves,
    "batch": batch_pictures.figure,
  }  # fmt: skip
  for kind in reading.pictures(result):
    paths.append(out / f"{result['study']}_{kind}.png")
    figures[kind](result, times).savefig(paths[-1], dpi=150)
  return paths


def _speed(result: Result, times: Times):
  """Speed-ups beside one another at each batch, a panel a group."""
  study, looks = result["declaration"], canvas.looks(result)
  cells, reference = study["cells"], study["reference"]
  del looks[reference]
  panels: dict[str, list[str]] = {}
  for name, cell in cells.items():  # A held-out cell is beside its source.
    group = cells.get(cell["settings_of"], cell)["group"]
    panels.setdefault(group, []).append(name)
  figure, grid = canvas.panels(len(panels), 4.6, share_y=True)
  for axes, (group, names) in zip(grid, panels.items(), strict=True):
    batches = sorted({cells[name]["batch"] for name in names})
    gap = min([*np.diff(np.log2(batches)), 2.0])  # In doublings of the batch.
    for name in names:
      held = bool(cells[name]["settings_of"])
      for row in (r for r in reading.ranked(result, name) if "speed" in r):
        place = [*looks].index(row["arm"]) + 0.4 * held - (len(looks) - 1) / 2
        x = cells[name]["batch"] * 2 ** (0.8 * gap * place / len(looks))
        _interval(axes, x, row, looks[row["arm"]], held)
    axes.axhline(1, color="0.2", linewidth=1, zorder=1)
    axes.set(xscale="log", yscale="log", title=group, xlabel="rows of a batch")
    axes.set_xticks(batches, [f"{batch:g}" for batch in batches])
    axes.grid(visible=False, axis="x")
    axes.minorticks_off()
    axes.set_xlim(batches[0] * 2 ** (-gap / 2), batches[-1] * 2 ** (gap / 2))
    for batch in batches[1:]:
      axes.axvline(batch * 2 ** (-gap / 2), color="0.85", linewidth=0.8)
  _limit(grid[0], result)
  grid[0].set_ylabel(f"speed-up over {reference}")
  low, high = reading.horizons(result)
  notes = "open: held out; pale: not ranked, the rate lies at an edge; arrow: "
  notes += f"beyond {low:g} to {high:g}"
  marks = {arm: look | {"linestyle": "none"} for arm, look in looks.items()}
  canvas.legend(figure, marks, notes)
  return figure


def _interval(axes, x, row, look, held):
  """A mark with its interval; an arrow at the border if it has no number."""
  value, *ends = (float(row["speed"][k]) for k in ("estimate", "low", "high"))
  style = look | {"linestyle": "none", "alpha": 0.4 if row["edge"] else 1.0}
  if held:
    style |= {"markerfacecolor": "white", "markeredgecolor": look["color"]}
  if 0 < value < math.inf:
    bar = np.clip(ends, 1e-3, 1e3)  # The limits of the axes cut it.
    axes.plot([x, x], bar, color=look["color"], alpha=style["alpha"])
    axes.plot(x, value, **style)
  elif not math.isnan(value):
    arrow, y = (r"$\uparrow$", 0.97) if value else (r"$\downarrow$", 0.03)
    style |= {"marker": arrow, "markersize": 9, "markeredgewidth": 0}
    axes.plot(x, y, transform=axes.get_xaxis_transform(), **style)


def _limit(axes, result):
  """Room for all that lies within the horizons, and some ticks."""
  low, high = reading.horizons(result)
  found = [r["speed"] for r in result["table"] if "speed" in r]
  ends = [float(e[k]) for e in found for k in ("low", "high", "estimate")]
  ends = [*(e for e in ends if low <= e <= high), 1 / 1.1, 1.1]
  limits = min(ends) / 1.07, max(ends) * 1.07
  ticks = (
    0.25,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    1,
    1.1,
    1.2,
    1.4,
    1.7,
    2,
    2.5,
    3,
    4,
    8,
  )
  ticks = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
  axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
  axes.set_ylim(limits)


def _profile(result: Result, times: Times):
  """Share of cells within a factor of the best, in seconds if measured."""
  rows = {
    (r["arm"], r["cell"]): r
    for r in result["table"]
    if r["horizon"] == 1 and r.get("speeds")
  }
  cells, looks = sorted({cell for _, cell in rows}), canvas.looks(result)
  looks = {a: v for a, v in looks.items() if all((a, c) in rows for c in cells)}
  used = [rows[arm, cell] for arm in looks for cell in cells]
  ratios = np.array([reading.time_ratio(result, times, row) for row in used])
  timed = bool(np.isfinite(ratios).all())
  speeds = np.array([reading.speed(result, row) for row in used])
  speeds = np.minimum(speeds, reading.horizons(result)[1])
  speeds[[row["edge"] for row in used] | np.isnan(speeds)] = 0
  with np.errstate(divide="ignore"):
    costs = (ratios if timed else 1) / speeds
  found = curves.profile(costs.reshape(len(looks), len(cells)))
  figure, (axes,) = canvas.panels(1, 7)
  labels, arms = {}, [*looks]
  for i in np.argsort(-found.integral, kind="stable"):
    look = looks[arms[i]] | {"marker": ""}
    axes.step(found.factors, found.share[i], where="post", **look)
    labels[f"{arms[i]} {found.integral[i]:.2f}"] = look
  unit = "seconds" if timed else "tokens"
  axes.set(xscale="log", xlim=(1, 4), ylim=(0, 1.03), ylabel="share of cells")
  axes.set_xlabel(f"{unit} to the loss, in those of the best method")
  ticks = (1, 1.25, 1.5, 2, 3, 4)
  axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
  axes.minorticks_off()
  title = (
    "numbers: the mean share up to 4; a rate at an edge counts as no speed-up"
  )
  canvas.legend(figure, labels, title)
  return figure


def _curves(result: Result, times: Times):
  """Means and ranges of the seeds, a panel a cell."""
  looks, cells = canvas.looks(result), [*result["declaration"]["cells"]]
  figure, grid = canvas.panels(len(cells), 4)
  for axes, cell in zip(grid, cells, strict=True):
    seen: list[float] = []
    for row in reversed(reading.ranked(result, cell)):
      runs = [np.array(c, float).T for c in reading.curves(result, row)]
      if not runs:
        continue
      look = looks[row["arm"]]
      x = runs[int(np.argmin([run.shape[1] for run in runs]))][0]
      y = np.array([np.interp(x, run[0], run[1]) for run in runs])
      top = 2 if look["color"] == canvas.GREY else 3
      axes.plot(x, y.mean(0), **look | {"marker": "", "zorder": top})
      axes.fill_between(
        x, y.min(0), y.max(0), color=look["color"], alpha=0.15, linewidth=0
      )
      seen += y[:, len(x) // 5 :].ravel().tolist()
    seen = [value for value in seen if math.isfinite(value)]
    if seen:  # The first part of a run is high, and so may a method be.
      low, high = min(seen), float(np.quantile(seen, 0.95))
      axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set(title=cell, ylabel="loss (nats/token)")
    canvas.count_tokens(axes)
  marks = {arm: look | {"marker": ""} for arm, look in looks.items()}
  canvas.legend(figure, marks)
  return figure
