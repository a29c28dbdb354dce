"""What the ended runs of a study say of its claims."""

import math
from typing import Any

import numpy as np

from . import curves, declare, statistics
from .book import Book
from .declare import Claim


def of_claim(book: Book, claim: Claim, fits: dict[Any, Any]):
  """(cell, arm, than, verdict) of a claim where its runs have ended."""
  study = book.study
  than = claim.than or study.reference
  if claim.claim == "exponent":
    for (arm, group), fit in fits.items():
      if claim.arm in ("*", arm) and claim.of in fit["draws"]:
        draws = fit["draws"][claim.of]
        verdict = statistics.exponent(draws, claim.centre, claim.tolerance)
        yield group, arm, "", verdict
    return
  for arm in declare.claimants(study, claim):
    for cell in declare.meetings(study, claim, arm):
      verdict = _verdict(book, claim, cell, arm, than)
      if verdict is not None:
        yield cell, arm, than, verdict


def _verdict(book: Book, claim: Claim, cell: str, arm: str, than: str):
  """The verdict in a cell; None if a run of it has not ended."""
  needed = {arm, than}
  if isinstance(claim.to, str) and claim.to:
    needed.add(claim.to)
  if not all(book.ended(name, cell) for name in needed):
    return None
  if claim.claim in ("lower", "equal"):
    mine, other = (book.losses(a, cell, claim.score) for a in (arm, than))
    test = statistics.lower if claim.claim == "lower" else statistics.equal
    limit = claim.threshold if claim.claim == "lower" else claim.margin
    verdict = test(_gaps(mine, other), limit)
  else:
    pairs = _counts(book, claim, cell, arm, than)
    if pairs is None:
      return None
    ratios = _gaps(logs(pairs[0]), logs(pairs[1]))
    verdict = statistics.faster(ratios, claim.threshold)
  edges = [name for name in (arm, than) if book.edge((name, cell, 1.0))]
  if not edges:
    return verdict
  rule = f"{verdict.rule}; not ranked: at an edge is the best rate of "
  rule += " and ".join(edges)
  return verdict._replace(kind=statistics.UNDECIDED, rule=rule, p=math.nan)


def _counts(book: Book, claim: Claim, cell: str, arm: str, than: str):
  """What both arms need for the same loss, by seed; None if not known yet."""
  goal, n = claim.to, len(book.study.seeds)
  if goal == "":
    of = book.study.reference
    names = (arm, than) if than != of else (arm,)
    speeds = [book.speeds(name, cell, claim.score) for name in names]
    if any(len(found) < n for found in speeds):
      return None
    with np.errstate(divide="ignore"):
      needs = [1 / np.array([v.value for v in f.values()]) for f in speeds]
    return [*needs, np.ones(n)][:2]
  if isinstance(goal, str):  # The loss that each of its seeds has reached.
    goal = max(book.losses(goal, cell, claim.score))
  if not math.isfinite(goal):
    return [[math.inf] * n] * 2  # That of a run that diverged: nobody's.
  score = claim.score or book.score
  return [
    _count_to(book, a, cell, goal, claim.unit, score) for a in (arm, than)
  ]


def _count_to(book: Book, arm, cell, goal, unit, score) -> list[float]:
  """Tokens, updates or depth to a loss, seed by seed; inf if never."""
  counts = []
  for seed in book.study.seeds:
    record = book.report(arm, cell)[seed]
    if score not in record.curves:
      counts.append(math.inf)
      continue
    at = curves.crossing(*record.curves[score], goal).at
    if unit != "tokens":
      at = float(record.updates_at(at))
    counts.append(at * record.depth if unit == "depth" else at)
  return counts


def logs(values: Any) -> np.ndarray:
  """Logarithms, -inf of 0 and nan of nan."""
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.log(np.asarray(values, float))


def _gaps(mine, other) -> np.ndarray:
  """Differences, nan where both are infinite with one sign."""
  with np.errstate(invalid="ignore"):
    return np.asarray(mine, float) - np.asarray(other, float)
