"""A study as data: its arms, its cells and its claims.

A declaration is a file of `ml_collections_configs/studies` with `TIERS`, plain
dictionaries by the name of a tier; `load` checks one and returns a `Study`.
The keys of a declaration are the fields below. Thresholds stand there before
the first run.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..config import load as config_load
from ..config.errors import InputError
from .methods import METHODS, Method
from .tuning import RATE, Log

FOLDER = "ml_collections_configs/studies"
CLAIMS = ("faster", "lower", "equal", "exponent")
UNITS = ("tokens", "updates", "depth")


class Cell(NamedTuple):
  """Where all methods meet: a model, a corpus, a batch and a length."""

  batch: int  # Rows of an update.
  tokens: int  # Of a run: the horizon.
  overrides: Mapping[str, Any] = {}  # Of the configuration, by dotted key.
  settings_of: str = ""  # Cell whose settings are taken; "": tuned here.
  start_of: str = ""  # Cell whose best rate is the start; "": the method's.
  trials: int = 0  # K here; 0: the study's.
  group: str = ""  # Cells of a group differ in the batch alone.


class Arm(NamedTuple):
  """A method in a study."""

  method: str  # Key of `METHODS`.
  name: str = ""  # In tables; "": that of the method.
  kwargs: Mapping[str, Any] = {}  # More of the factory's arguments.
  overrides: Mapping[str, Any] = {}
  tuned: Mapping[str, Any] | None = None  # None: the method's.
  in_cell: Mapping[str, Mapping[str, Any]] = {}  # Overrides by cell.
  cells: tuple[str, ...] = ()  # Where it runs; (): everywhere.
  settings_of: tuple[str, ...] = ()  # (arm, cell) whose settings it takes.

  @property
  def trains(self) -> str:
    """What a planted trainer is told: the method, or the arm if it differs."""
    same = not (self.kwargs or self.overrides or self.in_cell)
    return self.method if same else self.name

  def entry(self) -> Method:
    """The method, with what the arm changes."""
    method = METHODS[self.method]
    tuned = method.tuned if self.tuned is None else self.tuned
    return method._replace(
      kwargs={**method.kwargs, **self.kwargs},
      overrides={**method.overrides, **self.overrides},
      tuned=tuned,
    )


class Claim(NamedTuple):
  """A sentence with a threshold; see `lm/study/statistics.py`."""

  claim: str  # One of `CLAIMS`.
  arm: str = "*"  # "*": one claim for each arm but `than`.
  than: str = ""  # "": the reference of the study.
  threshold: float = math.nan  # faster: of the ratio; lower: in nats.
  margin: float = math.nan  # equal: in nats.
  centre: float = math.nan  # exponent.
  tolerance: float = math.nan
  of: str = "ratio"  # exponent: ratio (b / a) | paper (B*).
  to: str | float = ""  # faster: loss to reach, or arm whose last loss it is.
  unit: str = "updates"  # faster: what is counted to the loss.
  score: str = ""  # "": the first of the study.
  cells: tuple[str, ...] = ()  # (): each in which both arms run.


class Study(NamedTuple):
  """A tier of a study."""

  title: str
  cells: Mapping[str, Cell]
  arms: Mapping[str, Arm]
  claims: tuple[Claim, ...]
  seeds: tuple[int, ...]  # That report.
  name: str = ""
  tier: str = ""
  tuning_seeds: tuple[int, ...] = (100,)  # That choose.
  trials: int = 9  # K, of each method and cell.
  reference: str = "adamw"
  auxiliary: bool = False  # Is the rate of the other roles tuned?
  horizons: tuple[float, ...] = ()  # Of the reference, in those of the cell.
  targets: tuple[float, ...] = ()  # Shares of the smallest batch's tokens.
  scores: Mapping[str, str] = {"loss": "loss"}  # Name -> key below eval/SET/.
  config: str = "ml_collections_configs/study1m.py"
  overrides: Mapping[str, Any] = {}
  points: int = 12  # Of a curve.
  text: str = ""  # What the page says above its tables.


def load(name: str, tier: str) -> Study:
  """The study of that name, or of FILE.py.

  Raises:
    InputError: If there is no such study or tier, or with its first mistake.
  """
  path = pathlib.Path(name if name.endswith(".py") else f"{FOLDER}/{name}.py")
  if not path.is_file():
    known = sorted(p.stem for p in path.parent.glob("[!_]*.py"))
    raise InputError(f"{name!r}: there is no {path}; there are {known}.")
  tiers = getattr(config_load.import_file(str(path)), "TIERS", {})
  if tier not in tiers:
    raise InputError(f"--tier={tier}: {path} has {sorted(tiers)}.")
  return study(tiers[tier], path.stem, tier)


def study(plain: Mapping[str, Any], name: str = "", tier: str = "") -> Study:
  """A checked `Study` of plain dictionaries and tuples."""
  found = _take(Study, {**plain, "name": name, "tier": tier}, name)
  cells = {
    cell: _take(Cell, given, f"cells[{cell!r}]")
    for cell, given in found.cells.items()
  }
  arms: dict[str, Arm] = {}
  for given in found.arms:
    given = {"method": given} if isinstance(given, str) else given
    arm = _take(Arm, given, f"arm {given}")
    _one_of("method", arm.method, METHODS, f"arm {arm.name or given}")
    arm = arm._replace(name=arm.name or arm.method)
    if arm.tuned is not None:
      arm = arm._replace(tuned={k: _space(k, v) for k, v in arm.tuned.items()})
    if arm.name in arms:
      raise InputError(f"study {name}: two arms have the name {arm.name!r}.")
    arms[arm.name] = arm
  claims = tuple(
    _take(Claim, given, f"claims[{i}]") for i, given in enumerate(found.claims)
  )
  found = found._replace(cells=cells, arms=arms, claims=claims)
  _check(found)
  return found


def runs_in(study: Study, arm: str) -> list[str]:
  """The cells of an arm, in order."""
  chosen = study.arms[arm].cells
  return [cell for cell in study.cells if not chosen or cell in chosen]


def groups(study: Study) -> dict[str, list[str]]:
  """Cells that differ in the batch alone, by group, batches increasing."""
  found: dict[str, list[str]] = {}
  for name, cell in sorted(study.cells.items(), key=lambda item: item[1].batch):
    found.setdefault(cell.group, []).append(name)
  return found


def _check(s: Study) -> None:
  where = f"study {s.name}"
  _one_of("reference", s.reference, s.arms, where)
  both = sorted({*s.seeds} & {*s.tuning_seeds})
  if both or not s.seeds or not s.tuning_seeds:
    raise InputError(
      f"{where}: seeds={s.seeds} and tuning_seeds={s.tuning_seeds} must not be "
      f"empty, and must have no seed in common; both have {both}."
    )
  least = min([s.trials, *(c.trials for c in s.cells.values() if c.trials)])
  if least < 3:
    raise InputError(f"{where}: trials={least}; a rate needs 3 at least.")
  if s.horizons and (1 not in s.horizons or len(s.horizons) < 4):
    raise InputError(f"{where}: horizons={s.horizons}: 4 at least, with 1.")
  for name, cell in s.cells.items():
    at = f"{where}, cell {name}"
    if not (cell.batch > 0 and cell.tokens > 0):
      raise InputError(f"{at}: batch and tokens must be > 0.")
    for other in filter(None, (cell.settings_of, cell.start_of)):
      _one_of("settings_of or start_of", other, s.cells, at)
      if [*s.cells].index(other) >= [*s.cells].index(name):
        raise InputError(f"{at}: the cell {other} must stand above it.")
  for arm in s.arms.values():
    at = f"{where}, arm {arm.name}"
    for cell in (*arm.cells, *arm.in_cell, *arm.settings_of[1:]):
      _one_of("cells", cell, s.cells, at)
    if arm.settings_of:
      _one_of("settings_of", arm.settings_of[0], s.arms, at)
      if s.arms[arm.settings_of[0]].settings_of:
        raise InputError(f"{at}: settings_of must name an arm that is tuned.")
  for i, claim in enumerate(s.claims):
    at = f"{where}, claims[{i}]"
    _one_of("claim", claim.claim, CLAIMS, at)
    _one_of("unit", claim.unit, UNITS, at)
    if claim.score:
      _one_of("score", claim.score, s.scores, at)
    names = [claim.arm if claim.arm != "*" else "", claim.than]
    for arm in filter(None, names):
      _one_of("arm or than", arm, s.arms, at)
    if isinstance(claim.to, str) and claim.to:
      _one_of("to", claim.to, s.arms, at)
    for cell in claim.cells:
      _one_of("cells", cell, s.cells, at)
    needed = {
      "faster": ("threshold",), "lower": ("threshold",),
      "equal": ("margin",), "exponent": ("centre", "tolerance"),
    }[claim.claim]  # fmt: skip
    for key in needed:
      if not math.isfinite(getattr(claim, key)):
        raise InputError(f"{at}: {claim.claim} needs the key {key!r}.")
    if claim.claim == "exponent" and not s.targets:
      raise InputError(f"{at}: exponent needs `targets` in the study.")
    if claim.claim == "faster" and not (claim.to or s.horizons):
      raise InputError(f"{at}: faster needs `to`, or `horizons` in the study.")


def _space(key: str, given: Any) -> Any:
  """A rate's (start, factor), or start; values of other keys are a tuple."""
  if key != RATE or isinstance(given, Log):
    return given
  return Log(*given) if isinstance(given, tuple | list) else Log(given)


def _take(kind: Any, given: Mapping[str, Any], where: str) -> Any:
  """The NamedTuple of a dictionary's keys, or an error that names a key."""
  unknown = set(given) - set(kind._fields)
  missing = set(kind._fields) - set(kind._field_defaults) - set(given)
  if unknown or missing:
    raise InputError(
      f"{where}: unknown keys {sorted(unknown)}, missing keys "
      f"{sorted(missing)}; it takes {sorted(kind._fields)}."
    )
  plain = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
  return kind(**plain)


def _one_of(key: str, value: Any, known: Any, where: str) -> None:
  if value not in known:
    raise InputError(f"{where}: {key}={value!r} is not one of {list(known)}.")
