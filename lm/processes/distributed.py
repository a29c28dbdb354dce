"""Several processes, or several devices of a CPU, as one program."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

# XLA's CPU client has as many threads as there are cores or devices. A
# collective holds a thread while it waits for the others, so a step with many
# collectives at once would wait for ever.
_THREADS = 64

# Seconds without a sign of life after which a process counts as lost. A machine
# that swaps or is moved is silent for a shorter time.
HEARTBEAT = 40


def widen_thread_pool() -> None:
  """Gives collectives on a CPU threads to wait in; call before devices exist.

  Needed by a process that has several CPU devices or belongs to several
  processes. NPROC in the environment takes precedence.
  """
  os.environ.setdefault("NPROC", str(_THREADS))


def initialize(
  mode: str,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Connects this process to the others; before any device is touched.

  Args:
    mode: none: a program of one process; auto: `jax.distributed` finds the
      others itself (TPU pods, SLURM, Open MPI, GKE); explicit: by the rest.
    coordinator: HOST:PORT of process 0.
    num_processes: How many there are.
    process_id: Which one this is.

  Raises:
    ValueError: If the arguments do not say who this process is.
  """
  given = {
    "--coordinator": coordinator,
    "--num_processes": num_processes,
    "--process_id": process_id,
  }
  if mode != "explicit":
    named = [name for name, value in given.items() if value is not None]
    if named:
      raise ValueError(
        f"{', '.join(named)} goes with --distributed=explicit, not {mode!r}."
      )
  if mode == "none":
    if "xla_force_host_platform_device_count" in os.environ.get(
      "XLA_FLAGS", ""
    ):
      widen_thread_pool()
    return
  widen_thread_pool()
  if mode == "auto":
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
    return
  missing = [name for name, value in given.items() if value is None]
  if missing:
    raise ValueError(
      f"--distributed=explicit needs {', '.join(missing)} as well."
    )
  if not 0 <= (process_id or 0) < (num_processes or 0):
    raise ValueError(
      f"--process_id={process_id} must be in [0, --num_processes) = "
      f"[0, {num_processes})."
    )
  jax.distributed.initialize(
    coordinator,
    num_processes=num_processes,
    process_id=process_id,
    heartbeat_timeout_seconds=HEARTBEAT,
  )


def said_by_first(text: str) -> str:
  """Returns the text of process 0 on every process of the program.

  Args:
    text: At most 2000 bytes. The text of the other processes is ignored.
  """
  if not jax.distributed.is_initialized() or jax.process_count() == 1:
    return text
  sent = text.encode()[:2000].ljust(2000, b"\0")
  got = multihost_utils.broadcast_one_to_all(np.frombuffer(sent, np.uint8))
  return np.asarray(got).tobytes().rstrip(b"\0").decode(errors="ignore")
