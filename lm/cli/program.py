"""How a program begins and ends: flags in, one message and an exit code out.

Exit codes: 0 done, and those of `lm/config/errors.py`.
"""

import contextlib
import errno
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging as absl_logging

from ..config import errors
from ..config.errors import InputError
from . import allocator, flags

# A full disk, a full quota, and a file beyond the limit of the shell.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of the user's making; other errors of the system are the disk's.
_USERS = (
  ValueError,
  FileNotFoundError,
  PermissionError,
  IsADirectoryError,
  NotADirectoryError,
  FileExistsError,
)
_BUG = 1
_NO_READER = 141  # Of standard output, as in a shell: | head.
_INTERRUPTED = 130


def start(main: Callable[[], int]) -> None:
  """Runs the program of this process to its end.

  Args:
    main: From `takes`. To be called before jax is imported, which reads the
      environment.
  """
  allocator.settle()
  quiet()
  use_compilation_cache()
  code = main()
  if code in (errors.DISK, _NO_READER):
    # At once: the threads of a failed save would trip over a slow end, and
    # Python would try once more to print what it could not.
    with contextlib.suppress(OSError):
      sys.stdout.flush()
    os._exit(code)
  sys.exit(code)


def takes(
  doc: str | None, declared: Sequence[flags.Flag], **options: Any
) -> Callable[[Callable[[Any], int | None]], Callable[..., int]]:
  """Makes a function of flags the `main` of a program.

  Args:
    doc: Docstring of the program.
    declared: Its flags.
    **options: Further arguments of `flags.parse`.

  Returns:
    A decorator. The decorated function takes the arguments, without the name of
    the program; None takes the process's. It returns the exit code, 0 for None,
    and tells what went wrong.
  """

  def decorate(body: Callable[[Any], int | None]) -> Callable[..., int]:
    @functools.wraps(body)
    def main(argv: Sequence[str] | None = None) -> int:
      try:
        given = sys.argv[1:] if argv is None else argv
        code = body(flags.parse(given, doc, declared, **options)) or 0
        sys.stdout.flush()  # Here, where a full disk is told.
        return code
      except (Exception, KeyboardInterrupt) as error:
        return tell(error)

    return main

  return decorate


def tell(error: BaseException) -> int:
  """Prints what ended a program to standard error; returns its exit code.

  Errors of the user and of the disk are one message. All other errors are
  printed with a traceback. With GOLDENPATH_TRACEBACK in the environment every
  error is.
  """
  code = _code(error)
  if code == _BUG or os.environ.get("GOLDENPATH_TRACEBACK"):
    traceback.print_exception(error)
  elif code != _NO_READER:
    message = str(error) or type(error).__name__
    print(f"error: {message}", file=sys.stderr, flush=True)
  return code


def _code(error: BaseException) -> int:
  if isinstance(error, KeyboardInterrupt):
    return _INTERRUPTED
  if isinstance(error, BrokenPipeError):
    return _NO_READER
  if any(map(_is_full_disk, errors.causes(error))):
    return errors.DISK
  if isinstance(error, _USERS):
    return errors.BAD_INPUT
  return errors.DISK if isinstance(error, OSError) else _BUG


def _is_full_disk(error: BaseException) -> bool:
  if isinstance(error, OSError) and error.errno in _FULL:
    return True
  # Libraries in C++ have errors of their own.
  return os.strerror(errno.ENOSPC) in str(error)


def check_local(name: str, path: str | os.PathLike) -> None:
  """Refuses a URL: it would become a folder of that name on this machine.

  Args:
    name: Of the flag or key, for the message.
    path: Its value.

  Raises:
    InputError: If the path is a URL.
  """
  if "://" in str(path):
    raise InputError(
      f"{name}={path} is not a folder of this machine; mount the bucket and "
      "give the folder (docs/pods.md)."
    )


def quiet() -> None:
  """Silences the libraries' own lines: the programs tell what went wrong."""
  absl_logging.set_verbosity(absl_logging.FATAL)
  for name in ("asyncio", "orbax", "jax", "grain"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  sys.unraisablehook = _tell_unraisable


def _tell_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
  """Tells of an error that could not be raised, unless a save had failed.

  When one file of a checkpoint cannot be written, the event loop of the save
  closes. The writes of the other files end later, and each would print that the
  loop is closed.
  """
  error = unraisable.exc_value
  late = isinstance(error, RuntimeError) and "loop is closed" in str(error)
  if not late:
    sys.__unraisablehook__(unraisable)


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs, unless the environment decides.

  JAX_COMPILATION_CACHE_DIR names the folder; the default is in the user's
  cache. An empty string turns the cache off.
  """
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  default = os.path.join(home, "goldenpath", "xla")
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", default)
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
