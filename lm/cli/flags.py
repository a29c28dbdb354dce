"""The one flag system: programs declare flags, and get typed values.

A program has a tuple of `Flag`s. `parse` reads its arguments, written
--name=value or --name value. `--config=FILE.py` makes a configuration, and
--config.KEY=VALUE overrides a key of it. Nothing is kept between two calls.
"""

import re
import sys
import textwrap
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections
from absl import flags as absl_flags
from ml_collections import config_flags

from ..config import load, schema
from ..config.errors import InputError
from ..config.names import nearest
from . import overrides

# Flags of absl that read files, or ignore what is unknown.
_OF_ABSL = re.compile(r"--?(flagfile|undefok)\b")
_FORMS = {
  int: "N",
  float: "X",
  str: "TEXT",
  list: "A,B,...",
  ml_collections.ConfigDict: "FILE.py",
}
_GRIDS = schema.QuantConfig.__dataclass_fields__["grid"].metadata["choices"]


class Flag(NamedTuple):
  """A flag of a program.

  Attributes:
    name: Written --name.
    kind: str, int, float, bool (--name and --noname), list (of texts between
      commas), or ConfigDict (for --config).
    help: What it is for, in one line.
    default: Its value when it is not given.
    choices: The texts that it takes; empty for any.
    required: Whether it has to be given.
    least: The smallest number that it takes.
    most: The largest number that it takes.
  """

  name: str
  kind: type
  help: str
  default: Any = None
  choices: Sequence[str] = ()
  required: bool = False
  least: float | None = None
  most: float | None = None


CONFIG = Flag(
  "config",
  ml_collections.ConfigDict,
  "configuration, e.g. ml_collections_configs/tiny.py; "
  "--config.KEY=VALUE overrides a key",
  required=True,
)
WORKDIR = Flag("workdir", str, "folder of the run", required=True)
STEP = Flag("step", int, "checkpoint; default the newest", least=0)
SEED = Flag("seed", int, "of the draws", 0, least=0, most=schema.LARGEST_SEED)

# For `peers.joined`.
DISTRIBUTED = (
  Flag(
    "distributed",
    str,
    "auto: a TPU pod, SLURM or MPI says which process this is; explicit: the "
    "next three flags do",
    "none",
    choices=("none", "auto", "explicit"),
  ),
  Flag("coordinator", str, "HOST:PORT of process 0"),
  Flag("num_processes", int, "processes in all", least=1),
  Flag("process_id", int, "this process, from 0", least=0),
)

# Of a grid for a run that was trained without, for `rounded.override`.
GRID = (
  Flag("grid", str, "round to this grid as well", choices=_GRIDS),
  Flag(
    "block_size",
    int,
    "with --grid: weights that share a scale; default 0: a whole matrix",
    least=0,
  ),
)


def parse(
  argv: Sequence[str],
  doc: str | None,
  flags: Sequence[Flag],
  positionals: str = "",
  rest: bool = False,
) -> types.SimpleNamespace:
  """The values of a program's flags.

  Args:
    argv: Arguments, without the name of the program. --help prints `doc` and
      the flags, and exits.
    doc: Docstring of the program.
    flags: What it takes.
    positionals: Name of the arguments without a flag, e.g. "RUN", of which one
      has to be given; empty: there are none.
    rest: Whether everything after a lone -- is left as it is.

  Returns:
    An attribute for each flag; `positionals` and `rest`, lists of strings.

  Raises:
    InputError: If a flag, a key of the configuration or a value is wrong.
  """
  argv, after = list(argv), []
  if rest and "--" in argv:
    at = argv.index("--")
    argv, after = argv[:at], argv[at + 1 :]
  if {"--help", "-h"} & set(argv):
    print(_help(doc, flags), end="", flush=True)
    sys.exit(0)
  config = None
  if CONFIG.name in {flag.name for flag in flags}:
    path, argv = overrides.take_path(argv)
    config = load.from_file(path) if path is not None else None
  values, found = _tokens(argv, flags, config)
  if positionals and not found:
    raise InputError(f"Give at least one {positionals}.")
  if found and not positionals:
    raise InputError(
      f"Unexpected argument {found[0]!r}; flags are written --name=value."
    )
  typed = {flag.name: _typed(flag, values.get(flag.name)) for flag in flags}
  if config is not None:
    typed[CONFIG.name] = config
  missing = [
    f"--{flag.name}={_form(flag)}"
    for flag in flags
    if flag.required and typed[flag.name] in (None, "")
  ]
  if missing:
    raise InputError(f"Give {' and '.join(missing)}. (--help lists the flags.)")
  return types.SimpleNamespace(**typed, positionals=found, rest=after)


