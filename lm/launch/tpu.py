r"""Trains on a TPU slice, from nothing to a finished run.

    export TPU_PROJECT=my-project TPU_ZONE=us-central2-b TPU_NAME=pod
    export TPU_TYPE=v4-32
    python -m lm.launch.tpu create --spot
    python -m lm.launch.tpu setup --input=gs://BUCKET/input --bucket=BUCKET
    python -m lm.launch.tpu run -- --workdir=gs://BUCKET/runs/a \
        --config=ml_collections_configs/olmo150m.py
    python -m lm.launch.tpu logs --follow
    python -m lm.launch.tpu delete

Every command can be given again: create, run and delete say so when there is
nothing left to do, setup renews the code, and run resumes a run that was
stopped, from its folder. `keep` does the first three, and again after every
preemption, until the run is finished. --dry_run prints the gcloud commands.

Exit codes: 0 done, 1 gcloud or a worker failed, 2 bad input, 75 the slice is
not there yet (the same command later); of `keep`, that of the run.
"""

import argparse
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from ..config import errors
from . import gcloud, remote

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_FAILED, _INTERRUPTED = 1, 130
# Software of the workers by the beginning of the accelerator type.
_RUNTIMES = {
  "v3-": "tpu-ubuntu2204-base",
  "v4-": "tpu-ubuntu2204-base",
  "v5litepod-": "v2-alpha-tpuv5-lite",
  "v5p-": "v2-alpha-tpuv5",
  "v6e-": "v2-alpha-tpuv6e",
}
_DISTRIBUTED = "--distributed=auto"
# Failures of gcloud in a row, and runs that ended because their processes lost
# one another, before `keep` gives up.
_PATIENCE = 5
# How the run of a worker looks to `keep`; see `remote.STATUS`.
_DONE, _STOPPED = "ended 0", f"ended {errors.PREEMPTED}"
_UNSTARTED = {"absent", "new"}
_JOB = re.compile(r"^job \S+ (.+)$", re.MULTILINE)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  args = _parse(sys.argv[1:] if argv is None else list(argv))
  try:
    target = gcloud.Target(
      _given(args, "project"), _given(args, "zone"), _given(args, "name")
    )
    return args.command(gcloud.Gcloud(target, dry_run=args.dry_run), args)
  except gcloud.GcloudError as error:
    print(f"error: {error}", file=sys.stderr)
    return _FAILED
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return errors.BAD_INPUT
  except KeyboardInterrupt:
    return _INTERRUPTED


def create(cloud: gcloud.Gcloud, args: argparse.Namespace) -> int:
  """Asks for the slice unless it was asked for."""
  accelerator = _given(args, "type")
  runtime = args.runtime or os.environ.get("TPU_RUNTIME")
  runtime = runtime or _default_runtime(accelerator)
  name, state = cloud.target.name, cloud.state()
  if cloud.dry_run and args.replace:
    print(f"# Only if {name} is one of {', '.join(gcloud.LOST)}:")
    cloud.delete()
  elif state in gcloud.LOST and args.replace:
    print(f"{name} is {state}: deleting it.")
    cloud.delete()
  elif state in gcloud.LOST:
    raise gcloud.GcloudError(
      f"{name} exists and is {state}; create --replace deletes it and asks "
      "for a new one."
    )
  elif state and not cloud.dry_run:
    print(f"{name} exists already and is {state}; nothing to do.")
    return 0
  flags = ["--spot"] if args.spot else []
  if args.valid_for:
    flags.append(f"--valid-until-duration={args.valid_for}")
  cloud.create(accelerator, runtime, [*flags, *args.rest])
  if not cloud.dry_run:
    print(f"Asked for {accelerator} as {name}; `status` says when it is there.")
  return 0


def setup(cloud: gcloud.Gcloud, args: argparse.Namespace) -> int:
  """Sends the committed code to all workers and installs it there."""
  _check_setup(args)
  if not _is_there(cloud):
    return errors.PREEMPTED
  with tempfile.TemporaryDirectory() as folder:
    archive = remote.ARCHIVE
    if not cloud.dry_run:
      archive = os.path.join(folder, archive)
      _archive(archive)
    cloud.copy(archive, remote.ARCHIVE)
  cloud.ssh(remote.setup(args.input, args.bucket))
  return 0


def run(cloud: gcloud.Gcloud, args: argparse.Namespace) -> int:
  """Starts or resumes a run on all workers, unless it is going on."""
  arguments = run_arguments(args.program, args.rest)
  if not _is_there(cloud):
    return errors.PREEMPTED
  cloud.ssh(remote.run(args.program, arguments))
  return 0


