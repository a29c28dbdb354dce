"""The page of a study, in Markdown, made from its JSON files alone."""

import math
from collections.abc import Sequence

from ..cli import text
from . import batch_tables, markdown, reading
from .reading import Result, Row, Times
from .tuning import RATE

_CAPTIONS = {
  "speed": "Speed-up by batch, with 90 % intervals; open marks are held out",
  "profile": "Share of the cells solved within a factor of the best method",
  "curves": "Losses by tokens, means and ranges of the seeds",
  "batch": "Steps to each target by batch, and the critical batch by data",
}


def page(result: Result, times: Times) -> str:
  """The whole page.

  Args:
    result: NAME.json, as `lm/study/report.py` writes it.
    times: NAME.times.json; {} leaves out what it would tell.
  """
  study = result["declaration"]
  blocks = [f"# {study['title']}", study["text"], *_made_by(result, times)]
  for kind in reading.pictures(result):
    blocks.append(f"![{_CAPTIONS[kind]}]({result['study']}_{kind}.png)")
  for title, cells in _sections(study).items():
    blocks += _section(result, times, title, cells)
  blocks += _own_curve(result) + _claims(result)
  for name, found in result["critical_batch"].items():
    blocks += batch_tables.section(name, found)
  blocks += _tried(result) + _left(result)
  return "\n\n".join(block.strip() for block in blocks if block) + "\n"


def _made_by(result: Result, times: Times) -> list[str]:
  made, runs = result["made_by"], result["runs"]
  report = sum("report" in [u["role"] for u in r["uses"]] for r in runs)
  line = f"{len(runs)} runs, {len(runs) - report} to tune and {report} to "
  line += f"report; {text.human(sum(r['tokens'] for r in runs))} tokens"
  if times.get("run_seconds"):
    line += f", {text.duration(times['run_seconds'])} of all runs together"
  words = [f"commit {made['commit']}"] if made["commit"] else []
  words += [f"{name} {version}" for name, version in made["versions"].items()]
  words += made["devices"]
  if "measured" in times:
    words.append(f"updates timed on {times['measured']}")
  return [f"```sh\n{made['command']}\n```", f"{line}. {', '.join(words)}."]


def _sections(study) -> dict[str, list[str]]:
  """Cells by title: one each if there are speed-ups, else by group."""
  if study["horizons"]:
    return {cell: [cell] for cell in study["cells"]}
  found: dict[str, list[str]] = {}
  for name, cell in study["cells"].items():
    found.setdefault(cell["group"] or "Cells", []).append(name)
  return found


def _section(
  result: Result, times: Times, title: str, cells: Sequence[str]
) -> list[str]:
  """A table with an arm a row, best first in each cell."""
  notes = [_about(result, times, cell) for cell in cells]
  lines = [
    {"cell": cell} | _line(result, times, row)
    for cell in cells
    for row in reading.ranked(result, cell)
  ]
  if len(cells) == 1:
    lines = [line | {"cell": ""} for line in lines]
  else:
    notes = [f"- {cell}: {n}" for cell, n in zip(cells, notes, strict=True)]
  if all(line["depth"] in ("", "1") for line in lines):
    lines = [line | {"depth": ""} for line in lines]
  return [f"## {title}", "\n".join(notes), markdown.table(lines)]


def _about(result: Result, times: Times, name: str) -> str:
  """What a cell is, and who is faster than the reference there."""
  study, cell = result["declaration"], result["declaration"]["cells"][name]
  reference, seeds = study["reference"], len(study["seeds"])
  words = f"{cell['batch']} rows an update, {text.human(cell['tokens'])} "
  words += f"tokens a run, {seeds} seeds that report."
  if cell["settings_of"]:
    words += f" Held out: the settings are those of {cell['settings_of']}."
  ms = times.get("update_ms", {}).get(f"{reference} in {name}")
  if ms:
    words += f" An update of {reference} takes {ms:.3g} ms."
  kind = (name, "faster", reference, "reproduced")
  keys = ("cell", "claim", "than", "verdict")
  won = [
    c["arm"] for c in result["claims"] if kind == tuple(c[k] for k in keys)
  ]
  if won:
    words += f" Faster than {reference} by Holm's correction: {', '.join(won)}."
  return words


