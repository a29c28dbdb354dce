"""Factories whose arguments stand once, in a frozen dataclass of options.

    @dataclasses.dataclass(frozen=True, eq=False)
    class SoapOptions:
      "..."                       # Its "Attributes" are the arguments' text.
      b1: float = 0.95

    @takes(SoapOptions)
    def scale_by_soap(o): ...     # scale_by_soap(b1=0.9): o.b1 == 0.9

    @also_takes(scale_by_soap)
    def soap(learning_rate, **direction): ...

`help`, `inspect.signature`, `optax.inject_hyperparams` and type checkers see
the whole list of arguments, each with its default and its text.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from .tree import work_dtype

P = ParamSpec("P")
Options = TypeVar("Options")
Result = TypeVar("Result")


def takes(
  options: Callable[P, Options],
) -> Callable[[Callable[[Options], Result]], Callable[P, Result]]:
  """Gives a function of options the arguments of their dataclass.

  Args:
    options: A frozen dataclass. Its docstring has a section "Attributes". The
      attributes of the dataclasses that it inherits from are added in front.

  Returns:
    A decorator. The docstring of the decorated function gets a section "Args"
    in front of "Returns", made from these attributes.
  """

  def decorate(build: Callable[[Options], Result]) -> Callable[P, Result]:
    @functools.wraps(build)
    def factory(*args: P.args, **kwargs: P.kwargs) -> Result:
      wide = functools.partial(options, *map(_wide, args))
      return build(wide(**_wide(kwargs)))

    returns = inspect.signature(build).return_annotation
    signature = inspect.signature(options).replace(return_annotation=returns)
    factory.__signature__ = signature  # pyrefly: ignore
    texts = _attributes(options)
    factory.__doc__ = _with_args(build.__doc__, texts, list(texts))
    return factory

  return decorate


def also_takes(
  *others: Callable[..., Any],
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
  """Gives a function with `**kwargs` the arguments of others, spelled out.

  Args:
    *others: The functions or dataclasses that get the keyword arguments. Their
      arguments become keyword arguments of the decorated function, except for
      the arguments that the decorated function has itself. Of arguments of one
      name, the first counts.

  Returns:
    A decorator, which adds the signature and the text of these arguments.
  """

  def decorate(build: Callable[..., Result]) -> Callable[..., Result]:
    @functools.wraps(build)
    def factory(*args: Any, **kwargs: Any) -> Result:
      signature.bind(*args, **kwargs)  # A wrong name is told by this name.
      return build(*args, **kwargs)

    own = inspect.signature(build)
    mine = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = {p.name for p in mine}
    added: dict[str, inspect.Parameter] = {}
    texts: dict[str, str] = {}
    for other in others:
      for p in inspect.signature(other).parameters.values():
        if p.name not in names and p.name not in added:
          added[p.name] = p.replace(kind=p.KEYWORD_ONLY)
      texts = _texts(other) | texts
    signature = own.replace(parameters=[*mine, *added.values()])
    factory.__signature__ = signature  # pyrefly: ignore
    factory.__doc__ = _with_args(
      build.__doc__, texts, [name for name in added if name in texts]
    )
    return factory

  return decorate


def _texts(other: Callable[..., Any]) -> dict[str, str]:
  """{name: text} of the arguments of a function or dataclass."""
  if isinstance(other, type):
    return _attributes(other)
  return _sections(inspect.getdoc(other) or "", "Args")


def _wide(value: Any) -> Any:
  """Casts numbers of few bits to float32: powers of a decay need the digits."""
  if isinstance(value, dict):
    return {name: _wide(x) for name, x in value.items()}
  if isinstance(value, jax.Array) and value.ndim == 0:
    if jnp.issubdtype(value.dtype, jnp.floating):
      return value.astype(work_dtype(value))
  return value


def _attributes(options: Any) -> dict[str, str]:
  """{name: text} of a dataclass and of the dataclasses it inherits from."""
  texts: dict[str, str] = {}
  for kind in reversed(options.__mro__):
    if kind is not object:
      doc = inspect.cleandoc(kind.__doc__ or "")
      texts |= _sections(doc, "Attributes")
  return {
    name: texts[name]
    for name in inspect.signature(options).parameters
    if name in texts
  }


def _sections(doc: str, title: str) -> dict[str, str]:
  """{name: "name: text"} of a section of a Google docstring, unindented."""
  found: dict[str, str] = {}
  inside, name = False, ""
  for line in doc.splitlines():
    if not line.startswith(" ") and line.strip():
      inside = line.strip() == f"{title}:"
    elif inside and line.strip():
      entry = line[2:]
      if not entry.startswith(" "):
        name = entry.split(":")[0]
        found[name] = entry
      else:
        found[name] += f"\n{entry}"
  return found


def _with_args(
  doc: str | None, texts: dict[str, str], names: list[str]
) -> str | None:
  """A docstring whose "Args" ends with the texts of these names."""
  if doc is None or not names:
    return doc
  lines = inspect.cleandoc(doc).splitlines()
  entries = [
    f"  {line}".rstrip() for name in names for line in texts[name].splitlines()
  ]
  if "Args:" in lines:
    at = lines.index("Args:") + 1
    while at < len(lines) and lines[at].startswith("  "):
      if lines[at].startswith("  **"):  # Spelled out by the entries.
        break
      at += 1
    if at < len(lines) and lines[at].startswith("  **"):
      del lines[at]
    return "\n".join([*lines[:at], *entries, *lines[at:]])
  at = lines.index("Returns:") if "Returns:" in lines else len(lines)
  return "\n".join([*lines[:at], "Args:", *entries, "", *lines[at:]])
