"""An evaluation by two real processes, of which one may be lost."""

import contextlib
import os
import pathlib
import random
import socket
import subprocess
import sys

import jax
import pytest
import waiting

from lm import evaluate
from lm.cli import program
from lm.config import errors, load
from lm.processes import distributed, peers
from lm.runs import checkpoint, workdir
from lm.step import build

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# The evaluation, of whose processes one may be killed when it begins to score.
_PROGRAM = """
import os, signal, sys
from lm import evaluate
from lm.eval import evaluator
if os.environ["VICTIM"] == os.environ["OMPI_COMM_WORLD_RANK"]:
  evaluator.Evaluator.run = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(evaluate.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
  """The folder of an untrained run."""
  config = tiny.config(mesh__data=1)
  parts = build.build(
    build.resolve(config, build.find_data(config)), jax.devices()[:1]
  )
  path = workdir.prepare(tmp_path_factory.mktemp("scored") / "run")
  workdir.write_json(path / "config.json", load.to_dict(parts.config))
  with jax.set_mesh(parts.mesh):
    state = build.init_state(parts)
  with checkpoint.Checkpointer(path, async_save=False) as saver:
    saver.save(0, state, {}, None)
  return path


def _open_mpi():
  """What Open MPI would tell the processes, whose port follows from the job."""
  while True:
    offset = random.randrange(1 << 12)
    with socket.socket() as probe, contextlib.suppress(OSError):
      probe.bind(("127.0.0.1", (15 << 12) + offset))
      return {
        "OMPI_MCA_orte_hnp_uri": f"{offset << 12}.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": "2",
      }


def _evaluate(folder, victim=None):
  """Exit codes and outputs of both processes."""
  together = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  together |= _open_mpi() | {"VICTIM": str(victim), "JAX_NUM_CPU_DEVICES": "1"}
  command = [sys.executable, "-c", _PROGRAM, f"--workdir={folder}"]
  running = [
    subprocess.Popen(
      [*command, "--distributed=auto"],
      cwd=_ROOT,
      env=together
      | {f"OMPI_COMM_WORLD_{rank}RANK": str(i) for rank in ("", "LOCAL_")},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(2)
  ]
  try:
    outputs = [p.communicate(timeout=waiting.LONG)[0] for p in running]
  except subprocess.TimeoutExpired:
    for process in running:
      process.kill()
    pytest.fail("\n".join(p.communicate()[0] for p in running))
  return [p.returncode for p in running], outputs


@pytest.mark.slow
def test_two_processes_score_what_one_scores(run, capsys):
  codes, outputs = _evaluate(run)
  assert codes == [0, 0], "\n".join(outputs)
  assert evaluate.main([f"--workdir={run}"]) == 0
  table = capsys.readouterr().out
  assert outputs[0].endswith(table)
  assert table not in outputs[1]  # One speaks.


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_of_a_killed_process_ends_and_says_so(run, victim):
  codes, outputs = _evaluate(run, victim)
  assert codes[victim] == -9, outputs[victim]
  assert codes[1 - victim] == errors.PEER_LOST, outputs[1 - victim]
  assert "another process of this run has ended" in outputs[1 - victim]
  assert "same command again on all of them.\n" in outputs[1 - victim]


@pytest.mark.parametrize(
  ("mode", "expected"),
  [
    ("auto", ["watch None", "initialize auto", "left"]),
    ("none", ["initialize none"]),
  ],
)
def test_it_watches_from_before_the_others_are_there(
  monkeypatch, mode, expected
):
  said = []

  @contextlib.contextmanager
  def watch(tell, goes_on_from):
    assert tell is program.tell
    said.append(f"watch {goes_on_from}")
    try:
      yield
    finally:
      said.append("left")

  monkeypatch.setattr(peers, "Watch", watch)
  monkeypatch.setattr(
    distributed,
    "initialize",
    lambda mode, *_: said.append(f"initialize {mode}"),
  )
  code = evaluate.main(["--workdir=gone", f"--distributed={mode}"])
  assert (code, said) == (errors.BAD_INPUT, expected)