def _line(result: Result, times: Times, row: Row) -> dict[str, str]:
  """What a table says of an arm in a cell."""
  cost = times.get("costs", {}).get(f"{row['arm']} in {row['cell']}", {})
  ratio, n = reading.time_ratio(result, times, row), len(row["seeds"])
  bytes_ = cost.get("bytes_per_parameter", math.nan)
  ends = reading.horizons(result)
  speed = markdown.speed(row, ends)
  seeds = len(result["declaration"]["seeds"])
  return {
    "method": row["arm"],
    **_choice(row),
    "seeds": "" if row["done"] else f"{n} of {seeds}",
    "speed-up [90 %]": speed and speed + markdown.outside(row, ends),
    "verdict": _verdicts(result, row),
    "updates": markdown.number(row["updates"], "{:.0f}"),
    "time of an update": markdown.number(ratio, "{:.2f}"),
    "speed-up in seconds": markdown.speed(row, ends, 1 / ratio),
    "depth": markdown.number(cost.get("depth", row["depth"]), "{:g}"),
    "bytes a parameter": markdown.number(bytes_, "{:.2f}"),
    "FLOP a token": text.human(cost["flop_per_token"]) if cost else "",
  }


def _choice(row: Row) -> dict[str, str]:
  """Settings, trials with the mark of an edge, and losses."""
  mark = " (edge, not ranked)" if row["edge"] else ""
  return {
    "rate": f"{row['settings'][RATE]:.4g}",
    "vertex": markdown.number(row["vertex"], "{:.3g}"),
    "other settings": markdown.settings(row["settings"], [RATE]),
    "trials": f"{row['trials']}{mark}" if row["trials"] else "",
    **{f"final {k}": markdown.mean(v) for k, v in row["losses"].items()},
  }


def _verdicts(result: Result, row: Row) -> str:
  """Of the claims about an arm and the reference."""
  place = row["arm"], row["cell"], result["declaration"]["reference"]
  return "; ".join(
    f"{c['claim']}: {c['verdict']}"
    + (f" (raw: {c['raw']})" if c["raw"] != c["verdict"] else "")
    for c in result["claims"]
    if (c["arm"], c["cell"], c["than"]) == place
  )


def _own_curve(result: Result) -> list[str]:
  """The reference at all its horizons."""
  lines, reference = [], result["declaration"]["reference"]
  for cell in result["declaration"]["cells"]:
    places = [reference, cell]
    rows = [r for r in result["table"] if [r["arm"], r["cell"]] == places]
    for row in (
      sorted(rows, key=lambda r: r["horizon"]) if len(rows) > 1 else ()
    ):
      lines.append({"cell": cell, "horizon": f"{row['horizon']:g}"})
      lines[-1] |= _choice(row)
  title = f"## The curve of {reference}, by which speed-ups are read"
  return [title, markdown.table(lines)] if lines else []


def _claims(result: Result) -> list[str]:
  lines = [
    {
      "claim": c["claim"], "method": c["arm"], "than": c["than"],
      "cell": c["cell"], "estimate [90 %]": markdown.span(c), "n": str(c["n"]),
      "p": markdown.number(c["p"], "{:.2g}"),
      "p by Holm": markdown.number(c["p_holm"], "{:.2g}"), "raw": c["raw"],
      "verdict": c["verdict"], "rule": c["rule"],
    }
    for c in result["claims"]
  ]  # fmt: skip
  return ["## Claims", markdown.table(lines)] if lines else []


def _tried(result: Result) -> list[str]:
  """All trials in their order, a place a row."""
  lines = []
  for row in result["table"]:
    trials = [
      markdown.trial(settings, loss, row["settings"], RATE)
      for settings, loss in row["tried"]
    ]
    horizon = "" if row["horizon"] == 1 else f"{row['horizon']:g}"
    line = {"cell": row["cell"], "method": row["arm"], "horizon": horizon}
    if trials:
      lines.append(line | {"rate: loss": ", ".join(trials)})
  seeds = ", ".join(map(str, result["declaration"]["tuning_seeds"]))
  words = "Trials in their order, with the mean loss of the tuning seeds "
  words += f"({seeds}). In brackets: what else is not as chosen, in bold."
  return ["## What was tried", words, markdown.table(lines)] if lines else []


def _left(result: Result) -> list[str]:
  """Runs that are missing, and folders that are not used."""
  missing, foreign, blocks = result["missing"], result["foreign"], []
  if missing or result["waiting"]:
    words = f"{len(missing)} runs can go now, and about {result['waiting']} "
    words += f"follow from them: {markdown.names(missing)}"
    blocks += ["## Missing runs", words]
  if foreign:
    words = (
      "Folders that the study has not asked for; nothing of them is used: "
    )
    blocks += ["## Foreign runs", words + markdown.names(foreign)]
  return blocks
