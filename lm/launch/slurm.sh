#!/bin/bash
#SBATCH --job-name=goldenpath
#SBATCH --time=24:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#
# Trains under SLURM. Options given to sbatch take precedence over those above.
#
#   sbatch --gpus-per-node=1 lm/launch/slurm.sh \
#       --config=ml_collections_configs/olmo150m.py --workdir=/shared/runs/a
#   sbatch --gpus-per-node=1 --array=0-8 lm/launch/slurm.sh \
#       --sweep=cbs_151m --root=/shared/runs/cbs
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 lm/launch/slurm.sh ...
#
# A single task uses all GPUs that it sees. Of several tasks each uses one GPU,
# and SLURM connects them. The tasks of an array are the runs of a sweep. Submit
# from the project's folder; PYTHON names the interpreter.
#
# Two minutes before the time limit SLURM signals this script. The run saves and
# exits with 75, as after any other signal to stop. The job then goes back into
# the queue and resumes. If one of several tasks is killed or cannot be reached,
# the others end with 76, and the job goes back as well, unless it is younger
# than ten minutes. Any other exit code is the job's.
set -uo pipefail

if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "error: submit this script by sbatch; its head shows how." >&2
  exit 2
fi
nodes=${SLURM_JOB_NUM_NODES:-1}
tasks=${SLURM_NTASKS:-$((nodes * ${SLURM_NTASKS_PER_NODE:-1}))}
gpus=${SLURM_GPUS_ON_NODE:-}
if [ -n "$gpus" ] && [ "$tasks" -gt 1 ] && [ "$tasks" -ne $((nodes * gpus)) ]
then
  echo "error: $tasks tasks on $nodes nodes with $gpus GPUs each: of several" \
    "tasks each uses one GPU; pass --ntasks-per-node=$gpus." >&2
  exit 2
fi

id=$SLURM_JOB_ID
python=${PYTHON:-python}
command=("$python" -m lm.main "$@")
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  # The number of a task's job may be that of the whole array.
  id=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
  command=("$python" -m lm.sweep "--index=$SLURM_ARRAY_TASK_ID" "$@")
  if [ "$tasks" -gt 1 ] && [[ " $* " != *" -- "* ]]; then
    command+=(--) # What follows is for the run.
  fi
fi
if [ "$tasks" -gt 1 ]; then
  command+=(--distributed=auto)
fi

# srun, signalled itself, ends its tasks without waiting for them; SLURM signals
# the tasks alone. Only once: a sweep kills its run on a second signal.
trap 'trap : TERM
  echo "SLURM wants the machine back: job $id saves and stops."
  scancel --signal=TERM "$id"' TERM

# In the background, since bash runs a trap only between commands; and a task
# that ends first must not take with it those that still save. srun no longer
# reads the cores per task from sbatch.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi
# Its exit code by a pipe, open at both ends: after an interrupted `wait` bash
# may have lost it, and a file would need a disk that is not full.
exec 3<> <(:)
{
  srun --ntasks="$tasks" --kill-on-bad-exit=0 "${command[@]}" 3>&-
  echo $? >&3
} &
pid=$!
wait "$pid"
while kill -0 "$pid" 2> /dev/null; do # The signal ended `wait`, not srun.
  wait "$pid"
done
read -r -t 1 code <&3

# Of several tasks srun returns the highest code: 76 if one lost another, above
# 128 if one was killed. What does that soon after the start, such as too little
# memory, would do it again and again.
why=
if [ "${code:=1}" -eq 75 ]; then
  why=Saved
elif [ "$tasks" -gt 1 ] && [ "$SECONDS" -ge 600 ] &&
  { [ "$code" -eq 76 ] || [ "$code" -gt 128 ]; }
then
  why="Lost a task"
fi
if [ -n "$why" ]; then
  echo "$why; job $id goes back into the queue."
  scontrol requeue "$id"
fi
exit "$code"
