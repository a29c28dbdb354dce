"""The SLURM script against srun, scancel and scontrol that only record."""

import os
import pathlib
import re
import signal
import subprocess

import pytest
import waiting

_SCRIPT = pathlib.Path(__file__).parents[3] / "lm" / "launch" / "slurm.sh"

# srun starts one of its tasks; when it is signalled itself, it gives up, as the
# real one does. scancel signals what srun has started.
_PROGRAMS = {
  "srun": """
trap 'echo srun >> "$FAKE/signalled"; exit 143' TERM
printf '%s\\n' "$@" > "$FAKE/srun"
echo "${SRUN_CPUS_PER_TASK:-}" > "$FAKE/cpus"
shift 2
"$@" &
echo $! > "$FAKE/task"
wait $!
""",
  "scancel": """
echo "$*" >> "$FAKE/scancel"
until [ -s "$FAKE/task" ]; do sleep 0.02; done
kill -TERM "$(cat "$FAKE/task")"
""",
  "scontrol": 'echo "$*" >> "$FAKE/scontrol"\n',
  # Stands for the run: saves on TERM for a moment, else ends with $ENDS.
  "python": """
trap 'sleep 0.2; echo saved; exit 75' TERM
touch "$FAKE/training"
if [ -n "$ENDS" ]; then exit "$ENDS"; fi
for _ in $(seq 600); do sleep 0.05; done
exit 9
""",
}
_ARRAY = {
  "SLURM_JOB_ID": "70",
  "SLURM_ARRAY_JOB_ID": "70",
  "SLURM_ARRAY_TASK_ID": "3",
}


