"""The SkyPilot task: its keys, and its scripts run by bash."""

import os
import pathlib
import subprocess

import pytest
import yaml

from lm.config import errors

_ROOT = pathlib.Path(__file__).parents[3]
_TASK = yaml.safe_load((_ROOT / "lm" / "launch" / "skypilot.yaml").read_text())
_INTERPRETER = """\
#!/bin/bash
printf '%s\\n' "$JAX_PLATFORMS" "$@" > "$HOME/arguments"
echo $$ > "$HOME/pid"
exit 75
"""


def test_it_is_a_recovering_spot_job_with_a_shared_folder():
  assert set(_TASK) == {
    "name", "workdir", "resources", "num_nodes", "envs", "file_mounts",
    "setup", "run",
  }  # fmt: skip
  resources = _TASK["resources"]
  assert resources["use_spot"] is True
  assert resources["job_recovery"]["recover_on_exit_codes"] == [
    errors.PREEMPTED, errors.PEER_LOST,
  ]  # fmt: skip
  mount = {"source": "gs://${BUCKET}", "mode": "MOUNT"}
  assert _TASK["file_mounts"] == {"/bucket": mount}


def test_what_has_to_be_given_has_no_default():
  envs = _TASK["envs"]
  assert [name for name, value in envs.items() if value is None] == [
    "BUCKET", "RUN",
  ]  # fmt: skip
  assert (_ROOT / envs["CONFIG"]).is_file()


def _run(script, folder, **variables):
  """Runs one of the task's scripts with `folder` as home and as root."""
  given = {k: v for k, v in _TASK["envs"].items() if v is not None}
  environment = os.environ | given | {"HOME": str(folder), "RUN": "a"}
  process = subprocess.Popen(
    ["bash", "-c", _TASK[script].replace("/bucket", f"{folder}/bucket")],
    cwd=folder,
    env=environment | {"SKYPILOT_NUM_NODES": "1"} | variables,
    stderr=subprocess.PIPE,
    text=True,
  )
  error = process.communicate()[1]
  if script == "run":  # The program itself, so signals reach it.
    assert (folder / "pid").read_text() == f"{process.pid}\n"
  return process.returncode, error


@pytest.fixture
def home(tmp_path):
  """A machine with an interpreter that records its arguments."""
  path = tmp_path / "goldenpath-env" / "bin" / "python"
  path.parent.mkdir(parents=True)
  path.write_text(_INTERPRETER)
  path.chmod(0o755)
  return tmp_path


@pytest.mark.parametrize(
  ("variables", "platforms", "processes"),
  [
    ({}, "cuda,cpu", ["--distributed=none"]),
    (
      {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5",
        "SKYPILOT_NODE_RANK": "1",
      },
      "cuda,cpu",
      [
        "--distributed=explicit",
        "--coordinator=10.0.0.4:8476",
        "--num_processes=2",
        "--process_id=1",
      ],
    ),
    (
      {"ACCELERATOR": "tpu", "SKYPILOT_NUM_NODES": "4"},
      "tpu,cpu",
      ["--distributed=auto"],
    ),
  ],
)
def test_run_says_who_the_process_is_and_passes_the_exit_code_on(
  home, variables, platforms, processes
):
  flags = "--config.seed=1 --config.mesh.fsdp=8"
  code, error = _run("run", home, FLAGS=flags, **variables)
  assert (code, error) == (75, "")
  assert (home / "arguments").read_text().splitlines() == [
    platforms, "-u", "-m", "lm.main",
    "--config=ml_collections_configs/olmo150m.py",
    f"--workdir={home}/bucket/runs/a", *processes, *flags.split(),
  ]  # fmt: skip


def test_setup_installs_and_copies_the_input_and_can_be_repeated(home):
  data = home / "bucket" / "input" / "data"
  data.mkdir(parents=True)
  (data / "rows").write_text("0 1 2")
  programs = home / "bin"
  programs.mkdir()
  (programs / "python3").write_text(
    '#!/bin/sh\necho "$*" >> "$HOME/installs"\n'
  )
  (programs / "python3").chmod(0o755)
  path = f"{programs}:{os.environ['PATH']}"
  for _ in range(2):
    assert _run("setup", home, PATH=path) == (0, "")
  assert (home / "data" / "rows").read_text() == "0 1 2"
  installs = (home / "installs").read_text()
  assert "uv venv" not in installs  # The interpreter is there.
  assert installs.count("--editable .[lm,cuda]") == 2


def test_setup_without_input_says_what_is_missing(home):
  (home / "bin").mkdir()
  (home / "bin" / "python3").write_text("#!/bin/sh\n")
  (home / "bin" / "python3").chmod(0o755)
  path = f"{home / 'bin'}:{os.environ['PATH']}"
  code, error = _run("setup", home, PATH=path)
  assert code != 0
  assert "bucket/input" in error
