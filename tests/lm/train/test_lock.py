"""A second run in a folder that is open: refused, and a dead run's not."""

import collections
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from lm.config import errors
from lm.config.errors import InputError
from lm.runs import checkpoint, lock

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_BASE = _ROOT / "ml_collections_configs" / "base.py"
_LONG = {"train__num_steps": 150, "checkpoint__every": 5}

# Holds the lock as a machine of another name would, where no `flock` is seen.
_ELSEWHERE = """
import pathlib, sys
from lm.runs import lock
lock._machine = lambda: sys.argv[1]
lock.fcntl.flock = lambda *_: None
with lock.Lock(pathlib.Path(sys.argv[2]), beat=0.2, stale=2.0):
  print("open", flush=True)
  sys.stdin.read()
"""


def _elsewhere(machine, folder):
  return subprocess.Popen(
    [sys.executable, "-c", _ELSEWHERE, machine, str(folder)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=_ROOT,
  )


def _wait_for_holder(folder, process):
  """Until a process is named by the lock, which must not end before."""
  while not lock.holder(folder):
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.02)
  return lock.holder(folder)


def _leave_lock(folder, seconds_ago=0.0, **facts):
  """The file that a process leaves behind that had no time to remove it."""
  facts = {"host": "far", "pid": 7, "since": "then", "token": "x"} | facts
  folder.mkdir(exist_ok=True)
  (folder / lock.FILE).write_text(json.dumps(facts))
  then = time.time() - seconds_ago
  os.utime(folder / lock.FILE, (then, then))


def test_a_second_run_is_refused_and_the_first_goes_on(tiny, tmp_path):
  first = tiny.start(tmp_path, **_LONG)
  _wait_for_holder(tmp_path, first)
  code, output = tiny.run(tmp_path, **_LONG)
  assert code == errors.BAD_INPUT, output
  assert f"process {first.pid} on {socket.gethostname()} since 20" in output
  assert "use another --workdir" in output
  assert len(output.splitlines()) == 1
  output = first.communicate(timeout=300)[0]
  assert first.returncode == 0, output
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  steps = [json.loads(x)["step"] for x in lines if "train/loss" in x]
  assert steps == list(range(1, 151))
  assert not (tmp_path / lock.FILE).exists()


def test_a_killed_run_goes_on_at_once(tiny, tmp_path):
  process = tiny.start(tmp_path, **_LONG)
  while not checkpoint.list_steps(tmp_path):
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert lock.holder(tmp_path)["pid"] == process.pid
  code, output = tiny.run(tmp_path, **_LONG)
  assert code == 0, output
  assert "waiting" not in output


@pytest.mark.parametrize("pid", [1, 2**22 + 5], ids=["reused", "dead"])
def test_a_dead_process_of_this_machine_holds_nothing(tmp_path, pid):
  _leave_lock(tmp_path, machine=lock._machine(), pid=pid)
  with lock.Lock(tmp_path, stale=1e9):
    assert lock.holder(tmp_path)["pid"] == os.getpid()


def test_a_run_of_a_lost_machine_goes_on_elsewhere(tiny, tmp_path):
  _leave_lock(tmp_path, seconds_ago=3600, machine="lost")
  code, output = tiny.run(tmp_path)
  assert code == 0, output


def test_a_fresh_lock_of_a_lost_machine_is_watched_first(tmp_path, capsys):
  _leave_lock(tmp_path, machine="lost")
  started = time.monotonic()
  with lock.Lock(tmp_path, beat=0.1, stale=1.0):
    assert time.monotonic() - started >= 1.0
  said = capsys.readouterr().err
  assert "process 7 on far since then" in said
  assert "waiting 1 s for a sign of life" in said


def test_another_machine_that_lives_is_seen_by_its_beat(tmp_path):
  other = _elsewhere("A", tmp_path)
  assert other.stdout.readline() == "open\n"
  with (
    pytest.raises(InputError, match=f"process {other.pid} on"),
    lock.Lock(tmp_path, beat=0.2, stale=60.0),
  ):
    pass
  other.communicate("", timeout=60)
  assert other.returncode == 0
  assert not (tmp_path / lock.FILE).exists()
  with lock.Lock(tmp_path, stale=1e9):
    pass


def test_a_lock_given_back_while_it_is_watched_is_taken(tmp_path):
  other = _elsewhere("A", tmp_path)
  assert other.stdout.readline() == "open\n"
  other.send_signal(signal.SIGSTOP)  # Shows no sign of life for a while.
  waiting = _elsewhere("B", tmp_path)
  assert "waiting" in waiting.stderr.readline()
  (tmp_path / lock.FILE).unlink()
  assert waiting.stdout.readline() == "open\n"
  waiting.communicate("", timeout=60)
  other.kill()
  other.communicate()