def _tokens(
  argv: list[str],
  flags: Sequence[Flag],
  config: ml_collections.ConfigDict | None,
) -> tuple[dict[str, Any], list[str]]:
  """Texts by flag, and the arguments that are none; changes `config`."""
  problems = list(overrides.unknown_keys(argv, config))
  if problems:
    raise InputError("\n".join(problems))
  while True:
    try:
      tokens = _absl_tokens(argv, flags, config)
      break
    except absl_flags.UnrecognizedFlagError as error:
      raise InputError(_unknown_flag(error.flagname, flags)) from error
    except (absl_flags.Error, ValueError) as error:
      message = str(error).removeprefix("flag ")
      name = message.partition("=")[0]
      problems.append(overrides.plain(message, config))
      fewer = [a for a in argv if not a.startswith(f"{name}=")]
      if not name.startswith("--config.") or fewer == argv:
        raise InputError("\n".join(problems)) from error
      argv = fewer  # For the problems of the other overrides.
  if problems:
    raise InputError("\n".join(problems))
  return tokens


def _absl_tokens(
  argv: list[str],
  flags: Sequence[Flag],
  config: ml_collections.ConfigDict | None,
) -> tuple[dict[str, Any], list[str]]:
  """`_tokens` with the errors of absl."""
  for match in filter(None, map(_OF_ABSL.match, argv)):
    raise absl_flags.UnrecognizedFlagError(match[1])
  values = absl_flags.FlagValues()
  values.set_gnu_getopt(True)  # Flags may follow other arguments.
  for flag in flags:
    if flag.kind is bool:
      absl_flags.DEFINE_bool(flag.name, flag.default, "", values)
    elif flag.kind is not ml_collections.ConfigDict:
      absl_flags.DEFINE_string(flag.name, None, "", values)
  names = list(values)
  if config is not None:
    config_flags.DEFINE_config_dict(
      CONFIG.name, config, flag_values=values, sys_argv=argv
    )
  _, *others = values(["program", *argv])
  return {name: values[name].value for name in names}, others


def _unknown_flag(name: str, flags: Sequence[Flag]) -> str:
  if name.startswith("config.") and CONFIG in flags:
    return f"--{name} overrides a key: give --config=FILE.py as well."
  hint = nearest(f"--{name}", [f"--{flag.name}" for flag in flags])
  return (
    f"--{name} is not a flag of this program.{hint} (--help lists the flags.)"
  )


def _typed(flag: Flag, text: Any) -> Any:
  """The value of a flag; `text` is None if it was not given.

  Raises:
    InputError: If it is not one that the flag takes.
  """
  if text is None or flag.kind is bool:
    return flag.default if text is None else text
  given = f"--{flag.name}={text}"
  if flag.kind is list:
    return [part.strip() for part in text.split(",") if part.strip()]
  if flag.choices and text not in flag.choices:
    raise InputError(
      f"{given} is not one of {', '.join(flag.choices)}."
      f"{nearest(text, flag.choices)}"
    )
  try:
    value = flag.kind(text)
  except ValueError:
    whole = "a whole number" if flag.kind is int else "a number"
    raise InputError(f"{given} must be {whole}.") from None
  if flag.least is not None and not value >= flag.least:
    raise InputError(f"{given} must be >= {flag.least}.")
  if flag.most is not None and not value <= flag.most:
    raise InputError(f"{given} must be <= {flag.most}.")
  return value


def _form(flag: Flag) -> str:
  """What stands behind the = of a flag."""
  if flag.choices:
    return "|".join(flag.choices)
  return _FORMS[flag.kind]


def _help(doc: str | None, flags: Sequence[Flag]) -> str:
  """The docstring, and the flags."""
  lines = [(doc or "").strip(), "", "Flags:"]
  for flag in flags:
    value = "" if flag.kind is bool else f"={_form(flag)}"
    lines.append(f"  --{flag.name}{value}")
    about, default = flag.help, flag.default
    if flag.required:
      about += " (required)"
    elif isinstance(default, list):
      about += f" (default {','.join(default)})" if default else ""
    elif default is not None and default is not False and default != "":
      about += f" (default {default})"
    lines.append(textwrap.indent(textwrap.fill(about, 72), " " * 6))
  return "\n".join(lines) + "\n"
