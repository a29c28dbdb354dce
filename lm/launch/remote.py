"""Shell scripts that run on the workers of a TPU slice, as text.

All of them can be repeated. On each worker they use, in the home folder:

    goldenpath/             the project, renewed by `setup`
    goldenpath-env/         its virtual environment
    goldenpath-input/       prepared data and tokenizers, copied from a bucket
    goldenpath-job/         command, log.txt, pid and exit_code of the run
    gcs/BUCKET/             buckets, mounted by Cloud Storage FUSE

`lm` reads and writes ordinary files, so gs://BUCKET/PATH on a command line
becomes gcs/BUCKET/PATH here. Every host sees the same folder, which a
checkpoint of several processes needs, and it outlives the slice.
"""

import re
import shlex
from collections.abc import Sequence

ARCHIVE = "goldenpath.tar.gz"  # In the home folder, put there by scp.
_PYTHON = "3.11"  # The images' own is older than the project needs.
# What stands for a bucket: all up to the path, or to the end of a string in
# an expression of Python.
_BUCKET = re.compile(r"""gs://([^/"']*)""")
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")

# Hosts must see each other's files at once, so nothing of the metadata is
# cached; on large machines the default is to cache it for ever.
_MOUNT_OPTIONS = (
  "--implicit-dirs --rename-dir-limit=100000 "
  "--metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0"
)

# Without a descriptor of the lock, see `run`.
_MOUNT = f"""
bucket={{bucket}}
mkdir -p "$HOME/gcs/$bucket"
if ! mountpoint -q "$HOME/gcs/$bucket"; then
  gcsfuse {_MOUNT_OPTIONS} "$bucket" "$HOME/gcs/$bucket"
fi
"""

_INSTALL_GCSFUSE = """
if ! command -v gcsfuse > /dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  url=https://packages.cloud.google.com/apt
  curl -fsSL $url/doc/apt-key.gpg | sudo tee $key > /dev/null
  echo "deb [signed-by=$key] $url gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get update -qq
  sudo apt-get install -y -qq gcsfuse
fi
"""

_SETUP = f"""
set -euo pipefail
mkdir -p "$HOME/goldenpath-job"
exec 9> "$HOME/goldenpath-job/lock"
if ! flock -n 9; then
  echo "$(hostname): a run is going on; stop it before its code is replaced" >&2
  exit 1
fi
rm -rf "$HOME/goldenpath.new"
mkdir "$HOME/goldenpath.new"
tar -xzf "$HOME/{ARCHIVE}" -C "$HOME/goldenpath.new"
rm -rf "$HOME/goldenpath"
mv "$HOME/goldenpath.new" "$HOME/goldenpath"
if [ ! -x "$HOME/goldenpath-env/bin/python" ]; then
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --python {_PYTHON} "$HOME/goldenpath-env"
fi
python3 -m uv pip install --quiet --python "$HOME/goldenpath-env/bin/python" \\
  --editable "$HOME/goldenpath[lm,tpu]"
"""

_COPY_INPUT = """
input={input}
mkdir -p "$HOME/goldenpath-input"
gcloud storage rsync "$input" "$HOME/goldenpath-input" --recursive
for path in "$HOME"/goldenpath-input/*; do
  if [ ! -e "$path" ]; then
    echo "$(hostname): there is nothing in $input" >&2
    exit 1
  fi
  ln -s "$path" "$HOME/goldenpath/"
done
"""

_READY = """
touch "$HOME/goldenpath-job/ready"
echo "$(hostname): ready"
"""

# The descriptor 9 of the lock is inherited by the run and closed with its last
# process, so the lock is held exactly as long as something runs.
_RUN = """
job="$HOME/goldenpath-job"
mkdir -p "$job"
# shellcheck disable=SC2016 # What the user gave, to be compared and printed.
command={command}
exec 9> "$job/lock"
if ! flock -n 9; then
  if [ "$command" = "$(cat "$job/command")" ]; then
    echo "$(hostname): already running"
    exit 0
  fi
  echo "$(hostname): another run is going on: $(cat "$job/command")" >&2
  exit 1
fi
printf '%s\\n' "$command" > "$job/command"
rm -f "$job/exit_code" "$job/pid"  # The latter of one that was killed.
cd "$HOME/goldenpath"
cat > "$job/run.sh" <<'END'
{wrapper}
END
setsid nohup bash "$job/run.sh" >> "$job/log.txt" 2>&1 < /dev/null &
echo "$(hostname): started"
"""