def logs(cloud: gcloud.Gcloud, args: argparse.Namespace) -> int:
  """Prints the end of the log of a worker."""
  cloud.ssh(remote.logs(args.lines, args.follow), args.worker)
  return 0


def status(cloud: gcloud.Gcloud, args: argparse.Namespace) -> int:
  """Prints the state of the slice and of the run on each worker."""
  state = cloud.state()
  print(f"{cloud.target.name}: {state or 'does not exist'}")
  if state == gcloud.ACTIVE or cloud.dry_run:
    cloud.ssh(remote.STATUS)
  return 0


def stop(cloud: gcloud.Gcloud, args: argparse.Namespace) -> int:
  """Tells the run to save and stop; run resumes it."""
  cloud.ssh(remote.STOP)
  return 0


def delete(cloud: gcloud.Gcloud, args: argparse.Namespace) -> int:
  """Deletes the slice and its request, if there are any."""
  if cloud.state() is None:
    print(f"{cloud.target.name} does not exist; nothing to do.")
    return 0
  cloud.delete()
  return 0


def keep(
  cloud: gcloud.Gcloud,
  args: argparse.Namespace,
  sleep: Callable[[float], None] = time.sleep,
) -> int:
  """Creates, sets up and runs, until the run is finished or has failed."""
  _check_setup(args)  # Before anything is paid for.
  run_arguments(args.program, args.rest)
  if cloud.dry_run:
    raise ValueError("keep has no --dry_run; it repeats create, setup and run.")
  failures = losses = 0
  while True:
    try:
      code = _look(cloud, args)
      if code == errors.PEER_LOST and losses < _PATIENCE:
        losses += 1  # All lost one another, as through the network.
        run(cloud, args)
        code = None
      failures = 0
    except gcloud.GcloudError as error:
      failures += 1  # The network, or a slice that is being taken away.
      if failures == _PATIENCE:
        raise
      print(f"error: {error}", file=sys.stderr)
    else:
      if code is not None:
        return code
    sleep(args.poll)


def run_arguments(name: str, rest: Sequence[str]) -> list[str]:
  """Arguments of the program on each worker, from those after the lone --.

  Args:
    name: lm.main, or lm.sweep, whose runs are given what follows its own --.
    rest: As the user gave them.

  Returns:
    The same with --distributed=auto.

  Raises:
    ValueError: If the folder of the run is missing or not shared, or a gs://
      names no bucket.
  """
  flag = "--root" if name == "lm.sweep" else "--workdir"
  values = [a.split("=", 1)[1] for a in rest if a.startswith(f"{flag}=")]
  if not values or flag in rest:
    raise ValueError(
      f"Give {name} its folder after a lone --, with an equals sign: run -- "
      f"{flag}=gs://BUCKET/PATH ..."
    )
  if not values[-1].startswith(("gs://", "/")):
    raise ValueError(
      f"{flag}={values[-1]} would be on the disk of each worker, which the "
      "others do not see and which is lost with the slice; give "
      "gs://BUCKET/PATH, or the absolute path of a shared file system."
    )
  remote.check_urls(rest)
  if any(argument.startswith("--distributed") for argument in rest):
    return list(rest)
  separator = ["--"] if name == "lm.sweep" and "--" not in rest else []
  return [*rest, *separator, _DISTRIBUTED]


def _check_setup(args: argparse.Namespace) -> None:
  """Refuses flags of `setup` that no worker could use.

  Raises:
    ValueError: If --input or a --bucket names no bucket.
  """
  if args.input is not None:
    if not args.input.startswith("gs://"):
      raise ValueError(
        f"--input={args.input} must be gs://BUCKET/PATH, which every worker "
        "can read; copy it there: gcloud storage rsync FOLDER gs://... "
        "--recursive."
      )
    remote.check_urls([f"--input={args.input}"])
  for bucket in args.bucket:
    remote.check_bucket(bucket, f"--bucket={bucket}")


def _look(cloud: gcloud.Gcloud, args: argparse.Namespace) -> int | None:
  """Does what the slice needs now.

  Returns:
    An exit code if the run has ended, or None to look again later.
  """
  state = cloud.state()
  if state is None or state in gcloud.LOST:
    renewed = vars(args) | {"replace": True, "rest": []}
    create(cloud, argparse.Namespace(**renewed))
    return None
  if state != gcloud.ACTIVE:
    print(f"{cloud.target.name} is {state}.", flush=True)
    return None
  jobs = set(_JOB.findall(cloud.ask(remote.STATUS)))
  if "absent" in jobs:
    setup(cloud, args)
  if jobs == {_DONE}:
    print("The run is finished.")
    return 0
  if "running" in jobs and not jobs & _UNSTARTED:
    return None
  # One that was killed takes the others down, whatever they end with.
  ended = jobs - {"running", _DONE, _STOPPED}
  if ended and not jobs & {"killed", *_UNSTARTED}:
    codes = {int(job.split()[1]) for job in ended}
    # Those that lost another one tell less than that one.
    worst = max(codes - {errors.PEER_LOST}, default=errors.PEER_LOST)
    print(f"The run ended with exit code {worst}: see `logs`.", file=sys.stderr)
    return worst
  run(cloud, args)
  return None


