"""Stands for gcloud: keeps one queued resource and its workers in $FAKE.

    calls           the arguments of each call, one JSON list a line
    state           of the queued resource; no file: it does not exist
    next_state      that of one that is created; default: ACTIVE
    unreachable     number of a worker that ssh does not reach
    broken          what every call fails with
    worker-N/       home folder of a worker; commands are really run in it
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

FAKE = pathlib.Path(os.environ["FAKE"])


def main(argv: list[str]) -> int:
  with (FAKE / "calls").open("a") as file:
    print(json.dumps(argv), file=file)
  if (FAKE / "broken").exists():
    print((FAKE / "broken").read_text(), file=sys.stderr)
    return 1
  if argv[:2] == ["storage", "rsync"]:
    source = FAKE / "buckets" / argv[2].removeprefix("gs://")
    shutil.copytree(source, argv[3], dirs_exist_ok=True)
    return 0
  verb, name = argv[3:5]
  if argv[2] == "queued-resources":
    return queued_resource(verb)
  workers = sorted(FAKE.glob("worker-*"))
  given = dict(a.split("=", 1) for a in argv if a.startswith("--") and "=" in a)
  if given["--worker"] != "all":
    workers = [FAKE / f"worker-{given['--worker']}"]
  if verb == "scp":
    for worker in workers:
      shutil.copy(name, worker / argv[5].split(":")[1])
    return 0
  codes = [ssh(worker, given["--command"]) for worker in workers]
  return max(codes)  # The real one goes on with the other workers, too.


def queued_resource(verb: str) -> int:
  state = FAKE / "state"
  if verb == "create":
    if state.exists():
      print("ERROR: ALREADY_EXISTS", file=sys.stderr)
      return 1
    following = FAKE / "next_state"
    state.write_text(following.read_text() if following.exists() else "ACTIVE")
    return 0
  if not state.exists():
    print(f"ERROR: ({verb}) NOT_FOUND: no such resource", file=sys.stderr)
    return 1
  if verb == "describe":
    print(state.read_text())
  else:
    state.unlink()
    for worker in FAKE.glob("worker-*"):  # The machines are gone.
      shutil.rmtree(worker)
      worker.mkdir()
  return 0


def ssh(worker: pathlib.Path, command: str) -> int:
  unreachable = FAKE / "unreachable"
  if unreachable.exists() and worker.name.endswith(unreachable.read_text()):
    print(f"ssh: connect to {worker.name}: timed out", file=sys.stderr)
    return 255
  environment = os.environ | {"HOME": str(worker)}
  return subprocess.run(["bash", "-c", command], env=environment).returncode


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