def test_two_machines_that_see_a_stale_lock_do_not_both_get_it(tmp_path):
  _leave_lock(tmp_path, machine="lost")
  both = [_elsewhere(name, tmp_path) for name in "AB"]
  assert sorted(p.stdout.readline() for p in both) == ["", "open\n"]
  errors_ = [p.communicate("", timeout=60)[1] for p in both]
  assert sorted(p.returncode for p in both) == [0, 1]
  assert sum("InputError: A run is open" in text for text in errors_) == 1


def test_a_process_whose_lock_was_taken_over_stops(tmp_path):
  other = _elsewhere("A", tmp_path)
  assert other.stdout.readline() == "open\n"
  _leave_lock(tmp_path, machine="B", token="another")
  assert other.wait(timeout=60) == errors.BAD_INPUT
  assert "taken over" in other.communicate()[1]
  assert lock.holder(tmp_path)["token"] == "another"


def test_without_flock_a_living_process_is_seen_by_its_beat(
  tmp_path, monkeypatch
):
  def unsupported(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(lock.fcntl, "flock", unsupported)
  with (
    lock.Lock(tmp_path, beat=0.1, stale=1e9),
    pytest.raises(InputError, match="is open"),
    lock.Lock(tmp_path, beat=0.1, stale=1e9),
  ):
    pass
  _leave_lock(tmp_path, machine=lock._machine(), pid=2**22 + 5)
  with lock.Lock(tmp_path, stale=1e9):
    pass


def test_a_disk_without_room_leaves_no_lock(tmp_path, monkeypatch):
  def full(_):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patched:
    patched.setattr(lock.os, "fsync", full)
    with (
      pytest.raises(OSError, match=r"No space left on device: .*lock\.json"),
      lock.Lock(tmp_path),
    ):
      pass
  assert not list(tmp_path.iterdir())
  with lock.Lock(tmp_path, stale=1e9):
    pass


def test_an_open_run_can_be_read(tiny, tmp_path):
  folder = tmp_path / "run"
  assert tiny.run(folder)[0] == 0
  with lock.Lock(folder):
    for program, *flags in (
      ("lm.report", str(folder)),
      ("lm.evaluate", f"--workdir={folder}", "--batches=1"),
      ("lm.export", f"--workdir={folder}", f"--out={tmp_path / 'w.npz'}"),
    ):
      command = [sys.executable, "-m", program, *flags]
      done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT)
      assert done.returncode == 0, done.stderr
    code, output = tiny.run(tmp_path / "on", train__init_from=str(folder))
    assert code == 0, output


def test_a_sweep_says_of_each_run_who_has_it_open(tiny, tmp_path):
  runs = [
    {"config": str(_BASE), "overrides": tiny.overrides | {"seed": seed}}
    for seed in (1, 2)
  ]
  (tmp_path / "s.json").write_text(json.dumps(runs))
  command = [
    sys.executable, "-m", "lm.sweep", f"--sweep={tmp_path / 's.json'}",
    f"--root={tmp_path}",
  ]  # fmt: skip
  listed = subprocess.check_output([*command, "--list"], text=True, cwd=_ROOT)
  ids = re.findall(r"^ +\d (\S+)", listed, re.MULTILINE)
  assert len(ids) == 2
  with contextlib.ExitStack() as stack:
    for id_ in ids:
      (tmp_path / id_).mkdir()
      stack.enter_context(lock.Lock(tmp_path / id_))
    done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT)
  assert done.returncode == 1, done.stderr
  said = f"failed (exit code 2): open by process {os.getpid()} on"
  assert done.stdout.count(said) == 2
  assert done.stderr.count("A run is open in --workdir=") == 2
  assert not [p for p in tmp_path.glob("*/*") if p.name != lock.FILE]


@pytest.mark.slow
def test_a_second_group_of_processes_is_refused_by_each(group, tmp_path):
  first = group.start(tmp_path, 2, 1, **_LONG)
  _wait_for_holder(tmp_path, first[0])
  codes, outputs = group.join(group.start(tmp_path, 2, 1, **_LONG))
  assert codes == [errors.BAD_INPUT] * 2, "\n".join(outputs)
  for output in outputs:
    assert f"process {first[0].pid} on" in output
  codes, outputs = group.join(first)
  assert codes == [0, 0], "\n".join(outputs)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  steps = [json.loads(x)["step"] for x in lines if "train/loss" in x]
  assert max(collections.Counter(steps).values()) == 1


@pytest.mark.slow
def test_a_group_whose_machine_was_lost_goes_on_elsewhere(group, tmp_path):
  """Its process 0 watches for longer than a collective would wait for it."""
  _leave_lock(tmp_path, machine="lost")
  codes, outputs = group.join(group.start(tmp_path, 2, 1))
  assert codes == [0, 0], "\n".join(outputs)
  assert "waiting 90 s" in "".join(outputs)