def _is_there(cloud: gcloud.Gcloud) -> bool:
  """Whether the slice can be used; says so if it is still to come.

  Raises:
    GcloudError: If it will not come.
  """
  name, state = cloud.target.name, cloud.state()
  if state == gcloud.ACTIVE or cloud.dry_run:
    return True
  if state is None:
    raise gcloud.GcloudError(f"{name} does not exist; create it first.")
  if state in gcloud.LOST:
    raise gcloud.GcloudError(
      f"{name} is {state}; create --replace asks for a new one. A run resumes "
      "there from its folder, after setup."
    )
  print(f"{name} is {state}; the same command works once it is ACTIVE.")
  return False


def _archive(path: str) -> None:
  """Packs the committed files of the project."""
  git = ["git", "-C", str(_ROOT)]
  try:
    if subprocess.check_output([*git, "status", "--porcelain"], text=True):
      print("Note: only committed changes are sent.")
    subprocess.check_call(
      [*git, "archive", "--format=tar.gz", f"--output={path}", "HEAD"]
    )
  except (OSError, subprocess.CalledProcessError) as error:
    raise ValueError(
      f"setup sends the last commit of {_ROOT}, which must be a git clone of "
      f"the project: {error}"
    ) from error


def _given(args: argparse.Namespace, name: str) -> str:
  """A flag, or the environment variable that stands for it.

  Raises:
    ValueError: If neither is set.
  """
  variable = f"TPU_{name.upper()}"
  value = getattr(args, name) or os.environ.get(variable)
  if not value:
    raise ValueError(f"Set --{name} or the environment variable {variable}.")
  return value


def _default_runtime(accelerator: str) -> str:
  for prefix, runtime in _RUNTIMES.items():
    if accelerator.startswith(prefix):
      return runtime
  raise ValueError(
    f"TPU_TYPE={accelerator} begins with none of {', '.join(_RUNTIMES)}; set "
    "--runtime or TPU_RUNTIME to the version its workers need."
  )


def _parse(argv: list[str]) -> argparse.Namespace:
  rest: list[str] = []
  if "--" in argv:
    at = argv.index("--")
    argv, rest = argv[:at], argv[at + 1 :]
  parser = argparse.ArgumentParser(
    prog="python -m lm.launch.tpu",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  for command in (create, setup, run, keep, status, logs, stop, delete):
    name, words = command.__name__, (command.__doc__ or "").splitlines()[0]
    child = commands.add_parser(name, help=words, description=words)
    child.set_defaults(command=command)
    _add_flags(child, name)
  args = parser.parse_args(argv)
  if rest and args.command not in (create, run, keep):
    parser.error(f"unexpected arguments after --: {shlex.join(rest)}")
  args.rest = rest
  return args


def _add_flags(parser: argparse.ArgumentParser, name: str) -> None:
  add = parser.add_argument
  add("--project", help="default: TPU_PROJECT")
  add("--zone", help="default: TPU_ZONE")
  add("--name", help="of the queued resource; default: TPU_NAME")
  add("--dry_run", action="store_true", help="only print the gcloud commands")
  if name in ("create", "keep"):
    add("--type", help="of the accelerator, e.g. v4-32; default: TPU_TYPE")
    add("--runtime", help="of the workers; default: TPU_RUNTIME, else by type")
    add("--spot", action="store_true", help="cheaper, and may be taken away")
    add("--valid_for", help="give up waiting after so long, e.g. 6h")
  if name == "create":
    add("--replace", action="store_true", help="delete one that was preempted")
  if name in ("setup", "keep"):
    add("--input", help="gs:// folder whose folders the project needs")
    add("--bucket", action="append", default=[], help="to mount; repeatable")
  if name in ("run", "keep"):
    add("--program", default="lm.main", help="or lm.sweep; default: lm.main")
  if name == "keep":
    add("--poll", type=float, default=60, help="seconds between looks")
  if name == "logs":
    add("--worker", default="0", help="0, 1-3 or all; default: 0")
    add("--lines", type=int, default=50, help="how many; default: 50")
    add("--follow", action="store_true", help="until Ctrl-C")


if __name__ == "__main__":
  sys.exit(main())
