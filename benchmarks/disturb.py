"""Kills the processes of a run at random moments, and starts them again.

The library of `benchmarks/soak.py`. Linux only: memory and open files are read
from /proc.
"""

import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks import corpus
from benchmarks.timing import ROOT, environment

KILLED, PREEMPTED, PEER_LOST = -9, 75, 76
ENDLESS = 1_000_000  # Updates.
BOUND = 90  # Seconds for all processes to end; 40 is the heartbeat's limit.

_START = 300  # Seconds for the first update of a life.
_POLL = 0.1  # Seconds.
_SAMPLE = 1.0  # Seconds.
_SHAPE = {
  "model.D": 32, "model.N": 2, "model.H": 2, "model.G": 2, "model.F": 64,
  "data.tokenizer": "bytes", "data.seq_length": 32, "data.batch_size": 8,
  "eval.every": 50, "eval.batch_size": 8, "eval.batches": 2,
  "eval.final_batches": 2, "train.num_tokens": 0,
  "optim.averages": ("ema:0.99",),
  "schedule.name": "constant", "schedule.unit": "steps",
  "schedule.warmup": 1.0, "checkpoint.every": 50, "log.every": 1,
  "log.samples": 0, "log.progress": "none", "train.num_steps": 1,
}  # fmt: skip


class Sample(NamedTuple):
  """A process at one moment; `process` counts within the run."""

  life: int
  process: int
  seconds: float  # Since the start of the soak.
  age: float  # Seconds since the first update of the life.
  rss: int  # Bytes.
  files: int


class Event(NamedTuple):
  """A disturbance and its end."""

  life: int
  seconds: float
  signals: str
  victims: tuple[int, ...]
  codes: tuple[int, ...]
  took: float  # Seconds until the last process had ended.


class Run:
  """The processes of one run, which can be started again and again."""

  def __init__(
    self, folder: pathlib.Path, processes: int, devices: int, flags: list[str]
  ):
    """Takes the run's folder, layout and configuration; starts nothing."""
    self.folder, self.processes = folder, processes
    self._devices = devices
    with socket.socket() as s:
      s.bind(("127.0.0.1", 0))
      port = s.getsockname()[1]
    self._command = [
      sys.executable, "-m", "lm.main", *flags, f"--workdir={folder}",
    ]  # fmt: skip
    if processes > 1:
      self._command += [
        "--distributed=explicit", f"--coordinator=127.0.0.1:{port}",
        f"--num_processes={processes}",
      ]  # fmt: skip
    self._running: list[subprocess.Popen] = []

  def start(self, num_steps: int) -> None:
    """Starts all processes; their output is appended to files."""
    devices = {"JAX_NUM_CPU_DEVICES": str(self._devices), "XLA_FLAGS": ""}
    env = environment(**devices)
    self._running = []
    for i in range(self.processes):
      more = [f"--config.train.num_steps={num_steps}"]
      if self.processes > 1:
        more.append(f"--process_id={i}")
      with self.folder.with_suffix(f".{i}.log").open("ab") as f:
        process = subprocess.Popen(
          [*self._command, *more], cwd=ROOT, env=env, stdout=f, stderr=f
        )
      self._running.append(process)

  def alive(self) -> bool:
    """Whether all processes are running."""
    return all(p.poll() is None for p in self._running)

  def written(self) -> int:
    """Bytes of metrics so far."""
    path = self.folder / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0

  def signal(self, name: str, victims: Sequence[int]) -> None:
    """Sends SIGKILL or SIGTERM to some of the processes."""
    for i in victims:
      process = self._running[i]
      process.kill() if name == "KILL" else process.terminate()

  def wait(self) -> tuple[int, ...]:
    """Exit codes; raises if a process does not end within `BOUND` seconds."""
    end = time.monotonic() + BOUND
    try:
      return tuple(
        p.wait(max(end - time.monotonic(), 0.01)) for p in self._running
      )
    finally:
      self.kill()

  def kill(self) -> None:
    """Ends what is still running."""
    for process in self._running:
      process.kill()
      process.wait()

  def usage(self) -> Iterator[tuple[int, int, int]]:
    """(process, resident bytes, open files) of all that are running."""
    for i, process in enumerate(self._running):
      proc = pathlib.Path("/proc") / str(process.pid)
      try:
        pages = int((proc / "statm").read_text().split()[1])
        files = len(os.listdir(proc / "fd"))
      except (OSError, IndexError):
        continue  # It ended just now.
      yield i, pages * os.sysconf("SC_PAGE_SIZE"), files


