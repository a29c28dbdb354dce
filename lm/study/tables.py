"""The page of a study, in Markdown, made from its JSON files alone."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..cli import text
from . import reading
from .reading import Result, Row, Times
from .tuning import RATE


def page(result: Result, times: Times) -> str:
  """The page of NAME.json and NAME.times.json; {} leaves out the times."""
  study = result["declaration"]
  blocks = [f"# {study['title']}", study["text"], *_made_by(result, times)]
  for kind in reading.pictures(result):
    blocks.append(f"![{kind}]({result['study']}_{kind}.png)")
  for name, cell in study["cells"].items():
    words = f"{cell['batch']} rows an update, {cell['tokens']:,} tokens a run."
    if source := cell["settings_of"]:
      words += f" Held out: the settings are those of {source}."
    arms = [_arm(result, times, row) for row in reading.ranked(result, name)]
    blocks += _section(name, arms, words)
  claims = [{k: number(v) for k, v in c.items()} for c in result["claims"]]
  blocks += _section("Claims", claims)
  for name, found in result["critical_batch"].items():
    blocks += _critical_batch(name, found)
  laws = [_by_size(*item) for item in result["batch_by_size"].items()]
  words = "The target of the largest share of the tokens; b / a in rows."
  blocks += _section("Critical batch by size", laws, words)
  words = "In bold: the choice; in brackets: what else is not as chosen."
  tried = [_tried(row) for row in result["table"]]
  blocks += _section("What was tried", tried, words)
  words = f"About {result['waiting']} follow from the runs that can go now."
  for title, note in (("missing", words), ("foreign", "They are not used.")):
    runs = [{"run": id_} for id_ in result[title]]
    blocks += _section(f"{title.title()} runs: {len(runs)}", runs, note)
  return "\n\n".join(block.strip() for block in blocks if block) + "\n"


def number(value: Any) -> str:
  """Four digits of a float, "-" for nan; other values as they are."""
  words = f"{value:.4g}" if isinstance(value, float) else str(value)
  return "-" if words == "nan" else words


def span(found: Mapping[str, Any], show: Callable[[float], str] = number):
  """Estimate and ends of an interval."""
  middle, *ends = (float(found[k]) for k in ("estimate", "low", "high"))
  return f"{show(middle)} [{', '.join(map(show, ends))}]"


def speed(row: Row, horizons: Sequence[float], scale: float = 1.0) -> str:
  """A speed-up [90 %] times scale; "> 4" or "< 0.5" beyond the horizons."""
  if not row.get("speeds") or math.isnan(scale):
    return ""
  low, high = (number(end(horizons) * scale) for end in (min, max))
  ends = {0.0: f"< {low}", math.inf: f"> {high}"}
  show = lambda value: ends.get(value) or number(value * scale)  # noqa: E731
  return span(row["speed"], show) if "speed" in row else "1"


def mean(losses: Sequence[Any]) -> str:
  """Mean and standard error, or how many diverged."""
  x, n = np.array(losses, float), len(losses)
  if lost := int(np.sum(~np.isfinite(x))):
    return f"diverged in {lost} of {n}"
  error = f" ± {x.std(ddof=1) / math.sqrt(n):.4f}" if n > 1 else ""
  return f"{x.mean():.4f}{error}" if n else ""


def _section(title: str, rows: Sequence[Mapping[str, str]], words: str = ""):
  """Heading, words, table; a column of nothing but "-" or 1 is left out."""
  names = dict.fromkeys(name for row in rows for name in row)
  texts = {name: [row.get(name) or "-" for row in rows] for name in names}
  kept = {name: some for name, some in texts.items() if {*some} - {"-", "1"}}
  lines = [kept, ["---"] * len(kept), *zip(*kept.values(), strict=True)]
  lines = [" | ".join(t.replace("|", "\\|") for t in line) for line in lines]
  table = "\n".join(f"| {line} |" for line in lines)
  return [f"## {title}", words, table] if rows else []


def _made_by(result: Result, times: Times) -> list[str]:
  """The command, and what it ran, in sentences."""
  made, runs = result["made_by"], result["runs"]
  report = sum("report" in [u["role"] for u in run["uses"]] for run in runs)
  words = f"{len(runs)} runs, {len(runs) - report} to tune and {report} to "
  words += f"report, saw {text.human(sum(r['tokens'] for r in runs))} tokens"
  if times.get("run_seconds"):
    words += f" in {text.duration(times['run_seconds'])} of all runs together"
  words += f", on {', '.join(made['devices']) or 'no machine so far'}."
  words += f" The page was made by commit {made['commit'] or 'unknown'} with "
  versions = [f"{name} {version}" for name, version in made["versions"].items()]
  words += f"{', '.join(versions)}."
  if times.get("machine"):
    words += f" Updates were timed on {times['measured']}, on a machine of "
    words += f"{times['machine']}."
  return [f"```sh\n{made['command']}\n```", words]


def _arm(result: Result, times: Times, row: Row) -> dict[str, str]:
  """What a table says of an arm in a cell."""
  study, name, cell = result["declaration"], row["arm"], row["cell"]
  mine, other = (f"{arm} in {cell}" for arm in (name, study["reference"]))
  ms, cost = times.get("update_ms", {}), times.get("costs", {}).get(mine, {})
  ratio = ms.get(mine, math.nan) / ms.get(other, math.nan)
  place = {"arm": name, "cell": cell, "than": study["reference"]}
  claims = [c for c in result["claims"] if place.items() <= c.items()]
  return {
    "method": name, "rate": number(row["settings"][RATE]),
    "vertex": number(row["vertex"]),
    "other settings": _settings(row["settings"], {RATE}),
    "trials": f"{row['trials']}{' (edge, not ranked)' if row['edge'] else ''}",
    "seeds": f"{len(row['seeds'])} of {len(study['seeds'])}",
    **{f"final {score}": mean(x) for score, x in row["losses"].items()},
    "speed-up [90 %]": speed(row, study["horizons"]),
    "verdict": "; ".join(f"{c['claim']}: {c['verdict']}" for c in claims),
    "updates": number(row["updates"]), "time of an update": number(ratio),
    "speed-up in seconds": speed(row, study["horizons"], 1 / ratio),
    "depth": number(cost.get("depth", row["depth"])),
    "bytes a parameter": number(cost.get("bytes_per_parameter", "")),
    "FLOP a token": text.human(cost["flop_per_token"]) if cost else "",
  }  # fmt: skip


def _critical_batch(name: str, found: Mapping[str, Any]) -> list[str]:
  """Steps to each target by batch; fits, and their exponents in the data."""
  counts, fits = [], []
  for j, (share, loss) in enumerate(found["targets"].items()):
    fit, goal = found["fits"][j], {"run": share, "loss": number(loss)}
    steps = map(_steps, np.array(found["steps"][j], float).T)
    titles = [f"{batch:g} rows" for batch in found["batches"]]
    counts.append(goal | dict(zip(titles, steps, strict=True)))
    numbers = found["data"][j], fit["steps_min"], fit["samples_min"]
    goal |= zip(("least data", "a", "b"), map(number, numbers), strict=True)
    goal |= {k: span(fit[k]) for k in ("ratio", "free", "paper", "measured")}
    fits.append(goal | {"notes": "; ".join(fit["notes"])})
  slopes = {kind: span(slope) for kind, slope in found["slope"].items()}
  fits.append({"run": "exponent in data"} | slopes)
  words = "The fit is a + b / B, and batches are in rows: ratio is b / a, and "
  words += "measured is paper without the fit. The least data are in tokens."
  steps = _section(f"Steps of {name} to each target", counts)
  return steps + _section(f"Critical batch of {name}", fits, words)


def _by_size(arm: str, found: Mapping[str, Any]) -> dict[str, str]:
  """b / a of each size, and its exponents in the size."""
  ratios = dict(zip(found["groups"], map(number, found["batch"]), strict=True))
  slopes = {f"exponent of {k}": span(v) for k, v in found["slope"].items()}
  return {"method": arm, **ratios, **slopes}


def _steps(seeds: np.ndarray) -> str:
  """Steps of seeds [S] to a target: the mean, or the median if one is inf."""
  n, reached, logs = len(seeds), int(np.isfinite(seeds).sum()), np.log(seeds)
  middle = np.exp(logs.mean() if reached == n else np.median(logs))
  return f"{middle:.4g}" + f" ({reached} of {n})" * (reached < n)


def _settings(given: Mapping[str, Any], skip: set[str]) -> str:
  """E.g. "b2 0.95, weight_decay 0.1"."""
  return ", ".join(f"{k} {number(given[k])}" for k in given if k not in skip)


def _tried(row: Row) -> dict[str, str]:
  """Trials, e.g. "0.003 (b2 0.98): 4.4240", and the final loss."""
  trials, chosen = [], row["settings"]
  for given, loss in row["tried"]:
    same = {RATE} | {key for key in given if given[key] == chosen[key]}
    other = f" ({words})" if (words := _settings(given, same)) else ""
    trial = f"{number(given[RATE])}{other}: {mean([loss])}"
    trials.append(f"**{trial}**" if given == chosen else trial)
  return {
    "cell": row["cell"], "method": row["arm"],
    "horizon": number(row["horizon"]), "rate: loss": ", ".join(trials),
    "final loss": mean(next(iter(row["losses"].values()))),
  }  # fmt: skip
