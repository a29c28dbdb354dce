"""Several processes as one program."""

import jax


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
    return
  if mode == "auto":
    jax.distributed.initialize()
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
    coordinator, num_processes=num_processes, process_id=process_id
  )
