"""What the programs share: flags in, one clear message and an exit code out.

Exit codes: 0 done, and those of `lm/config/errors.py`.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import ml_collections
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from ..config.errors import BAD_INPUT, DISK, InputError
from ..config.names import nearest


def define_config() -> flags.FlagHolder:
  """Defines --config=FILE.py and its --config.KEY=VALUE overrides."""
  return config_flags.DEFINE_config_file(
    "config",
    None,
    "Configuration file, e.g. ml_collections_configs/tiny.py; single keys are "
    "overridden by --config.KEY=VALUE.",
  )


def run(
  main: Callable[[], int | None], argv: Sequence[str] | None = None
) -> None:
  """Parses the flags, calls `main` and exits with its code.

  Args:
    main: The program; errors of the user's making are `ValueError`s.
    argv: Arguments, the program's name first; None takes the process's.
  """
  argv = list(sys.argv if argv is None else argv)
  if {"--help", "-h", "--helpfull", "--helpshort"} & set(argv):
    print(sys.modules["__main__"].__doc__, flags.FLAGS.main_module_help())
    sys.exit(0)
  try:
    parse(argv)
    quiet()
    code = main() or 0
    sys.exit(code)
  except (ValueError, FileNotFoundError, PermissionError) as error:
    sys.exit(tell(error))
  except OSError as error:
    # At once: the threads of a failed save would trip over a slow end.
    os._exit(tell(error))


def tell(error: BaseException) -> int:
  """Prints what ended the program to standard error; returns its exit code.

  One message for what the user or the disk did, a traceback for the rest, and
  for everything with GOLDENPATH_TRACEBACK in the environment.
  """
  codes = {
    FileNotFoundError: BAD_INPUT,
    PermissionError: BAD_INPUT,
    OSError: DISK,
    ValueError: BAD_INPUT,
  }
  code = next((c for kind, c in codes.items() if isinstance(error, kind)), 1)
  if code == 1 or os.environ.get("GOLDENPATH_TRACEBACK"):
    traceback.print_exception(error)
  else:
    print(f"error: {error}", file=sys.stderr, flush=True)
  return code


def parse(argv: Sequence[str]) -> None:
  """Parses the flags of the process, with the nearest name for a typo.

  Raises:
    InputError: If a flag, a key or a value is wrong.
  """
  known = [a for a in argv[1:] if a.startswith("--config.")]
  try:
    rest = flags.FLAGS(argv)
    if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
      # A file that could not be loaded says so at its first use only.
      flags.FLAGS["config"].value.keys()
  except flags.Error as error:
    raise InputError(f"{error} (--help lists the flags.)") from error
  except (AttributeError, KeyError) as error:
    raise InputError(_unknown_key(known, str(error))) from error
  except (OSError, ImportError, SyntaxError, TypeError) as error:
    reason = " ".join(str(error).split())
    raise InputError(f"--config could not be read: {reason}") from error
  if len(rest) > 1:
    raise InputError(
      f"Unexpected argument {rest[1]!r}; flags are written --name=value."
    )


def check_local(name: str, path: str | os.PathLike) -> None:
  """Raises for a URL, which would become a folder of that name here.

  Args:
    name: Of the flag or key, for the message.
    path: Its value.

  Raises:
    InputError: If it is one.
  """
  if "://" in str(path):
    raise InputError(
      f"{name}={path} is not a folder of this machine; mount the bucket and "
      "give the folder, as lm.launch.tpu does (docs/pods.md)."
    )


def quiet() -> None:
  """Silences the libraries' own lines; what went wrong is ours to say."""
  absl_logging.set_verbosity(absl_logging.FATAL)
  for name in ("asyncio", "orbax", "jax", "grain"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  sys.unraisablehook = _tell_unraisable


def _tell_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
  """Tells what could not be raised, except writes that outlive their save.

  When one file of a checkpoint cannot be written, its event loop closes; the
  other files' writes end later, find it closed, and each prints a traceback.
  """
  error = unraisable.exc_value
  late = isinstance(error, RuntimeError) and "loop is closed" in str(error)
  if not late:
    sys.__unraisablehook__(unraisable)


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs, unless the environment decides.

  The folder is JAX_COMPILATION_CACHE_DIR, by default in the user's cache; set
  it to the empty string to compile afresh.
  """
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  default = os.path.join(home, "goldenpath", "xla")
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", default)
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def _unknown_key(overrides: Sequence[str], error: str) -> str:
  from ml_collections_configs import base

  keys = _flatten(base.get_config())
  for override in overrides:
    key = override[len("--config.") :].split("=")[0]
    section = ".".join(key.split(".")[:2])
    is_open = section in ("optim.kwargs", "optim.by_role") and key != section
    if key not in keys and not is_open:
      last = key.rsplit(".", 1)[-1]
      same = [k for k in keys if k.rsplit(".", 1)[-1] == last]
      hint = f" Did you mean {same[0]!r}?" if same else nearest(key, keys)
      return f"config.{key} is not a key of the configuration.{hint}"
    if key not in keys:
      name = key.rsplit(".", 1)[-1]
      return (
        f"config.{key} is not set in the configuration, so it cannot be "
        "overridden alone; give all arguments at once: "
        f"--config.{section}='{{\"{name}\": ...}}'."
      )
  return f"--config could not be read: {error}"


def _flatten(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
  """Dotted paths of all keys."""
  keys = []
  for key, value in config.items():
    path = f"{prefix}{key}"
    keys.append(path)
    if isinstance(value, ml_collections.ConfigDict):
      keys += _flatten(value, f"{path}.")
  return keys