class Slurm:
  """Starts the script as a batch job would, and reads what was recorded."""

  def __init__(self, folder: pathlib.Path):
    """Writes the programs."""
    self.folder = folder
    (folder / "bin").mkdir()
    for name, text in _PROGRAMS.items():
      path = folder / "bin" / name
      path.write_text(f"#!/bin/bash\n{text}")
      path.chmod(0o755)

  def start(self, *arguments: str, ends: str = "", **variables: str):
    """The script's process."""
    environment = {k: v for k, v in os.environ.items() if "SLURM" not in k}
    environment |= {
      "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
      "FAKE": str(self.folder),
      "ENDS": ends,
    }
    return subprocess.Popen(
      ["bash", str(_SCRIPT), *arguments],
      env=environment | variables,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
    """Exit code and output."""
    process = self.start(*arguments, **variables)
    output = process.communicate(timeout=waiting.LONG)[0]
    return process.returncode, output

  def read(self, name: str) -> list[str]:
    """Lines of a record; none if there is none."""
    path = self.folder / name
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def slurm(tmp_path):
  """A SLURM in a folder."""
  return Slurm(tmp_path)


def test_a_single_run(slurm):
  code, _ = slurm.run("--workdir=two words", ends="0", SLURM_JOB_ID="7")
  assert code == 0
  assert slurm.read("srun") == [
    "--ntasks=1", "--kill-on-bad-exit=0", "python", "-m", "lm.main",
    "--workdir=two words",
  ]  # fmt: skip
  assert slurm.read("scontrol") == []


@pytest.mark.parametrize(
  "variables",
  [
    {"SLURM_NTASKS": "4"},
    {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "2"},
    {
      "SLURM_NTASKS": "4",
      "SLURM_JOB_NUM_NODES": "2",
      "SLURM_GPUS_ON_NODE": "2",
    },
  ],
)
def test_several_tasks_find_each_other(slurm, variables):
  code, _ = slurm.run("--workdir=w", ends="0", SLURM_JOB_ID="7", **variables)
  assert code == 0
  assert slurm.read("srun")[0] == "--ntasks=4"
  assert slurm.read("srun")[-2:] == ["--workdir=w", "--distributed=auto"]


def test_an_array_is_a_sweep(slurm):
  slurm.run("--sweep=s", "--root=r", ends="0", **_ARRAY)
  assert slurm.read("srun")[2:] == [
    "python", "-m", "lm.sweep", "--index=3", "--sweep=s", "--root=r",
  ]  # fmt: skip


@pytest.mark.parametrize("own", [[], ["--", "--config.seed=1"]])
def test_an_array_of_several_tasks_hands_the_flag_to_its_runs(slurm, own):
  slurm.run("--sweep=s", *own, ends="0", SLURM_NTASKS="2", **_ARRAY)
  expected = ["--sweep=s", *(own or ["--"]), "--distributed=auto"]
  assert slurm.read("srun")[-len(expected) :] == expected


@pytest.mark.parametrize(
  ("variables", "id_"), [({"SLURM_JOB_ID": "7"}, "7"), (_ARRAY, "70_3")]
)
def test_told_to_stop_it_saves_and_goes_back_into_the_queue(
  slurm, variables, id_
):
  process = slurm.start("--workdir=w", **variables)
  waiting.until((slurm.folder / "training").exists)
  process.send_signal(signal.SIGTERM)
  waiting.until((slurm.folder / "scancel").exists)
  process.send_signal(signal.SIGTERM)  # A second one changes nothing.
  output = process.communicate(timeout=waiting.LONG)[0]
  assert process.returncode == 75
  assert slurm.read("scancel") == [f"--signal=TERM {id_}"]
  assert slurm.read("scontrol") == [f"requeue {id_}"]
  assert slurm.read("signalled") == []
  assert "saved" in output


@pytest.mark.parametrize("ends", ["0", "2", "3", "74"])
def test_other_exit_codes_are_the_jobs(slurm, ends):
  assert slurm.run(ends=ends, SLURM_JOB_ID="7")[0] == int(ends)
  assert slurm.read("scontrol") == []


@pytest.mark.parametrize(
  ("ends", "tasks", "seconds", "requeued"),
  [
    ("76", "2", "600", True),
    ("137", "2", "600", True),  # One was killed: higher than the others' 76.
    ("76", "2", "300", False),
    ("76", "1", "600", False),
    ("137", "1", "600", False),
    ("74", "2", "600", False),
    ("75", "2", "0", True),
  ],
)
def test_a_lost_task_brings_all_back_into_the_queue(
  slurm, ends, tasks, seconds, requeued
):
  """Unless it was lost within minutes: bash counts on from SECONDS."""
  code, output = slurm.run(
    ends=ends, SLURM_JOB_ID="7", SLURM_NTASKS=tasks, SECONDS=seconds
  )
  assert code == int(ends)
  assert slurm.read("scontrol") == (["requeue 7"] if requeued else [])
  assert ("Lost a task" in output) == (requeued and ends != "75")


def test_the_exit_code_needs_no_room_for_files(slurm):
  code, _ = slurm.run(ends="75", SLURM_JOB_ID="7", TMPDIR="/nowhere")
  assert code == 75
  assert slurm.read("scontrol") == ["requeue 7"]


def test_without_an_exit_code_of_srun_it_fails(slurm):
  """As when what waits for srun is killed for want of memory."""
  killed = 'kill -KILL "$PPID"\n'
  (slurm.folder / "bin" / "srun").write_text(f"#!/bin/bash\n{killed}")
  assert slurm.run(SLURM_JOB_ID="7")[0] == 1
  assert slurm.read("scontrol") == []


def test_cores_of_sbatch_reach_srun(slurm):
  slurm.run(ends="0", SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="6")
  assert slurm.read("cpus") == ["6"]


@pytest.mark.parametrize(
  ("variables", "message"),
  [
    ({}, "by sbatch"),
    (
      {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_GPUS_ON_NODE": "8"},
      "--ntasks-per-node=8",
    ),
  ],
)
def test_what_cannot_work_is_refused(slurm, variables, message):
  code, output = slurm.run("--workdir=w", ends="0", **variables)
  assert code == 2
  assert message in output
  assert slurm.read("srun") == []


def test_its_options_let_it_save_in_time_and_start_again():
  options = re.findall(r"^#SBATCH (\S+)$", _SCRIPT.read_text(), re.MULTILINE)
  assert {"--requeue", "--open-mode=append", "--signal=B:TERM@120"} < set(
    options
  )
