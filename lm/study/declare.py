"""A study as data: its arms, its cells and its claims.

A declaration is a file of `ml_collections_configs/studies` with `TIERS`, plain
dictionaries by the name of a tier; `load` checks one and returns a `Study`.
The keys of a declaration are the fields below. Thresholds stand there before
the first run.
"""

import math
import numbers
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..config import load as config_load
from ..config.errors import InputError
from .methods import AUXILIARY, METHODS, Method
from .tuning import RATE, Log

FOLDER = "ml_collections_configs/studies"
CLAIMS = ("faster", "lower", "equal", "exponent")
UNITS = ("tokens", "updates", "depth")
READINGS = ("ratio", "paper", "measured")  # Of a critical batch.
AGAINST = ("data", "size")
AGAINST = ("data", "size")


class Cell(NamedTuple):
  """Where all methods meet: a model, a corpus, a batch and a length."""

  batch: int  # Rows of an update.
  tokens: int  # Of a run: the horizon.
  overrides: Mapping[str, Any] = {}  # Of the configuration, by dotted key.
  kwargs: Mapping[str, Any] = {}  # In place of those that a method has.
  settings_of: str = ""  # Cell whose settings are taken; "": tuned here.
  start_of: str = ""  # Cell whose best rate is the start; "": the method's.
  trials: int = 0  # K here; 0: the study's.
  group: str = ""  # Cells of a group differ in the batch alone.
  size: float = 0  # Parameters of its model, for laws in the size.
  size: float = 0  # Parameters of the group's model, for laws in the size.


