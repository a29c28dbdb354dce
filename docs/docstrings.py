"""Docstrings in Google's format and signatures, as Markdown."""

import dataclasses
import inspect
import re
import textwrap
from typing import Any, NamedTuple

_TITLES = ("Args", "Attributes", "Returns", "Raises", "References")


class Doc(NamedTuple):
  """A docstring in its parts."""

  text: str  # What stands before the first section.
  sections: dict[str, list[str]]  # Title -> lines, without their indentation.

  def entries(self, *titles: str) -> dict[str, str]:
    """{name: text} of sections of the form "name: text"."""
    found: dict[str, str] = {}
    name = ""
    for title in titles:
      for line in self.sections.get(title, ()):
        start = re.match(r"(\*{0,2}\w+(?:, \w+)*): ?(.*)", line)
        if start:
          name = start[1]
          found[name] = start[2]
        elif name:
          found[name] += f"\n{line}"
    return {name: " ".join(text.split()) for name, text in found.items()}


def parse(doc: str | None) -> Doc:
  """Cuts a docstring at its section titles."""
  sections: dict[str, list[str]] = {}
  text: list[str] = []
  lines = text
  for line in (doc or "").splitlines():
    title = line.removesuffix(":")
    if line.endswith(":") and title in _TITLES:
      lines = sections.setdefault(title, [])
    elif lines is text:
      lines.append(line)
    elif line.strip():
      lines.append(line.removeprefix("  "))
  return Doc("\n".join(text).strip(), sections)


def comments(kind: type) -> dict[str, str]:
  """{field: comment} of the comments beside or below the fields of a class."""
  found: dict[str, str] = {}
  name = ""
  for line in inspect.getsource(kind).splitlines():
    field = re.match(r"  (\w+): [^#]*?(?:  # (.*))?$", line)
    more = re.match(r"   *# (.*)$", line)
    if field:
      name = field[1]
      found[name] = field[2] or ""
    elif more and name:
      found[name] += f" {more[1]}"
    elif line.strip():
      name = ""
  return {name: text.strip() for name, text in found.items() if text}


def fields(parameters: Any, texts: dict[str, str]) -> str:
  """A list: name, default and text of each parameter or field."""
  lines = []
  for name, parameter in parameters.items():
    text = texts.get(name, texts.get(f"**{name}", texts.get(f"*{name}", "")))
    for key in texts:  # One text for several names.
      text = texts[key] if not text and name in key.split(", ") else text
    default = ""
    if parameter.default is not parameter.empty:
      default = f" = `{shown(parameter.default)}`"
    colon = f": {escaped(text)}" if text else ""
    lines.append(wrapped(f"`{name}`{default}{colon}", "- ", "  "))
  return "\n".join(lines)


def errors(doc: Doc) -> list[str]:
  """The section on errors."""
  entries = doc.entries("Raises")
  if not entries:
    return []
  lines = [
    wrapped(f"`{name}`: {escaped(text)}", "- ", "  ")
    for name, text in entries.items()
  ]
  return ["Raises:\n\n" + "\n".join(lines)]


def sources(doc: Doc) -> list[str]:
  """The section on references: a line a line, as titles need no wrapping."""
  lines = doc.sections.get("References", [])
  if not lines:
    return []
  return ["Source:\n\n" + "\\\n".join(escaped(line.strip()) for line in lines)]


def prose(text: str) -> str:
  """Docstring text as Markdown: equations stay, the rest is escaped."""
  lines = []
  for line in text.splitlines():
    lines.append(line if line.startswith("    ") else escaped(line))
  return "\n".join(lines)


def escaped(text: str) -> str:
  """Text in which Markdown sees nothing but code spans."""
  parts = re.split(r"(`[^`]*`)", text)
  mark = r"(\*(?=\S)|(?<=\S)\*|<(?=[a-zA-Z/!?]))"  # Emphasis, tags.
  parts[::2] = [re.sub(mark, r"\\\1", part) for part in parts[::2]]
  return "".join(parts)


def wrapped(text: str, first: str, rest: str) -> str:
  """A paragraph of 80 columns."""
  return textwrap.fill(
    text,
    80,
    initial_indent=first,
    subsequent_indent=rest,
    break_long_words=False,
    break_on_hyphens=False,
  )


def block(text: str) -> str:
  """A block of Python."""
  return f"```python\n{text}\n```"


def call(title: str, signature: inspect.Signature) -> str:
  """A signature without annotations, a line or one argument a line."""
  pieces, seen_star = [], False
  for parameter in signature.parameters.values():
    if parameter.kind is parameter.KEYWORD_ONLY and not seen_star:
      pieces.append("*")
      seen_star = True
    star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    seen_star |= parameter.kind is parameter.VAR_POSITIONAL
    text = star.get(parameter.kind, "") + parameter.name
    if parameter.default is not parameter.empty:
      text += f"={shown(parameter.default)}"
    pieces.append(text)
  return filled(title, pieces)


def filled(title: str, arguments: list[str]) -> str:
  """A call on one line, or with one argument a line."""
  line = f"{title}({', '.join(arguments)})"
  if len(line) <= 80:
    return line
  rows = [f"  {argument}," for argument in arguments]
  return "\n".join([f"{title}(", *rows, ")"])


def shown(value: Any) -> str:
  """A default as it would be written."""
  kind = type(value)
  if inspect.isfunction(value) or inspect.isclass(value):
    return value.__name__
  if hasattr(value, "_fields") or dataclasses.is_dataclass(value):
    names = getattr(value, "_fields", None) or [
      field.name for field in dataclasses.fields(value)
    ]
    parameters = inspect.signature(kind).parameters
    pieces = [
      f"{name}={shown(getattr(value, name))}"
      for name in names
      if getattr(value, name) != parameters[name].default
    ]
    return f"{kind.__name__}({', '.join(pieces)})"
  return repr(value).replace("'", '"')
