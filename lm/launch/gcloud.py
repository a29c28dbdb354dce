"""The `gcloud` commands of one TPU queued resource.

A queued resource is a request for a slice; the slice it is given has the same
name here. Nothing else of the project talks to Google Cloud, and credentials
are gcloud's own business.
"""

import shlex
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

# States as the service names them; another one is treated like WAITING.
ACTIVE = "ACTIVE"
LOST = ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING")
_DRY = "unknown (dry run)"


class GcloudError(RuntimeError):
  """gcloud is missing or failed; the message says what to do."""


class Target(NamedTuple):
  """Which queued resource.

  Attributes:
    project: Google Cloud project.
    zone: E.g. us-central2-b.
    name: Of the queued resource and of its slice.
  """

  project: str
  zone: str
  name: str


class Gcloud:
  """Runs gcloud for one target, or only prints what it would run."""

  def __init__(self, target: Target, *, dry_run: bool = False):
    """Takes the target; runs nothing.

    Args:
      target: Names of project, zone and queued resource.
      dry_run: Print each command instead; `state` is then not known.
    """
    self.target = target
    self.dry_run = dry_run

  def state(self) -> str | None:
    """State of the queued resource; None if there is none.

    Raises:
      GcloudError: If it cannot be asked for.
    """
    command = self._queued("describe", "--format=value(state.state)")
    if self.dry_run:
      print(shlex.join(command))
      return _DRY
    done = _execute(command, capture=True)
    if done.returncode == 0:
      return done.stdout.strip()
    if "NOT_FOUND" in done.stderr:
      return None
    raise GcloudError(f"{shlex.join(command)}:\n{done.stderr.strip()}")

  def create(
    self, accelerator: str, runtime: str, options: Sequence[str]
  ) -> None:
    """Asks for the slice; returns before it is there.

    Args:
      accelerator: E.g. v5litepod-16.
      runtime: Software version of the workers.
      options: Further flags, e.g. --spot.
    """
    self.call(
      self._queued(
        "create",
        f"--node-id={self.target.name}",
        f"--accelerator-type={accelerator}",
        f"--runtime-version={runtime}",
        *options,
        "--async",
      )
    )

  def delete(self) -> None:
    """Deletes the slice and the request; returns when both are gone."""
    self.call(self._queued("delete", "--force"))

  def ssh(self, script: str, worker: str = "all") -> None:
    """Runs a script on the workers, all at a time.

    Args:
      script: Text for bash.
      worker: Their numbers as gcloud takes them: 0, 1-3, all.
    """
    self.call(self._ssh(script, worker))

  def ask(self, script: str) -> str:
    """What a script prints on all workers."""
    command = self._ssh(script, "all")
    done = _execute(command, capture=True)
    if done.returncode:
      raise GcloudError(f"{done.stderr.strip()}\n{_failed(done.returncode)}")
    return done.stdout

  def copy(self, path: str, name: str) -> None:
    """Copies a file into the home folder of every worker."""
    self.call(
      [
        "gcloud", "compute", "tpus", "tpu-vm", "scp", path,
        f"{self.target.name}:{name}", "--worker=all", *self._where(),
      ]
    )  # fmt: skip

  def call(self, command: Sequence[str]) -> None:
    """Runs a command with its output on the terminal.

    Raises:
      GcloudError: If it fails, on any of the workers.
    """
    if self.dry_run:
      print(shlex.join(command))
      return
    code = _execute(command, capture=False).returncode
    if code:
      raise GcloudError(_failed(code))

  def _queued(self, verb: str, *flags: str) -> list[str]:
    return [
      "gcloud", "compute", "tpus", "queued-resources", verb, self.target.name,
      *flags, *self._where(),
    ]  # fmt: skip

  def _ssh(self, script: str, worker: str) -> list[str]:
    return [
      "gcloud", "compute", "tpus", "tpu-vm", "ssh", self.target.name,
      f"--worker={worker}", f"--command={script}", *self._where(),
    ]  # fmt: skip

  def _where(self) -> tuple[str, ...]:
    project, zone = self.target.project, self.target.zone
    return f"--project={project}", f"--zone={zone}", "--quiet"


def _failed(code: int) -> str:
  return (
    f"gcloud ended with exit code {code}, see above. What was done is kept: "
    "the same command does the rest."
  )


def _execute(
  command: Sequence[str], *, capture: bool
) -> subprocess.CompletedProcess[str]:
  try:
    return subprocess.run(
      command, capture_output=capture, text=True, check=False
    )
  except FileNotFoundError:
    raise GcloudError(
      "There is no program gcloud; install the Google Cloud CLI "
      "(https://cloud.google.com/sdk/docs/install) and log in: "
      "gcloud auth login."
    ) from None
