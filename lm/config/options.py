"""The own keys of an entry of a seam, from a configuration to a dataclass.

An entry declares its keys as a frozen dataclass with defaults. The metadata of
a field may have bounds, as in `schema.py`. An entry without keys declares None.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .names import nearest

Pairs = Sequence[tuple[str, Any]]


def read(kind: type | None, pairs: Pairs) -> Any:
  """The options of an entry; None if it has none.

  Args:
    kind: Dataclass that the entry declares.
    pairs: What the configuration sets, without `problems`.
  """
  return None if kind is None else kind(**dict(pairs))


def passed(options: Any) -> dict[str, Any]:
  """The keyword argument `options` for an entry that has some."""
  return {} if options is None else {"options": options}


def problems(kind: type | None, pairs: Pairs, path: str) -> Iterator[str]:
  """What is wrong with the keys that a configuration sets.

  Args:
    kind: Dataclass that the entry declares, or None.
    pairs: (key, value) of each.
    path: What they are called, e.g. "config.train.objective_kwargs".
  """
  fields = {} if kind is None else {f.name: f for f in dataclasses.fields(kind)}
  sound = True
  for key, value in pairs:
    if key not in fields:
      known = f" Known: {', '.join(fields)}." if fields else " There are none."
      yield f"{path}.{key} is not a key.{nearest(key, fields)}{known}"
      sound = False
    elif problem := misfit(f"{path}.{key}", value, fields[key].default):
      yield problem
      sound = False
  if kind is not None and sound:
    from .constraints import of_section  # Which knows the whole schema.

    yield from of_section(kind(**dict(pairs)), path)


def entry_problems(
  name: str, pairs: Pairs, table: Mapping[str, Any], path: str, config: Any
) -> list[str]:
  """What is wrong with the name of an entry, its keys or, if nothing, the rest.

  Args:
    name: Of the entry.
    pairs: Its own keys, as the configuration sets them.
    table: Of the seam.
    path: Of the name, e.g. "config.train.objective"; the keys are beside it.
    config: What the entry's own `problems` is asked about.
  """
  if found := [*unknown(name, table, path)]:
    return found
  found = [*problems(table[name].options, pairs, f"{path}_kwargs")]
  return found or [*table[name].problems(config)]


def unknown(name: str, table: Mapping[str, Any], path: str) -> Iterator[str]:
  """Says that a name is not in the table of a seam, and which is nearest."""
  if name not in table:
    yield (
      f"{path}={name!r} is not one of {', '.join(table)}.{nearest(name, table)}"
    )


def misfit(name: str, value: Any, default: Any) -> str:
  """Says that `value` may not stand where `default` does; "" if it may."""
  wider = {float: int | float, tuple: tuple | list}.get(type(default))
  as_bool = isinstance(value, bool) == isinstance(default, bool)
  if as_bool and isinstance(value, wider or type(default)):
    return ""
  return (
    f"{name}={value!r} is {type(value).__name__}, expected "
    f"{type(default).__name__} as in {default!r}."
  )
