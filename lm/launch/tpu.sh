#!/bin/bash
# Trains on a TPU slice through gcloud:
#
#   export TPU_PROJECT=my-project TPU_ZONE=us-central2-b
#   export TPU_NAME=pod TPU_TYPE=v4-32
#   lm/launch/tpu.sh create --spot  # And other flags of gcloud.
#   lm/launch/tpu.sh status         # ACTIVE when the slice is there.
#   lm/launch/tpu.sh setup          # Sends the last commit to all workers.
#   lm/launch/tpu.sh run python -m lm.main --workdir=/bucket/runs/a ...
#   lm/launch/tpu.sh logs [WORKER]  # Until Ctrl-C; worker 0 by default.
#   lm/launch/tpu.sh stop           # The run saves and ends with 75.
#   lm/launch/tpu.sh delete
#
# `all SCRIPT` runs a text of bash on all workers and waits for its end.
# `tpu.sh --dry-run COMMAND ...` prints the commands of gcloud instead.
# TPU_RUNTIME is the workers' software, where the type does not tell it.
# On the workers: ~/goldenpath the code, ~/goldenpath-env its environment,
# ~/run.log the output of the run and its exit code. A run that is taken away
# is resumed by create, setup and run; docs/pods.md has launchers that do so.
set -euo pipefail

if [ "${1:-}" = --dry-run ]; then
  shift
  gcloud() { printf '%s\n' "gcloud ${*@Q}"; }
  git() { :; }
fi
name=${TPU_NAME:?is the name of the slice; set it}
where=(
  "--project=${TPU_PROJECT:?is not set}" "--zone=${TPU_ZONE:?is not set}" --quiet
)
queued() {
  gcloud compute tpus queued-resources "$1" "$name" "${@:2}" "${where[@]}"
}
# The lock is held as long as a run goes on.
idle='flock -n ~/run.lock true || { echo "a run is going on" >&2; exit 1; }'
on() { # Worker or all, script.
  gcloud compute tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2" \
    "${where[@]}"
}

command=${1:-nothing}
shift || true
# shellcheck disable=SC2016 # Single quotes: the workers expand what is inside.
case $command in
  create)
    case ${TPU_TYPE:?is the type of the slice, e.g. v4-32; set it} in
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      *) runtime=tpu-ubuntu2204-base ;;
    esac
    queued create "--node-id=$name" "--accelerator-type=$TPU_TYPE" \
      "--runtime-version=${TPU_RUNTIME:-$runtime}" --async "$@"
    ;;
  status) queued describe "--format=value(state.state)" ;;
  delete) queued delete --force ;;
  all) on all "$*" ;;
  setup)
    folder=$(mktemp -d)
    trap 'rm -r "$folder"' EXIT
    git archive --format=tar.gz --output="$folder/code.tar.gz" HEAD
    gcloud compute tpus tpu-vm scp "$folder/code.tar.gz" "$name:" \
      --worker=all "${where[@]}"
    on all "$idle"'
      set -e; rm -rf ~/goldenpath; mkdir ~/goldenpath
      tar -xzf ~/code.tar.gz -C ~/goldenpath
      python3 -m pip install --quiet --user uv
      [ -x ~/goldenpath-env/bin/python ] ||
        python3 -m uv venv --quiet --python 3.11 ~/goldenpath-env
      python3 -m uv pip install --quiet --editable "$HOME/goldenpath[lm,tpu]" \
        --python ~/goldenpath-env/bin/python'
    ;;
  run) # Without a TPU it is an error, not a slow run on the CPU.
    on all "$idle"'
      cd ~/goldenpath || exit; rm -f ~/run.pid
      export PATH="$HOME/goldenpath-env/bin:$PATH" JAX_PLATFORMS=tpu,cpu
      setsid nohup bash -c '\''flock -n -F ~/run.lock "$@" &
        echo $! > ~/run.pid; wait $!; echo "exit code $?"'\'" run ${*@Q}"' \
        >> ~/run.log 2>&1 < /dev/null &'
    ;;
  logs) on "${1:-0}" 'tail -n 50 -F ~/run.log' ;;
  stop) on all 'kill -TERM "$(cat ~/run.pid)"' ;;
  *)
    echo "error: $command is not a command; the head of $0 lists them." >&2
    exit 2
    ;;
esac