# A trap in the shell leaves the program's own handling of SIGTERM alone, and
# waits for the end of the program in the foreground, whose exit code follows.
_WRAPPER = """\
trap : TERM
export JAX_PLATFORMS=tpu,cpu  # Without a TPU it is an error, not a slow run.
# shellcheck disable=SC2016 # Expanded by the second shell.
bash -c 'echo $$ > "$HOME/goldenpath-job/pid" && exec "$@"' run \\
  "$HOME/goldenpath-env/bin/python" -u -m {program} {arguments}
code=$?
echo $code > "$HOME/goldenpath-job/exit_code"
rm "$HOME/goldenpath-job/pid"
echo "exit code $code"\
"""

# absent (no setup yet), new (no run yet), running, killed, or ended CODE.
STATUS = """
job="$HOME/goldenpath-job"
if [ ! -e "$job/ready" ]; then
  state=absent
elif [ ! -e "$job/command" ]; then
  state=new
elif ! flock -n "$job/lock" true; then
  state=running
elif [ -e "$job/exit_code" ]; then
  state="ended $(cat "$job/exit_code")"
else
  state=killed
fi
echo "job $(hostname) $state"
"""

# The lock is taken before there is a process to signal, and let go after it.
STOP = """
job="$HOME/goldenpath-job"
for _ in {1..50}; do
  if [ ! -e "$job/lock" ] || flock -n "$job/lock" true; then
    echo "$(hostname): nothing is running"
    exit 0
  fi
  if [ -s "$job/pid" ] && kill -TERM "$(cat "$job/pid")"; then
    echo "$(hostname): told to save and stop"
    exit 0
  fi
  sleep 0.1
done
echo "$(hostname): a run is starting, or setup is at work; stop it again" >&2
exit 1
"""


def setup(input_url: str | None, buckets: Sequence[str]) -> str:
  """Installs the project from the archive, and what the run will read.

  Args:
    input_url: gs://BUCKET/PATH whose folders (data, tokenizers) appear in the
      project's folder; copied, since rows are read at random.
    buckets: Names of buckets to mount.
  """
  parts = [_SETUP]
  if input_url:
    parts.append(_COPY_INPUT.format(input=shlex.quote(input_url)))
  # The lock is let go first: a mount lives on and would hold it.
  parts.append("exec 9>&-\n")
  if buckets:
    parts += [_INSTALL_GCSFUSE, *_mounts(buckets)]
  return "".join([*parts, _READY])


def run(program: str, arguments: Sequence[str]) -> str:
  """Starts a program of the project unless it is running already.

  Args:
    program: Module, e.g. lm.main.
    arguments: Its arguments; gs:// paths become those of the mounts.
  """
  words = " ".join(_local(argument) for argument in arguments)
  wrapper = _WRAPPER.format(program=program, arguments=words)
  command = shlex.quote(shlex.join([program, *arguments]))
  return "".join([
    "set -euo pipefail\n",
    *_mounts(buckets_of(arguments)),
    _RUN.format(command=command, wrapper=wrapper),
  ])  # fmt: skip


def logs(lines: int, follow: bool) -> str:
  """Prints the end of the log.

  Args:
    lines: How many of its lines.
    follow: Go on until interrupted.
  """
  flags = f"-n {lines}" + (" -F" if follow else "")
  return f'tail {flags} "$HOME/goldenpath-job/log.txt"\n'


def buckets_of(arguments: Sequence[str]) -> list[str]:
  """Names of the buckets in gs:// paths, each once, in order."""
  found = [b for argument in arguments for b in _BUCKET.findall(argument)]
  return list(dict.fromkeys(found))


def check_bucket(name: str, argument: str) -> None:
  """Refuses what cannot be the name of a bucket.

  Args:
    name: Without gs://.
    argument: Where it was seen, for the message.

  Raises:
    ValueError: If it is none.
  """
  if not _NAME.fullmatch(name):
    raise ValueError(
      f"{argument}: {name!r} must be the name of a bucket: a-z, 0-9 and . _ - "
      "between two of a-z, 0-9. Is a variable unset? Write --bucket=my-bucket, "
      "and elsewhere gs://my-bucket/PATH."
    )


def check_urls(arguments: Sequence[str]) -> None:
  """Refuses gs:// without a bucket, which would be on each worker's own disk.

  Args:
    arguments: Those of a command, as the user gave them.

  Raises:
    ValueError: If in one of them no name of a bucket follows.
  """
  for argument in arguments:
    for name in _BUCKET.findall(argument):
      check_bucket(name, argument)


def _mounts(buckets: Sequence[str]) -> list[str]:
  return [_MOUNT.format(bucket=shlex.quote(bucket)) for bucket in buckets]


def _local(argument: str) -> str:
  """One word of shell, with gs:// paths below the mounts."""
  parts = [
    shlex.quote(part) if part else "" for part in argument.split("gs://")
  ]
  return '"$HOME"/gcs/'.join(parts) or "''"
