"""What a compiled program sends between devices, read from its text.

Every collective instruction with its bytes, how many devices take part, along
which axes of the mesh they lie, and how often it runs: bodies of loops count as
often as XLA says that they do, branches of conditionals once each. Loops whose
length is data (the passes of an update) have to be told.
"""

import collections
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

KINDS = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all",
  "collective-permute",
)  # fmt: skip
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8}
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_COMPUTATION = re.compile(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \()")
_NAME = re.compile(r"\s*(ENTRY )?%?([\w.\-]+)")
_CALLED = re.compile(
  r"(?:calls|to_apply|branch_computations|true_computation|"
  r"false_computation)=\{?((?:%[\w.\-]+(?:, )?)+)"
)


_RUNS = re.compile(r" (?:conditional|call|fusion|async-start)\(")
# Name and lengths of each array, of an instruction or a parameter.
_DEFINED = re.compile(r"%?([\w.\-]+)(?: = |: )[a-z]+\d+\[([\d,]*)\]")
_DOT = re.compile(
  r" = [a-z]+\d+\[([\d,]*)\]\S* dot\(%?([\w.\-]+), .*?"
  r"lhs_contracting_dims=\{([\d,]*)\}"
)


class Collective(NamedTuple):
  """One collective instruction."""

  kind: str  # One of `KINDS`.
  axes: tuple[str, ...]  # Mesh axes along which its groups lie.
  # Of its result on one device; of a reduce-scatter, of its operand.
  bytes: int
  times: int  # How often a run of the program executes it.


def collectives(
  text: str, mesh: Mapping[str, int], passes: int = 1
) -> list[Collective]:
  """The collectives of a program that more than one device takes part in.

  Args:
    text: `compiled.as_text()`.
    mesh: Size of each axis, in order; device i is the i-th of the mesh.
    passes: How often a loop runs whose length is data.
  """
  parts, entry = _computations(text)
  times = _multiplicities(parts, entry, passes)
  found = []
  for name, part in parts.items():
    for line in part.splitlines():
      match = _COLLECTIVE.search(line)
      if match is None or not times[name]:
        continue
      axes, size = _axes(_groups(line), mesh)
      if size > 1:
        count = _result_bytes(match.group(1), "-start(" in line)
        if match.group(2) == "reduce-scatter":
          count *= size
        found.append(Collective(match.group(2), axes, count, times[name]))
  return found


def totals(found: Sequence[Collective]) -> dict[tuple[str, str], int]:
  """Bytes of one device and update by (kind, axes joined by "+")."""
  sums: dict[tuple[str, str], int] = collections.Counter()
  for one in found:
    sums[one.kind, "+".join(one.axes)] += one.bytes * one.times
  return dict(sums)


def product_flops(text: str, passes: int = 1) -> int:
  """Operations of all matrix products of one device in a run of the program.

  Two for each multiply-add. XLA's own count takes the body of a loop once;
  here it counts as often as it runs.

  Args:
    text: `compiled.as_text()`.
    passes: How often a loop runs whose length is data.
  """
  parts, entry = _computations(text)
  times = _multiplicities(parts, entry, passes)
  total = 0
  for name, part in parts.items():
    if not times[name] or " dot(" not in part:
      continue
    shapes = {m[1]: _numbers(m[2]) for m in _DEFINED.finditer(part)}
    for match in _DOT.finditer(part):
      summed = [shapes[match[2]][i] for i in _numbers(match[3])]
      total += 2 * times[name] * math.prod(_numbers(match[1]) + summed)
  return total


def _computations(text: str) -> tuple[dict[str, str], str]:
  """The text of each computation by its name, and the name of the first."""
  parts, entry = {}, ""
  for part in _COMPUTATION.split(text):
    start = _NAME.match(part)
    if start:
      parts[start.group(2)] = part
      entry = start.group(2) if start.group(1) else entry
  return parts, entry


def _multiplicities(
  parts: Mapping[str, str], entry: str, passes: int
) -> dict[str, int]:
  """How often each computation runs when the entry runs once."""
  times = dict.fromkeys(parts, 0)

  def visit(name: str, count: int) -> None:
    times[name] += count
    for line in parts[name].splitlines():
      for callee, often in _calls(line, passes):
        if callee in parts:
          visit(callee, count * often)

  visit(entry, 1)
  return times


def _calls(line: str, passes: int) -> Iterator[tuple[str, int]]:
  """(computation, how often) that an instruction runs."""
  body = re.search(r" while\(.*body=%?([\w.\-]+)", line)
  if body:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    yield body.group(1), int(known.group(1)) if known else passes
  if _RUNS.search(line):
    for match in _CALLED.finditer(line):
      for name in match.group(1).split(","):
        yield name.strip().lstrip("%"), 1


def _result_bytes(shape: str, is_start: bool) -> int:
  """Bytes of a result; of the start of an asynchronous one, its last part."""
  sizes = [
    (_BYTES.get(kind) or int(re.sub(r"\D", "", kind)) / 8)
    * math.prod(int(n) for n in dims.split(",") if n)
    for kind, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
  ]
  return int(sizes[-1] if is_start and len(sizes) > 1 else sum(sizes))


def _groups(line: str) -> list[list[int]]:
  """Device groups of an instruction, in each of XLA's notations."""
  pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", line)
  if pairs:
    found = [_numbers(p) for p in pairs.group(1)[1:-1].split("},{")]
    return [pair for pair in found if pair[0] != pair[1]]
  text = line.split("replica_groups=", 1)[1] if "replica_groups" in line else ""
  if text.startswith("{{"):
    listed = text[2:].split("}}", 1)[0].split("},{")
    return [[int(i) for i in group.split(",")] for group in listed]
  iota = re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text)
  if iota:
    return _arranged(iota.group(2)).reshape(_numbers(iota.group(1))).tolist()
  mesh = re.match(r"mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}, ", text)
  if mesh is None:
    raise ValueError(f"No replica groups could be read from: {line.strip()}")
  names, sizes = zip(
    *(pair.split("=") for pair in mesh.group(1).split(",")), strict=True
  )
  shape = [int(n) for n in sizes]
  order = mesh.group(2) or f"[{','.join(sizes)}]"
  ids = _arranged(order).reshape(shape)
  chosen = [names.index(name) for name in mesh.group(3).split(",")]
  rest = [i for i in range(len(shape)) if i not in chosen]
  size = math.prod(shape[i] for i in chosen)
  return ids.transpose(*rest, *chosen).reshape(-1, size).tolist()


def _arranged(text: str) -> np.ndarray:
  """The device numbers that `[2,4]T(1,0)` lists, flat."""
  shape, _, order = text.partition("T")
  sizes = _numbers(shape.strip("[]"))
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return (ids.transpose(_numbers(order.strip("()"))) if order else ids).ravel()


def _numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(",") if n]


def _axes(
  groups: Sequence[Sequence[int]], mesh: Mapping[str, int]
) -> tuple[tuple[str, ...], int]:
  """Axes along which the members of groups differ, and how many there are."""
  if not groups:
    return (), 1
  sizes = list(mesh.values())
  vary = np.zeros(len(sizes), bool)
  for group in groups:
    places = np.array(np.unravel_index(group, sizes))
    vary |= (places != places[:, :1]).any(axis=1)
  return tuple(itertools.compress(mesh, vary)), len(groups[0])
