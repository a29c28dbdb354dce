"""`python -m lm.study`: resumes after a kill, and says what is wrong."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from lm.study import __main__ as main

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_STUDY = """
TIERS = {"small": {
  "title": "Mine",
  "cells": {"one": {"batch": 4, "tokens": 65536}},
  "arms": ("adamw", "muon"),
  "horizons": (0.5, 1, 2, 4),
  "claims": ({"claim": "faster", "threshold": 0.9},),
  "seeds": (0, 1),
  "trials": 6,
}}
"""
_TRAINER = """
import math, os, time
def train(method, settings, horizon, batch, seed):
  time.sleep(float(os.environ.get("SLEEP", "0")))
  off = math.log2(settings["learning_rate"] / 1e-2)
  speed = 1.3 if method == "muon" else 1
  return [
    (t * horizon, 3 + 60 * (speed * t * horizon) ** -.3 + .05 * off**2
     + .01 * math.sin(seed))
    for t in (.25, .5, .75, 1)
  ]
def other(*_): return [(1, 2, 3)]
"""


@pytest.fixture(autouse=True)
def _here(monkeypatch):
  monkeypatch.chdir(_ROOT)
  monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)


@pytest.fixture
def files(tmp_path):
  (tmp_path / "mine.py").write_text(_STUDY)
  (tmp_path / "t.py").write_text(_TRAINER)
  return tmp_path


def _arguments(files, root, *flags):
  return [
    str(files / "mine.py"), f"--root={files / root}",
    f"--trainer={files / 't.py'}:train", *flags,
  ]  # fmt: skip


def _json(files, root):
  return (files / root / "mine.json").read_bytes()


def test_a_killed_study_ends_with_the_same_result(files):
  assert main.main(_arguments(files, "whole")) == 0
  whole, dice = _json(files, "whole"), random.Random(0)
  environment = os.environ | {"SLEEP": "0.05"}
  command = [sys.executable, "-m", "lm.study", *_arguments(files, "killed")]
  for _ in range(3):
    before = len([*files.glob("killed/*/run.json")])
    process = subprocess.Popen(command, env=environment, cwd=_ROOT)
    while process.poll() is None:
      if len([*files.glob("killed/*/run.json")]) > before:
        break
      time.sleep(0.01)
    time.sleep(dice.uniform(0, 0.3))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len([*files.glob("killed/*/run.json")]) < 45
  (files / "killed" / ".adamw_seed=0-1234.0123abcd").mkdir()
  assert main.main(_arguments(files, "killed")) == 0
  assert _json(files, "killed") == whole
  assert not [*files.glob("killed/.*")]
  result = json.loads(whole)
  assert result["claims"][0]["verdict"] == "reproduced"
  assert not result["missing"]


def test_an_array_job_makes_the_same_as_the_command(files, capsys):
  assert main.main(_arguments(files, "whole")) == 0
  while True:
    capsys.readouterr()
    assert main.main(_arguments(files, "array", "--list")) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    if last.startswith("0 runs"):
      break
    for index in reversed(range(len(lines))):
      assert main.main(_arguments(files, "array", f"--index={index}")) == 0
    assert main.main(_arguments(files, "array", "--index=0")) == 0  # Again.
  assert main.main(_arguments(files, "array", "--report")) == 0
  assert _json(files, "array") == _json(files, "whole")


def test_a_stale_run_is_named_and_not_used(files):
  assert main.main(_arguments(files, "whole")) == 0
  before = json.loads(_json(files, "whole"))
  assert before["foreign"] == []
  runs = files / "whole"
  known = runs / before["runs"][0]["id"]
  stale = runs / f"{known.name[:-8]}00000000"
  stale.mkdir()
  for path in known.iterdir():
    (stale / path.name).write_text(path.read_text().replace("5.", "1."))
  assert main.main(_arguments(files, "whole", "--report")) == 0
  after = json.loads(_json(files, "whole"))
  assert after.pop("foreign") == [stale.name]
  before.pop("foreign")
  assert after == before


def test_a_report_may_be_written_before_the_runs(files):
  assert main.main(_arguments(files, "none", "--report")) == 0
  found = json.loads(_json(files, "none"))
  assert not found["runs"]
  assert len(found["missing"]) == 3
  assert found["waiting"] > 0


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--tier=ful"], "mine.py has ['small']"),
    (["--index=0"], "--index=0: there is no"),
    (["--plan", "--list"], "--plan and --list exclude each other"),
    (["--index=0", "--report"], "--index and --report exclude each other"),
    (["--trainer=none.py:f"], "no file none.py"),
    (["--trainer=t.py"], "--trainer=t.py must be FILE.py:NAME"),
    (["other_name"], "Give one NAME, not"),
    (["--root=gs://bucket/x"], "--root=gs://bucket/x is not a folder"),
    (["--out=gs://bucket/x"], "--out=gs://bucket/x is not a folder"),
    (["--jobs=0"], "jobs"),
    (["--colour=red"], "colour"),
  ],
)
def test_bad_input_is_one_message_and_exit_code_2(files, capsys, flags, words):
  assert main.main(_arguments(files, "bad", *flags)) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert words in error
  assert not (files / "bad").exists()


def test_a_bad_trainer_is_told(files, capsys):
  arguments = _arguments(files, "bad")
  arguments[-1] = arguments[-1].replace(":train", ":other")
  assert main.main(arguments) == 2
  assert "(1, 3)" in capsys.readouterr().err
  assert not [*files.glob("bad/*/run.json")]


def test_runs_of_another_trainer_are_refused(files, capsys):
  assert main.main(_arguments(files, "whole", "--list")) == 0
  assert main.main(_arguments(files, "whole", "--index=0")) == 0
  capsys.readouterr()
  arguments = [a for a in _arguments(files, "whole") if "--trainer" not in a]
  assert main.main(arguments) == 2
  assert "give each trainer a --root of its own" in capsys.readouterr().err


def test_a_report_takes_the_trainer_that_made_the_runs(files):
  assert main.main(_arguments(files, "whole")) == 0
  result = files / "whole/mine.json"
  before = json.loads(result.read_text())
  result.unlink()
  arguments = [a for a in _arguments(files, "whole") if "--trainer" not in a]
  assert main.main([*arguments, "--report"]) == 0
  after = json.loads(result.read_text())
  assert after["made_by"].pop("command").rpartition("/")[2] in before[
    "made_by"
  ].pop("command")
  assert after == before


@pytest.mark.parametrize("index", [3, 99])
def test_an_index_beyond_the_wave_is_told(files, capsys, index):
  assert main.main(_arguments(files, "whole", "--list")) == 0
  assert main.main(_arguments(files, "whole", f"--index={index}")) == 2
  assert "has 3 runs, from 0" in capsys.readouterr().err


def test_an_array_task_needs_no_flag(files, monkeypatch):
  assert main.main(_arguments(files, "whole", "--list")) == 0
  monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
  assert main.main(_arguments(files, "whole")) == 0
  assert len([*files.glob("whole/*/run.json")]) == 1


def test_a_mistake_in_a_declaration_is_told_before_any_run(files, capsys):
  text = _STUDY.replace('"muon"', '"muonn"')
  (files / "mine.py").write_text(text)
  assert main.main(_arguments(files, "bad")) == 2
  assert "method='muonn' is not one of" in capsys.readouterr().err
