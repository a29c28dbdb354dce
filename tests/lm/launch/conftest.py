"""A cloud in a folder: programs on PATH that record and do little."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time

import pytest

from lm.launch import tpu

_FAKE_GCLOUD = pathlib.Path(__file__).with_name("fake_gcloud.sh")

# A worker's own python3: uv's `venv` makes the interpreter below.
_SYSTEM_PYTHON = """\
#!/bin/bash
echo "python3 $*" >> "$HOME/installs"
if [ "$2" = uv ] && [ "$3" = venv ]; then
  mkdir -p "${@: -1}/bin"
  cp "$FAKE/interpreter" "${@: -1}/bin/python"
fi
"""

# Stands for the program: ends with the code in $FAKE/ends, or trains until it
# is told to save, for half a minute at most.
INTERPRETER = """\
#!/bin/bash
trap 'echo saved; exit 75' TERM
echo start >> "$HOME/starts"
pwd > "$HOME/arguments"
printf '%s\\n' "$JAX_PLATFORMS" "$@" >> "$HOME/arguments"
echo "training $2"
if [ -e "$FAKE/ends" ]; then exit "$(cat "$FAKE/ends")"; fi
for _ in $(seq 600); do sleep 0.05; done
exit 9
"""

# Lives on for a while, as a mount does, with all it has inherited.
_GCSFUSE = """\
#!/bin/bash
echo "$*" >> "$HOME/mounts"
touch "${@: -1}/.mounted"
sleep 5 < /dev/null > /dev/null 2>&1 &
"""

_MOUNTPOINT = """\
#!/bin/bash
[ -e "$2/.mounted" ]
"""


class Cloud:
  """What the fake gcloud keeps, and what it was asked."""

  def __init__(self, folder: pathlib.Path):
    """A cloud with two workers and no queued resource."""
    self.folder = folder
    self.workers = [folder / f"worker-{i}" for i in range(2)]
    for worker in self.workers:
      worker.mkdir()

  def write(self, name: str, text: str) -> None:
    """Sets `state`, `next_state`, `unreachable`, `broken` or `ends`."""
    (self.folder / name).write_text(text)

  @property
  def calls(self) -> list[list[str]]:
    """Arguments of each call of gcloud so far, storage apart."""
    path = self.folder / "calls"
    text = path.read_text() if path.exists() else ""
    calls = [call.split("\0")[:-1] for call in text.split("\x1e\0")[:-1]]
    return [call for call in calls if call[0] == "compute"]

  def verbs(self) -> list[str]:
    """Their verbs: describe, create, delete, ssh, scp."""
    return [call[3] for call in self.calls]

  def starts(self, worker: int) -> int:
    """How often the program was started on a worker."""
    path = self.workers[worker] / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0

  def make_ready(self) -> None:
    """What `create` and `setup` would leave."""
    self.write("state", "ACTIVE")
    for worker in self.workers:
      (worker / "goldenpath").mkdir()
      (worker / "goldenpath-job").mkdir()
      (worker / "goldenpath-job" / "ready").touch()
      (worker / "goldenpath-env" / "bin").mkdir(parents=True)
      interpreter = worker / "goldenpath-env" / "bin" / "python"
      write_program(interpreter, INTERPRETER)

  def wait_for(self, worker: int, name: str, text: str = "") -> str:
    """Contents of a file of a worker's home, once they hold `text`."""
    path = self.workers[worker] / name
    self._await(lambda: path.exists() and text in path.read_text())
    return path.read_text()

  def kill(self, worker: int) -> None:
    """Ends a worker's run as when its machine is taken: all at once."""
    pid = int(self.wait_for(worker, "goldenpath-job/pid", "\n"))
    os.killpg(os.getpgid(pid), signal.SIGKILL)

  def shut_down(self, worker: int) -> None:
    """Sends SIGTERM to all that runs on a worker."""
    pid = int(self.wait_for(worker, "goldenpath-job/pid", "\n"))
    os.killpg(os.getpgid(pid), signal.SIGTERM)

  def stop_all(self) -> None:
    """Kills what is still running, or about to."""
    for worker in self.workers:
      job = worker / "goldenpath-job"
      if (job / "command").exists():
        self._await(lambda job=job: _ended(job) or (job / "pid").exists())
        if not _ended(job):
          with contextlib.suppress(ProcessLookupError):
            self.kill(int(worker.name[-1]))

  def _await(self, condition) -> None:
    end = time.monotonic() + 20
    while not condition():
      if time.monotonic() > end:
        raise TimeoutError
      time.sleep(0.02)


def _ended(job: pathlib.Path) -> bool:
  return (job / "exit_code").exists()


def write_program(path: pathlib.Path, text: str) -> None:
  """An executable script."""
  path.write_text(text)
  path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  """The fake cloud, with the project as a git clone of one file."""
  fake, programs, clone = (tmp_path / n for n in ("fake", "bin", "clone"))
  for folder in (fake, programs, clone):
    folder.mkdir()
  write_program(programs / "gcloud", _FAKE_GCLOUD.read_text())
  write_program(programs / "python3", _SYSTEM_PYTHON)
  write_program(programs / "gcsfuse", _GCSFUSE)
  write_program(programs / "mountpoint", _MOUNTPOINT)
  write_program(fake / "interpreter", INTERPRETER)
  monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
  monkeypatch.setenv("FAKE", str(fake))
  for name, value in {
    "PROJECT": "proj", "ZONE": "us-central2-b", "NAME": "pod", "TYPE": "v4-32",
  }.items():  # fmt: skip
    monkeypatch.setenv(f"TPU_{name}", value)
  monkeypatch.delenv("TPU_RUNTIME", raising=False)
  (clone / "setup.py").write_text("committed\n")
  git = ["git", "-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@b"]
  subprocess.check_call([*git, "init", "--quiet"])
  subprocess.check_call([*git, "add", "."])
  subprocess.check_call([*git, "commit", "--quiet", "-m", "one"])
  monkeypatch.setattr(tpu, "_ROOT", clone)
  made = Cloud(fake)
  yield made
  made.stop_all()