class Sampler:
  """Appends samples to a file."""

  def __init__(self, path: pathlib.Path):
    """Starts the clock."""
    self._path, self._start = path, time.monotonic()

  def seconds(self) -> float:
    """Since the start."""
    return time.monotonic() - self._start

  def watch(self, run: Run, life: int, seconds: float) -> None:
    """Samples for some time from the first update, or until a process ends."""
    size, started = run.written(), self.seconds()
    while run.alive() and run.written() == size:
      if self.seconds() - started > _START:
        raise RuntimeError(f"Life {life} makes no update in {_START} s.")
      time.sleep(_POLL)
    born = self.seconds()
    with self._path.open("a") as file:
      while run.alive() and self.seconds() - born < seconds:
        now = self.seconds()
        for process, rss, files in run.usage():
          sample = Sample(life, process, now, now - born, rss, files)
          file.write(json.dumps(sample._asdict()) + "\n")
        time.sleep(_SAMPLE)


def disturb(
  run: Run, seconds: float, every: tuple[float, float], seed: int
) -> Iterator[Event]:
  """Starts and disturbs a run for some time, and has it save and stop.

  Samples go to `samples.jsonl` beside the run's folder.

  Args:
    run: Not running.
    seconds: In all.
    every: Least and greatest seconds from a life's first update to its end.
    seed: Of moments, victims and signals.

  Yields:
    What was done.

  Raises:
    RuntimeError: If processes ended by themselves, or with an exit code that
      does not follow from what was done to them.
    subprocess.TimeoutExpired: If a process did not end in time.
  """
  rng = random.Random(seed)
  sampler = Sampler(run.folder.with_name("samples.jsonl"))
  everyone, life, last = tuple(range(run.processes)), 0, False
  try:
    while not last:
      wait, left = rng.uniform(*every), seconds - sampler.seconds()
      last = left < wait + every[0]
      run.start(ENDLESS)
      sampler.watch(run, life, left if last else wait)
      if not run.alive():
        raise RuntimeError(f"Life {life} ended by itself: {run.wait()}.")
      signals = rng.choice(["KILL", "TERM", "TERM KILL"])
      victims = rng.choice([*((i,) for i in everyone), everyone])
      if last:
        signals, victims = "TERM", (0,)
      moment = sampler.seconds()
      for i, name in enumerate(signals.split()):
        time.sleep(rng.uniform(0, 2) if i else 0)
        run.signal(name, victims)
      codes = run.wait()
      took = sampler.seconds() - moment
      event = Event(life, moment, signals, victims, codes, took)
      check(event)
      yield event
      life += 1
  finally:
    run.kill()


def check(event: Event) -> None:
  """Raises unless the exit codes follow from the signals.

  Raises:
    RuntimeError: If they do not.
  """
  allowed = {
    "TERM": ({PREEMPTED}, {PREEMPTED}),
    "KILL": ({KILLED}, {PEER_LOST}),
    "TERM KILL": ({PREEMPTED, KILLED}, {PREEMPTED, PEER_LOST}),
  }
  victim, other = allowed[event.signals]
  for i, code in enumerate(event.codes):
    if code not in (victim if i in event.victims else other):
      raise RuntimeError(f"Exit code {code} of process {i} after {event}.")


def prepare(out: pathlib.Path) -> list[str]:
  """Writes and prepares a corpus, once; returns the flags of a run on it."""
  return corpus.prepare(out, _SHAPE, documents=120)