class Arm(NamedTuple):
  """A method in a study."""

  method: str  # Key of `METHODS`.
  name: str = ""  # In tables; "": that of the method.
  kwargs: Mapping[str, Any] = {}  # More of the factory's arguments.
  overrides: Mapping[str, Any] = {}
  # None: the method's; a key of the method that is left out has its default.
  tuned: Mapping[str, Any] | None = None
  in_cell: Mapping[str, Mapping[str, Any]] = {}  # Overrides by cell.
  cells: tuple[str, ...] = ()  # Where it runs; (): everywhere.
  settings_of: tuple[str, ...] = ()  # (arm, cell) whose settings it takes.
  whole: bool | None = None  # Has it all parameters? None: as the method.
  length: float = 1  # Of its runs, in those of the cell.

  @property
  def trains(self) -> str:
    """What a planted trainer is told: the method, or the arm if it differs."""
    same = not (self.kwargs or self.overrides or self.in_cell)
    same = same and self.whole is None
    return self.method if same else self.name

  def entry(self) -> Method:
    """The method, with what the arm changes."""
    method = METHODS[self.method]
    tuned = method.tuned if self.tuned is None else self.tuned
    held = {k: v[0] for k, v in method.tuned.items() if k not in (*tuned, RATE)}
    held.pop(AUXILIARY, None)
    own = {k: v for k, v in held.items() if "." not in k}
    dotted = {k: v for k, v in held.items() if "." in k}
    return method._replace(
      kwargs={**method.kwargs, **own, **self.kwargs},
      overrides={**method.overrides, **dotted, **self.overrides},
      tuned=tuned,
      whole=method.whole if self.whole is None else self.whole,
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
  of: str = "ratio"  # exponent: one of `READINGS`, see `lm/study/batches.py`.
  against: str = "data"  # exponent: one of `AGAINST`.
  against: str = "data"  # exponent: one of `AGAINST`.
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
  reference_batch: int = 0  # Rows of B_ref; 0: the smallest of a group.
  scores: Mapping[str, str] = {"loss": "loss"}  # Name -> key below eval/SET/.
  config: str = "ml_collections_configs/study1m.py"
  overrides: Mapping[str, Any] = {}
  points: int = 12  # Of a curve.
  epochs: float = 1  # How often a run may see a row of its text, at most.
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
  for key in ("cells", "arms", "seeds", "tuning_seeds", "scores"):
    _demand(getattr(s, key), f"{where}: {key} must not be empty.")
  _one_of("reference", s.reference, s.arms, where)
  both = sorted({*s.seeds} & {*s.tuning_seeds})
  _demand(
    not both,
    f"{where}: seeds={s.seeds} and tuning_seeds={s.tuning_seeds} must have no "
    f"seed in common; both have {both}.",
  )
  for key in ("seeds", "tuning_seeds", "horizons", "targets"):
    values = getattr(s, key)
    distinct = len({*values}) == len(values)
    _demand(distinct, f"{where}: {key}={values} must be distinct.")
  least = min([s.trials, *(c.trials for c in s.cells.values() if c.trials)])
  _demand(least >= 3, f"{where}: trials={least}; a rate needs 3 at least.")
  x = s.horizons
  enough = not x or (1 in x and len(x) >= 4 and min(x) > 0)
  _demand(enough, f"{where}: horizons={x} must be > 0, 4 at least, with 1.")
  shares = all(0 < share <= 1 for share in s.targets)
  _demand(shares, f"{where}: targets={s.targets} must be in (0, 1].")
  sizes = [len({s.cells[c].batch for c in g}) for g in groups(s).values()]
  if s.targets:
    _demand(max(sizes) >= 3, f"{where}: targets need 3 batches in a group.")
    for group, cells in groups(s).items():
      each = sorted({s.cells[c].size for c in cells})
      _demand(len(each) == 1, f"{where}: the group {group!r} has sizes {each}.")
    for group, cells in groups(s).items():
      have = {s.cells[c].size for c in cells}
      _demand(
        len(have) == 1, f"{where}: group {group} has sizes {have}, not 1."
      )
  for name in s.cells:
    _check_cell(s, name, f"{where}, cell {name}")
  for arm in s.arms.values():
    _check_arm(s, arm, f"{where}, arm {arm.name}")
  for i, claim in enumerate(s.claims):
    _check_claim(s, claim, f"{where}, claims[{i}]")


def _check_cell(s: Study, name: str, at: str) -> None:
  cell, order = s.cells[name], [*s.cells]
  for key in ("batch", "tokens"):
    value = getattr(cell, key)
    _demand(value > 0, f"{at}: {key}={value} must be > 0.")
  for key in ("settings_of", "start_of"):
    if other := getattr(cell, key):
      _one_of(key, other, s.cells, at)
      above = order.index(other) < order.index(name)
      _demand(above, f"{at}: {key}={other!r} must stand above it.")


def _check_arm(s: Study, arm: Arm, at: str) -> None:
  for key, names in (("cells", arm.cells), ("in_cell", arm.in_cell)):
    for cell in names:
      _one_of(key, cell, s.cells, at)
  length = arm.length > 0 and (arm.length == 1 or not s.horizons)
  _demand(length, f"{at}: length={arm.length} must be > 0; 1 with horizons.")
  entry, known = arm.entry(), runs_in(s, s.reference)
  _demand(
    isinstance(entry.tuned.get(RATE), Log),
    f"{at}: tuned={dict(entry.tuned)} needs {RATE!r}: (start, factor).",
  )
  if arm.name == s.reference:
    _demand(
      entry.whole and not arm.settings_of,
      f"{at}: the reference must be tuned itself, and its method must have all "
      "parameters: its rate is that of the parameters which others leave.",
    )
  if arm.settings_of:
    other, cell = arm.settings_of
    _one_of("settings_of", other, s.arms, at)
    _one_of("settings_of", cell, runs_in(s, other), at)
    tuned = not s.arms[other].settings_of
    _demand(tuned, f"{at}: settings_of={arm.settings_of} must be tuned itself.")
  for name in runs_in(s, arm.name):
    if not entry.whole:
      _demand(
        name in known,
        f"{at}: in the cell {name} it needs {s.reference}, whose rate is that "
        "of the parameters which its method leaves.",
      )
    for key in ("settings_of", "start_of"):
      other = getattr(s.cells[name], key)
      if other and not arm.settings_of:
        _one_of(f"cells: {key} of {name}", other, runs_in(s, arm.name), at)


_NEEDS = {
  "faster": ("threshold",), "lower": ("threshold",),
  "equal": ("margin",), "exponent": ("centre", "tolerance"),
}  # fmt: skip


def _check_claim(s: Study, claim: Claim, at: str) -> None:
  _one_of("claim", claim.claim, CLAIMS, at)
  _one_of("unit", claim.unit, UNITS, at)
  _one_of("of", claim.of, READINGS, at)
  _one_of("against", claim.against, AGAINST, at)
  _one_of("against", claim.against, AGAINST, at)
  if claim.score:
    _one_of("score", claim.score, s.scores, at)
  arms = {"arm": claim.arm, "than": claim.than, "to": claim.to}
  for key, arm in arms.items():
    if isinstance(arm, str) and arm not in ("", "*"[key != "arm" :]):
      _one_of(key, arm, s.arms, at)
  for cell in claim.cells:
    _one_of("cells", cell, s.cells, at)
  for key in _NEEDS[claim.claim]:
    value = getattr(claim, key)
    above = claim.claim == "lower" or key == "centre" or value > 0
    _demand(
      math.isfinite(value) and above,
      f"{at}: {claim.claim} needs a number {key!r}"
      f"{'' if claim.claim == 'lower' or key == 'centre' else ' > 0'}; it is "
      f"{value}.",
    )
  if claim.claim == "exponent":
    _demand(s.targets, f"{at}: exponent needs `targets` in the study.")
    sizes = sorted({cell.size for cell in s.cells.values()} - {0})
    enough = claim.against != "size" or len(sizes) >= 3
    _demand(
      enough, f"{at}: against='size' needs 3 sizes of cells, not {sizes}."
    )
    sizes = {cell.size for cell in s.cells.values()} - {0}
    enough = claim.against != "size" or len(sizes) >= 3
    _demand(
      enough, f"{at}: against='size' needs 3 sizes of cells, not {sizes}."
    )
    return
  if claim.claim == "faster":
    ways = claim.to or s.horizons
    _demand(ways, f"{at}: faster needs `to`, or `horizons` in the study.")
  met = any(meetings(s, claim, arm) for arm in claimants(s, claim))
  _demand(met, f"{at}: its arms meet in no cell.")


def claimants(s: Study, claim: Claim) -> list[str]:
  """The arms that a claim is about."""
  than = claim.than or s.reference
  return [a for a in s.arms if a != than] if claim.arm == "*" else [claim.arm]


def meetings(s: Study, claim: Claim, arm: str) -> list[str]:
  """The cells of a claim in which all its arms run."""
  names = {arm, claim.than or s.reference}
  names |= {claim.to} if isinstance(claim.to, str) and claim.to else set()
  cells = claim.cells or tuple(s.cells)
  return [c for c in cells if all(c in runs_in(s, name) for name in names)]


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
  plain = {
    k: tuple(v) if isinstance(v, list | range) else v for k, v in given.items()
  }
  for key, value in plain.items():
    allowed = tuple if key == "arms" else kind.__annotations__[key]
    allowed = typing.get_origin(allowed) or allowed
    allowed = numbers.Real if allowed in (int, float) else allowed
    _demand(
      allowed is types.UnionType or isinstance(value, allowed),
      f"{where}: {key}={value!r} must be of the kind {allowed.__name__}.",
    )
  return kind(**plain)


def _one_of(key: str, value: Any, known: Any, where: str) -> None:
  if value not in known:
    raise InputError(f"{where}: {key}={value!r} is not one of {list(known)}.")


def _demand(condition: Any, message: str) -> None:
  if not condition:
    raise InputError(message)
