"""Table and curves of docs/scaling.md: estimated times from exact counts.

    python -m benchmarks.scale.draw [--counts=FILE] [--figures=docs/figures]

AdamW and LOTION follow from the law of `cost.py` for every number of devices;
SOAP and Gauss-Newton are what was compiled. Times are of TPU v5p, by ring
formulas, and nothing hides communication: efficiency is a lower bound.
"""

import argparse
import pathlib

from benchmarks.scale import cost, measure, points
from lm.cli.text import format_table
from lm.model import mesh as meshes
from lm.runs import plots
from lm.step import build, flops

DEVICES = (8, 64, 512, 2048, 4096)
BATCH = 4096 * 1024  # Tokens of a pass, when scaling strongly.
SLICE = 256  # Devices of a slice, where slices are joined by a network.
_STYLES = {"adamw": "-", "lotion": "--", "soap": "-.", "gauss_newton": ":"}
_NAMES = {
  "adamw": "AdamW", "lotion": "LOTION", "soap": "SOAP",
  "gauss_newton": "Gauss-Newton",
}  # fmt: skip
_PASSES = {"gauss_newton": points.INNER + points.SEARCH}


def by_law(method: str, size: str, devices: int) -> points.Counts:
  """Counts of AdamW, or of LOTION less its scalars, without compiling."""
  config = points.config_of(method, size, devices)
  mesh = meshes.abstract_mesh(config.mesh.sizes, devices)
  plain = points.config_of("adamw", size, devices)
  return points.Counts(
    dict(mesh.shape),
    model_flops(config.model),
    measure.hbm_bytes(build.build(config, mesh=mesh)),
    cost.law(plain, dict(mesh.shape)),
    config.tokens_per_step,
  )


def model_flops(cfg) -> int:
  """Products of a pass on a device, full squares of attention, recomputed.

  But for the last product of each block, which nobody needs again.
  """
  each = flops.train_flops_per_token(cfg, causal_half=False, recompute=True)
  return round((each - 2 * cfg.N * cfg.D * cfg.F) * points.TOKENS)


def check(measured: dict) -> list[str]:
  """How far the law is from what was compiled, one line a point."""
  lines = []
  for (method, size), row in measured.items():
    if method not in ("adamw", "lotion"):
      continue
    for devices, counts in row.items():
      wanted = by_law(method, size, devices)
      keys = {*wanted.sent, *counts.sent}
      rest = sum(counts.sent.get(k, 0) - wanted.sent.get(k, 0) for k in keys)
      lines.append(
        f"{method} {size} on {devices}: compiled - law = {rest} bytes of "
        f"{sum(counts.sent.values())}, products {counts.flops - wanted.flops}"
      )
  return lines


def curves(measured: dict) -> dict:
  """(method, size) -> counts by devices, for the figure."""
  found = {}
  for size in points.SIZES:
    for method in ("adamw", "lotion"):
      found[method, size] = {n: by_law(method, size, n) for n in DEVICES}
    for method in ("soap", "gauss_newton"):
      row = dict(sorted(measured.get((method, size), {}).items()))
      if row:
        found[method, size] = row
  return found


def strong(method: str, size: str, counts: points.Counts) -> float:
  """Tokens a second when a pass has `BATCH` tokens, whatever the devices.

  With less than `points.TOKENS` a device, products of the model shrink, those
  of the optimiser and the communication of weights do not; with more, passes
  are repeated, and all but the reduction over replicas with them.
  """
  config = points.config_of(method, size, counts.devices)
  share = BATCH / counts.devices / points.TOKENS
  model = model_flops(config.model) * _PASSES.get(method, 1)
  if method == "gauss_newton":  # Its local model has products of its own.
    model = counts.flops
  scaled = counts._replace(
    flops=round(model * share + max(0, counts.flops - model)),
    hbm=round(counts.hbm * max(1.0, share)),
    sent={
      key: round(n * (max(1.0, share) if "fsdp" in key[1] else 1))
      for key, n in counts.sent.items()
    },
  )
  return BATCH * _PASSES.get(method, 1) / cost.seconds(scaled, cost.V5P).total


def table(found: dict) -> str:
  """Bytes and estimated times of an update, a row for each point."""
  header = [
    "method", "size", "chips", "products TFLOP", "sent MB", "over data MB",
    "products ms", "memory ms", "links ms", "efficiency",
    f"slices of {SLICE}",
  ]  # fmt: skip
  rows = []
  for (method, size), row in found.items():
    for devices, counts in row.items():
      time = cost.seconds(counts, cost.V5P)
      far = cost.seconds(counts, cost.V5P, SLICE)
      data = sum(n for (_, axes), n in counts.sent.items() if "data" in axes)
      rows.append(
        [
          _NAMES[method],
          size,
          f"{devices}",
          f"{counts.flops / 1e12:.4g}",
          f"{sum(counts.sent.values()) / 1e6:.5g}",
          f"{data / 1e6:.4g}",
          f"{1e3 * time.products:.4g}",
          f"{1e3 * time.hbm:.4g}",
          f"{1e3 * time.ici:.4g}",
          f"{time.local / time.total:.2f}",
          f"{far.local / far.total:.2f}",
        ]  # fmt: skip
      )
  return format_table(header, rows)


def draw(found: dict, path: pathlib.Path) -> None:
  """Weak and strong scaling, a column for each size."""
  from matplotlib import figure as mpl_figure

  figure = mpl_figure.Figure(figsize=(11, 6.2), layout="constrained")
  grid = figure.subplots(2, len(points.SIZES), sharex=True, squeeze=False)
  colors = dict(zip(_NAMES, plots._COLORS, strict=False))
  for column, size in enumerate(points.SIZES):
    weak, hard = grid[0][column], grid[1][column]
    weak.set_title(f"{size} parameters")
    for method, name in _NAMES.items():
      row = found.get((method, size), {})
      style = dict(color=colors[method], linestyle=_STYLES[method], marker="o",
                   markersize=3, label=name)  # fmt: skip
      times = {n: cost.seconds(c, cost.V5P) for n, c in row.items()}
      weak.plot(
        list(times), [t.local / t.total for t in times.values()], **style
      )
      rates = {n: strong(method, size, c) for n, c in row.items()}
      hard.plot(list(rates), list(rates.values()), **style)
    ideal = hard.get_lines()[0].get_xydata()
    hard.plot(
      ideal[:, 0], ideal[0, 1] * ideal[:, 0] / ideal[0, 0], color="0.7",
      linewidth=0.8, zorder=0,
    )  # fmt: skip
    hard.set(xscale="log", yscale="log", xlabel="TPU v5p chips")
    weak.set_ylim(0, 1.02)
    ticks = [8, 64, 512, 4096]
    hard.set_xticks(ticks, [str(n) for n in ticks])
    hard.minorticks_off()
  grid[0][0].set_ylabel("weak: share of time not\nspent communicating")
  grid[1][0].set_ylabel(
    f"strong: tokens/s,\n{BATCH / 2**20:.0f}M tokens a pass"
  )
  grid[0][0].legend(frameon=False)
  path.mkdir(parents=True, exist_ok=True)
  figure.savefig(path / "scaling.png", dpi=150)


def main() -> None:
  """Prints the checks and the table; draws if told where."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--counts", type=pathlib.Path, default=points.COUNTS)
  parser.add_argument("--figures", type=pathlib.Path, default=None)
  args = parser.parse_args()
  measured = points.read(args.counts)
  print("\n".join(check(measured)))
  found = curves(measured)
  print(table(found))
  if args.figures is not None:
    draw(found, args.figures)


if __name__ == "__main__":
  main()
