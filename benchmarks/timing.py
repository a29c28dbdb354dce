"""Peers that take turns: each in a process of its own, one computing at a time.

A busy machine then slows all of them alike, so that ratios, taken turn by turn,
can be compared. The script that measures starts itself once more for each peer.
The copy calls `serve`, which answers each line "n" of its input by the results
of n calls.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_SLOW = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # They halve some BLAS.
ROOT = pathlib.Path(__file__).resolve().parents[1]


def environment(**more: str) -> dict[str, str]:
  """The environment with these packages, without settings that slow BLAS."""
  paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
  kept = {k: v for k, v in os.environ.items() if k not in _SLOW}
  return kept | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | more


def serve(call: Callable[[], Any], facts: Any = None) -> None:
  """Answers until the input ends: [milliseconds, CPU milliseconds, result]s.

  Args:
    call: What is timed; returns once it is done.
    facts: What `Peer.facts` becomes.
  """
  print("#" + json.dumps(facts), flush=True)
  for line in sys.stdin:
    turn = []
    for _ in range(int(line)):
      wall, cpu = time.perf_counter(), time.process_time()
      result = call()
      wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
      turn.append([1e3 * wall, 1e3 * cpu, result])
    print("#" + json.dumps(turn), flush=True)


class Peer:
  """One of those that take turns.

  Attributes:
    name: In tables.
    facts: From `serve`.
    turns: A list of [milliseconds, CPU milliseconds, result] for each turn.
  """

  def __init__(
    self,
    name: str,
    arguments: Sequence[str],
    *,
    module: str,
    python: str = "",
    env: Mapping[str, str] | None = None,
  ):
    """Starts the process, and waits until it serves.

    Args:
      name: In tables.
      arguments: Of the process.
      module: The script, as `python -m` names it.
      python: Another interpreter.
      env: Variables that are added to the environment.
    """
    self.name, self.turns = name, []
    self._process = subprocess.Popen(
      [python or sys.executable, "-m", module, *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=environment(**(env or {})),
      text=True,
    )
    self.facts = self._answer()

  def run(self, calls: int) -> list[Any]:
    """One turn of so many calls; what they returned."""
    self._process.stdin.write(f"{calls}\n")
    self._process.stdin.flush()
    self.turns.append(self._answer())
    return [result for _, _, result in self.turns[-1]]

  def means(self, clock: int) -> list[float]:
    """The mean of each turn by wall (0) or CPU time (1), milliseconds."""
    return [
      statistics.mean(call[clock] for call in turn) for turn in self.turns
    ]

  def ratios(self, base: "Peer", clock: int) -> list[float]:
    """Own mean over another's, turn by turn."""
    pairs = zip(self.means(clock), base.means(clock), strict=True)
    return [own / other for own, other in pairs]

  def stop(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()

  def _answer(self) -> Any:
    for line in self._process.stdout:
      if line.startswith("#"):
        return json.loads(line[1:])
    raise RuntimeError(f"{self.name} stopped; see above.")


def take_turns(peers: Sequence[Peer], rounds: int, calls: int) -> None:
  """Has each peer make so many calls, again and again."""
  for _ in range(rounds):
    for peer in peers:
      peer.run(calls)


def print_table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
  """Prints a table in Markdown."""
  lines = [[str(cell) for cell in line] for line in (header, *rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ["-" * width for width in widths])
  for line in lines:
    cells = (c.ljust(w) for c, w in zip(line, widths, strict=True))
    print("| " + " | ".join(cells) + " |")
  print(flush=True)
