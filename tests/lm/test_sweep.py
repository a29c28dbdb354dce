"""Sweeps expand to checked runs, and each run is run once."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
import waiting
from absl import flags
from ml_collections import config_flags

from lm import sweep
from lm.cli import children
from lm.config import errors, load
from lm.config.errors import InputError
from lm.tools import sweeps as lib
from ml_collections_configs import sweeps

_ROOT = pathlib.Path(__file__).resolve().parents[2]


_NAMES = [
  name
  for name, value in vars(sweeps).items()
  if getattr(value, "__module__", "") == sweeps.__name__
  and not name.startswith("_")
  and name != "product"
]
_TINY = "ml_collections_configs/tiny.py"


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
  monkeypatch.chdir(_ROOT)
  monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)


def _tiny(**overrides):
  return {"config": _TINY, "overrides": {"seed": 0} | overrides}


@pytest.mark.parametrize("name", _NAMES)
def test_shipped_sweeps_are_valid_and_their_flags_say_the_same(
  name, monkeypatch
):
  runs = lib.load_sweep(name)
  jobs = lib.expand(runs)
  assert len({job.id for job in jobs}) == len(runs) >= 2
  command = jobs[-1].command(pathlib.Path("root"), [])
  assert command[1:3] == ["-m", "lm.main"]
  given = [arg for arg in command if arg.startswith("--config")]
  monkeypatch.setattr(sys, "argv", ["main", *given])
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", flag_values=values)
  values(sys.argv)
  expected = load.from_config_dict(values.config)
  assert lib.resolve(jobs[-1].config, jobs[-1].overrides) == expected


def test_the_critical_batch_pairs_of_151m():
  runs = sweeps.cbs_151m()
  pairs = [
    (r["overrides"]["data.batch_size"], r["overrides"]["train.num_steps"])
    for r in runs
  ]
  assert pairs[0] == (64, 160_000)
  assert pairs[-1] == (16_384, 2_600)
  config = lib.resolve(runs[0]["config"], runs[0]["overrides"])
  assert config.data.seq_length == 512
  assert config.model.D == 1024


def test_product_varies_the_last_key_fastest():
  points = list(sweeps.product({"a": (1, 2), "b": (3, 4)}))
  assert points == [
    {"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4},
  ]  # fmt: skip


def test_an_id_follows_the_resolved_configuration_not_its_spelling():
  rate = lib.resolve(_TINY, {}).optim.learning_rate
  plain, spelled, other = lib.expand(
    [
      {"config": _TINY, "name": "a"},
      {
        "config": _TINY,
        "name": "b",
        "overrides": {"optim.learning_rate": rate},
      },
      {"config": _TINY, "name": "c", "overrides": {"seed": 1}},
    ]
  )
  assert plain.id.split("-")[1] == spelled.id.split("-")[1]
  assert plain.id.split("-")[1] != other.id.split("-")[1]
  assert re.fullmatch(r"a-[0-9a-f]{8}", plain.id)


def test_names_come_from_the_overrides_and_are_safe_as_folders():
  (job,) = lib.expand([_tiny(**{"eval.sets": ["sotu"]})])
  assert re.fullmatch(r"tiny_seed=0_sets=-sotu-[0-9a-f]{8}", job.id)


@pytest.mark.parametrize(
  ("runs", "message"),
  [
    ([_tiny(**{"optim.lr": 1.0})], "run 0: config.optim.lr is not a key"),
    ([_tiny(), _tiny(**{"seed.x": 1})], "run 1: config.seed.x is not a key"),
    ([_tiny(**{"model.D": "wide"})], "config.model.D=wide must be a whole"),
    ([_tiny(**{"model.D": 250})], r"config.model.D=250"),
    ([_tiny(**{"optim.name": "adamm"})], "adamm"),
    ([{"config": "nowhere.py"}], "no file nowhere.py"),
    ([_tiny(), _tiny()], "occurs 2 times.*seeds"),
  ],
)
def test_bad_runs_are_refused_before_any_starts(runs, message):
  with pytest.raises(ValueError, match=message):
    lib.expand(runs)


def test_all_problems_are_told_at_once():
  with pytest.raises(InputError, match="(?s)run 0: .*run 1: "):
    lib.expand([_tiny(a=1), _tiny(b=1)])


def test_sweeps_from_files(tmp_path):
  runs = [_tiny()]
  (tmp_path / "s.json").write_text(json.dumps(runs))
  assert lib.load_sweep(f"{tmp_path}/s.json") == runs
  (tmp_path / "s.py").write_text(f"def mine():\n  return {runs}\n")
  assert lib.load_sweep(f"{tmp_path}/s.py:mine") == runs
  with pytest.raises(InputError, match=r"\['mine'\]"):
    lib.load_sweep(f"{tmp_path}/s.py:yours")
  (tmp_path / "bad.json").write_text('[{"overides": {}}]')
  with pytest.raises(InputError, match="run 0 has the keys"):
    lib.load_sweep(f"{tmp_path}/bad.json")


# Stands for lm.main. By its seed it: 0 finishes, 1 fails with code 3,
# 2 waits for SIGTERM and then says that it saved, 3 notes it and stays; both
# give up after some minutes. 4 prints its further arguments and finishes.
_PROGRAM = """
import json, os, pathlib, signal, sys, time
folder, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
def stop(*_): sys.exit(75)
def stay(*_): (folder / "told").touch()
signal.signal(signal.SIGTERM, stop if seed == 2 else stay)
with (folder / "starts").open("a") as file:
  print("start", file=file)
print("output of", seed)
time.sleep(0.05)
(folder / "cores").write_text(json.dumps(sorted(os.sched_getaffinity(0))))
if seed == 0:
  (folder / "run.json").write_text(json.dumps({"status": "finished"}))
