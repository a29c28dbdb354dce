#!/bin/bash
# Stands for gcloud: keeps one queued resource and its workers in $FAKE.
#
#   calls         arguments of each call, each followed by NUL; RS ends a call
#   state         of the queued resource; no file: it does not exist
#   next_state    that of one that is created; default: ACTIVE
#   unreachable   number of a worker that ssh does not reach
#   broken        what every call fails with
#   worker-N/     home folder of a worker; commands are really run in it
#   buckets/      what `gcloud storage` finds below gs://
printf '%s\0' "$@" $'\x1e' >> "$FAKE/calls"

if [ -e "$FAKE/broken" ]; then
  cat "$FAKE/broken" >&2
  exit 1
fi
if [ "$1 $2" = "storage rsync" ]; then
  cp -r "$FAKE/buckets/${3#gs://}/." "$4"
  exit
fi

workers=("$FAKE"/worker-*)
for argument in "$@"; do
  case $argument in
    --worker=all) ;;
    --worker=*) workers=("$FAKE/worker-${argument#*=}") ;;
    --command=*) command=${argument#*=} ;;
  esac
done

case "$3 $4" in
  "queued-resources create")
    if [ -e "$FAKE/state" ]; then
      echo "ERROR: ALREADY_EXISTS" >&2
      exit 1
    fi
    cat "$FAKE/next_state" 2> /dev/null > "$FAKE/state" ||
      echo ACTIVE > "$FAKE/state"
    ;;
  "queued-resources "*)
    if [ ! -e "$FAKE/state" ]; then
      echo "ERROR: ($4) NOT_FOUND: no such resource" >&2
      exit 1
    fi
    cat "$FAKE/state"
    if [ "$4" = delete ]; then
      rm "$FAKE/state"
      for worker in "${workers[@]}"; do # The machines are gone.
        rm -rf "$worker"
        mkdir "$worker"
      done
    fi
    ;;
  "tpu-vm scp")
    for worker in "${workers[@]}"; do cp "$5" "$worker/${6#*:}"; done
    ;;
  "tpu-vm ssh")
    code=0 # The real one goes on with the other workers, too.
    for worker in "${workers[@]}"; do
      if [ "${worker##*-}" = "$(cat "$FAKE/unreachable" 2> /dev/null)" ]; then
        echo "ssh: connect to ${worker##*/}: timed out" >&2
        code=255
      else
        HOME=$worker bash -c "$command" || code=$?
      fi
    done
    exit $code
    ;;
esac
