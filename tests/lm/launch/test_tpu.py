"""The TPU script: the commands it prints, and what the workers run."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

_SCRIPT = pathlib.Path(__file__).parents[3] / "lm" / "launch" / "tpu.sh"
_WHERE = ["--project=proj", "--zone=us-central2-b", "--quiet"]
_QUEUED = ["compute", "tpus", "queued-resources"]
_SSH = ["compute", "tpus", "tpu-vm", "ssh", "pod"]
_GIVEN = {
  "TPU_PROJECT": "proj",
  "TPU_ZONE": "us-central2-b",
  "TPU_NAME": "pod",
  "TPU_TYPE": "v4-32",
}
# Stands for the interpreter: records how it was started, saves on SIGTERM.
_PYTHON = """\
#!/bin/bash
printf '%s\\n' "$JAX_PLATFORMS" "$PWD" "$@" > "$HOME/arguments"
trap 'echo saved; exit 75' TERM
for _ in $(seq 600); do sleep 0.05; done
"""


def _script(*arguments, **variables):
  """The script's result with `variables`, None for one that is not set."""
  environment = {k: v for k, v in os.environ.items() if k[:4] != "TPU_"}
  given = {k: v for k, v in (_GIVEN | variables).items() if v is not None}
  return subprocess.run(
    ["bash", str(_SCRIPT), *arguments],
    env=environment | given,
    capture_output=True,
    text=True,
  )


def _calls(*arguments, **variables):
  """Arguments of each gcloud command that a dry run prints, read by bash."""
  printed = _script("--dry-run", *arguments, **variables)
  assert (printed.returncode, printed.stderr) == (0, "")
  stub = "gcloud() { printf '%s\\0' \"$@\" $'\\x1e'; }\n"
  read = subprocess.run(
    ["bash", "-c", stub + printed.stdout], capture_output=True, text=True
  )
  return [call.split("\0")[:-1] for call in read.stdout.split("\x1e\0")[:-1]]


@pytest.mark.parametrize(
  ("accelerator", "runtime"),
  [
    ("v4-32", "tpu-ubuntu2204-base"),
    ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-32", "v2-alpha-tpuv5"),
    ("v6e-8", "v2-alpha-tpuv6e"),
  ],
)
def test_create_asks_for_the_slice(accelerator, runtime):
  assert _calls("create", "--spot", "--network=n", TPU_TYPE=accelerator) == [
    [
      *_QUEUED, "create", "pod", "--node-id=pod",
      f"--accelerator-type={accelerator}", f"--runtime-version={runtime}",
      "--async", "--spot", "--network=n", *_WHERE,
    ]
  ]  # fmt: skip


def test_an_explicit_runtime_counts():
  (create,) = _calls("create", TPU_RUNTIME="new")
  assert "--runtime-version=new" in create


def test_status_and_delete():
  state = "--format=value(state.state)"
  assert _calls("status") == [[*_QUEUED, "describe", "pod", state, *_WHERE]]
  assert _calls("delete") == [[*_QUEUED, "delete", "pod", "--force", *_WHERE]]


def test_setup_sends_the_code_and_then_installs_it_on_all_workers():
  copy, install = _calls("setup")
  assert copy[:4] == ["compute", "tpus", "tpu-vm", "scp"]
  assert copy[4].endswith("/code.tar.gz")
  assert copy[5:] == ["pod:", "--worker=all", *_WHERE]
  assert install[:6] == [*_SSH, "--worker=all"]
  assert "tar -xzf ~/code.tar.gz -C ~/goldenpath" in install[6]
  assert '--editable "$HOME/goldenpath[lm,tpu]"' in install[6]


def test_logs_are_those_of_one_worker_unless_told():
  tail = "--command=tail -n 50 -F ~/run.log"
  assert _calls("logs") == [[*_SSH, "--worker=0", tail, *_WHERE]]
  assert _calls("logs", "all") == [[*_SSH, "--worker=all", tail, *_WHERE]]


def test_a_script_for_all_workers_arrives_as_it_was_given():
  (call,) = _calls("all", 'echo "it\'s $HOME"\ndate')
  assert call[5:7] == ["--worker=all", '--command=echo "it\'s $HOME"\ndate']


@pytest.mark.parametrize("name", _GIVEN)
def test_a_name_that_is_not_set_is_said_before_anything_runs(name):
  done = _script("--dry-run", "create", **{name: None})
  assert done.returncode != 0
  assert name in done.stderr
  assert done.stdout == ""


def test_an_unknown_command_is_bad_input():
  done = _script("--dry-run", "crate")
  assert (done.returncode, done.stdout) == (2, "")
  assert "crate is not a command" in done.stderr


def _wait_for(path, text):
  end = time.monotonic() + 20
  while not path.exists() or text not in path.read_text():
    assert time.monotonic() < end, f"{path} never had {text!r}"
    time.sleep(0.02)


def test_a_worker_runs_it_once_and_saves_when_it_is_stopped(tmp_path):
  """The scripts that ssh would carry, run by bash in a worker's home."""
  (tmp_path / "goldenpath").mkdir()
  program = tmp_path / "goldenpath-env" / "bin" / "python"
  program.parent.mkdir(parents=True)
  program.write_text(_PYTHON)
  program.chmod(0o755)

  def worker(*arguments):
    (call,) = _calls(*arguments)
    return subprocess.run(
      ["bash", "-c", call[6].removeprefix("--command=")],
      env=os.environ | {"HOME": str(tmp_path)},
      capture_output=True,
      text=True,
    )

  words = ["-m", "lm.main", "--workdir=/bucket/two words", "it's", "$x"]
  assert worker("run", "python", *words).returncode == 0
  try:
    _wait_for(tmp_path / "arguments", "$x")
    assert (tmp_path / "arguments").read_text().splitlines() == [
      "tpu,cpu", str(tmp_path / "goldenpath"), *words,
    ]  # fmt: skip
    again = worker("run", "python", *words)
    assert again.returncode == 1
    assert "a run is going on" in again.stderr
    assert worker("stop").returncode == 0
    _wait_for(tmp_path / "run.log", "saved\nexit code 75\n")
  finally:
    pid = int((tmp_path / "run.pid").read_text())
    try:
      os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
