"""--config=FILE.py and --config.KEY=VALUE among the arguments of a program."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from ..config.names import nearest

# Sections of sections, beside those named ...kwargs: keys of their own.
_SECTIONS = ("optim.by_role", "log.probes")
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)")
# How Python and absl say that a text is no value of a type.
_REASONS = {
  "invalid literal for int()": "a whole number",
  "could not convert string to float": "a number",
  "Non-boolean argument": "True or False",
}


def arguments(path: str, overrides: Mapping[str, Any]) -> list[str]:
  """The arguments that give a configuration.

  Args:
    path: FILE.py, or FILE.py:ARGUMENT.
    overrides: Dotted keys and their values.
  """
  changes = [f"--config.{key}={value}" for key, value in overrides.items()]
  return [f"--config={path}", *changes]


def take_path(argv: list[str]) -> tuple[str | None, list[str]]:
  """The path of --config, and the other arguments."""
  path, left, arguments = None, [], iter(argv)
  for argument in arguments:
    name, equals, value = argument.partition("=")
    if name in ("--config", "-config"):
      path = value if equals else next(arguments, "")
    else:
      left.append(argument)
  return path, left


def unknown_keys(
  argv: Sequence[str], config: ml_collections.ConfigDict | None
) -> Iterator[str]:
  """What is wrong with the keys of overrides."""
  if config is None:
    return
  keys = _flat(config)
  for match in filter(None, map(_OVERRIDE.match, argv)):
    key = match[2]
    section, last = ".".join(key.split(".")[:2]), key.rpartition(".")[2]
    if key in keys or "[" in key:
      continue
    free = section in _SECTIONS or section.endswith("kwargs")
    if free and section in keys and key != section:
      yield (
        f"config.{key} is not set in the configuration, so it cannot be "
        "overridden alone; give all arguments at once: "
        f"--config.{section}='{{\"{last}\": ...}}'."
      )
      continue
    same = [k for k in keys if k.rpartition(".")[2] == last]
    hint = f" Did you mean {same[0]!r}?" if same else nearest(key, keys)
    yield f"config.{key} is not a key of the configuration.{hint}"


def plain(message: str, config: ml_collections.ConfigDict | None) -> str:
  """What is wrong with a value, without the words of Python's `int`."""
  given, _, reason = message.partition(": ")
  for words, kind in _REASONS.items():
    if config is not None and words in reason:
      key = given.removeprefix("--config.").partition("=")[0]
      value = _flat(config).get(key, "the one in base.py")
      return f"{given} must be {kind}, such as {value}."
  return message


def _flat(
  config: ml_collections.ConfigDict, prefix: str = ""
) -> dict[str, Any]:
  """All values, of sections too, by dotted path."""
  found = {}
  for key, value in config.items():
    found[f"{prefix}{key}"] = value
    if isinstance(value, ml_collections.ConfigDict):
      found |= _flat(value, f"{prefix}{key}.")
  return found