if seed == 1:
  sys.exit(3)
if seed == 4:
  print(sys.argv[3:])
elif seed > 1:
  time.sleep(300)
  sys.exit(9)
"""


def _command(job, root, extra):
  seed = str(job.overrides["seed"])
  return [sys.executable, "-c", _PROGRAM, str(root / job.id), seed, *extra]


@pytest.fixture
def start(tmp_path, monkeypatch):
  """Runs the program of this module on a sweep of seeds; returns the code."""
  monkeypatch.setattr(lib.Job, "command", _command)

  def start(seeds, *args):
    runs = [{"config": _TINY, "overrides": {"seed": s}} for s in seeds]
    (tmp_path / "s.json").write_text(json.dumps(runs))
    return sweep.main(
      [f"--sweep={tmp_path}/s.json", f"--root={tmp_path}/runs", *args]
    )

  return start


def _starts(tmp_path):
  files = sorted(tmp_path.glob("runs/*/starts"))
  return {
    re.findall(r"seed=(\d)", file.parent.name)[0]: file.read_text().count("\n")
    for file in files
  }


def test_finished_runs_are_skipped_and_failures_reported(
  start, tmp_path, capfd
):
  assert start([0, 1]) == 1
  assert _starts(tmp_path) == {"0": 1, "1": 1}
  out = capfd.readouterr().out
  assert re.search(r"seed=0-\w+ +0 +finished ", out)
  assert re.search(r"seed=1-\w+ +1 +failed \(exit code 3\)", out)
  assert start([0, 1]) == 1
  assert _starts(tmp_path) == {"0": 1, "1": 2}
  assert "finished before" in capfd.readouterr().out
  assert start([0]) == 0


def test_parallel_runs_write_their_output_to_files(start, tmp_path, capfd):
  assert start([0, 1], "--jobs=2") == 1
  logs = {p.read_text() for p in tmp_path.glob("runs/*/log.txt")}
  assert logs == {"output of 0\n", "output of 1\n"}
  assert "output of" not in capfd.readouterr().out


@pytest.mark.skipif(
  not hasattr(os, "sched_getaffinity"), reason="the system pins no process"
)
def test_parallel_runs_share_out_the_cores(start, tmp_path):
  whole = os.sched_getaffinity(0)
  if len(whole) < 2:
    pytest.skip("one core")
  assert start([0, 1], "--jobs=2") == 1
  mine = [
    set(json.loads(path.read_text())) for path in tmp_path.glob("runs/*/cores")
  ]
  assert len(mine) == 2
  assert mine[0] | mine[1] == whole
  assert not mine[0] & mine[1]
  assert start([0], "--jobs=1") == 0
  assert children.shares_of_cores(1) == [set()]
  assert children.shares_of_cores(len(whole) + 1)[0] == set()


def test_one_index_runs_one_and_gives_its_exit_code(
  start, tmp_path, monkeypatch, capsys
):
  assert start([0, 1], "--index=1") == 3
  monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
  assert start([0, 1]) == 0
  assert _starts(tmp_path) == {"0": 1, "1": 1}
  monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
  assert start([0, 1]) == errors.BAD_INPUT
  assert "--array=0-1" in capsys.readouterr().err


def test_list_starts_nothing(start, tmp_path, capsys):
  assert start([0], "--list") == 0
  assert re.search(r"^  0 tiny_seed=0-\w+\n +seed=0$", capsys.readouterr().out)
  assert not (tmp_path / "runs").exists()


_DRIVER = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests", {here!r}]
import test_sweep
from lm import sweep
from lm.tools import sweeps
sweeps.Job.command = test_sweep._command
sys.exit(sweep.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
  ("seeds", "signals", "code", "outcomes"),
  [
    ([2, 0], [signal.SIGINT], 75, ["stopped", "not started"]),
    ([2, 0], [signal.SIGTERM], 75, ["stopped", "not started"]),
    ([3, 0], [signal.SIGINT, signal.SIGINT], 75, ["stopped", "not started"]),
  ],
)
def test_signals_reach_the_runs(tmp_path, seeds, signals, code, outcomes):
  runs = [{"config": _TINY, "overrides": {"seed": s}} for s in seeds]
  (tmp_path / "s.json").write_text(json.dumps(runs))
  here = os.path.dirname(__file__)
  driver = _DRIVER.format(root=str(_ROOT), here=here)
  with subprocess.Popen(
    [sys.executable, "-c", driver, f"--sweep={tmp_path}/s.json",
     f"--root={tmp_path}/runs"],
    stdout=subprocess.PIPE, text=True,
  ) as process:  # fmt: skip
    waiting.until(lambda: list(tmp_path.glob("runs/*/starts")), process)
    for earlier, number in enumerate(signals):
      if earlier:
        waiting.until(lambda: list(tmp_path.glob("runs/*/told")), process)
      process.send_signal(number)
    out, _ = process.communicate(timeout=waiting.LONG)
  assert process.returncode == code
  rows = out.strip().splitlines()[-len(seeds) :]
  assert [o in row for o, row in zip(outcomes, rows, strict=True)] == [True] * 2


def test_extra_arguments_follow_two_dashes(start, tmp_path, capfd):
  assert start([4], "--jobs=1", "--", "--distributed=auto", "--", "a") == 0
  assert "['--distributed=auto', '--', 'a']" in capfd.readouterr().out


@pytest.mark.parametrize(
  "flags", [["--list", "--jobs=2"], ["--index=0", "--list"]]
)
def test_flags_that_exclude_each_other(start, capsys, flags):
  assert start([0], *flags) == errors.BAD_INPUT
  assert "exclude each other" in capsys.readouterr().err
