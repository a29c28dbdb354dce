"""Documents of a folder: each file is read, or named with a reason.

A .txt or .md file is a document; each line of a .jsonl file is one. Endings may
have any letter case, and files may be links. A file with one of these endings
that cannot be read is an error. Everything else is left out and counted: hidden
files and folders, links to folders (which may lead in circles), broken links,
compressed files, other endings, and documents without text.
"""

import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator

from ..config.errors import InputError

ENDINGS = (".txt", ".md", ".jsonl")
_COMPRESSED = (
  ".7z", ".bz2", ".gz", ".lz4", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst",
)  # fmt: skip
_SHOWN = 3  # Names for each reason.

_HIDDEN = "hidden"
_LINKED = "links to folders (name the folder itself, as another dir:PATH)"
_BROKEN = "broken links"
_SPECIAL = "neither files nor folders"
_PACKED = "compressed (unpack them)"
_OTHER = f"other endings than {', '.join(ENDINGS)}"
_BLANK = "without text"

_MARKS = {  # Byte order marks; the longer ones first.
  b"\xff\xfe\0\0": "UTF-32",
  b"\0\0\xfe\xff": "UTF-32",
  b"\xff\xfe": "UTF-16",
  b"\xfe\xff": "UTF-16",
}
_ARCHIVES = (
  b"\x1f\x8b", b"BZh", b"PK\x03\x04", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd",
)  # fmt: skip
_UTF8_MARK = b"\xef\xbb\xbf"
# Which of four consecutive bytes are mostly 0, in Latin text.
_ZEROS: dict[tuple[bool, ...], str] = {
  (False, True, False, True): "UTF-16LE",
  (True, False, True, False): "UTF-16BE",
  (False, True, True, True): "UTF-32LE",
  (True, True, True, False): "UTF-32BE",
}


class Folder:
  """The documents of a folder, and a count of what is not read."""

  def __init__(self, path: pathlib.Path):
    """Takes a folder; reads nothing yet."""
    self._path = path
    self._left: dict[str, list[str]] = {}
    self._counts: Counter[str] = Counter()

  def documents(self) -> Iterator[tuple[str, str]]:
    """`(id, text)` of each document, sorted by path.

    Raises:
      InputError: If a file cannot be read, or there is nothing to read.
    """
    self._left, self._counts = {}, Counter()
    some = False
    for path, reason in _entries(self._path):
      key = path.relative_to(self._path).as_posix()
      if reason:
        self._leave(reason, key)
        continue
      for id_, text in _read(path, key):
        if text.strip():
          some = True
          yield id_, text
        else:
          self._leave(_BLANK, id_)
    if not some:
      what = self.left_out() or "The folder is empty."
      raise InputError(f"There is no text to read below {self._path}. {what}")

  def left_out(self) -> str:
    """What the last pass over the documents did not read; "" if nothing."""
    if not self._left:
      return ""
    lines = [f"Not read below {self._path}:"]
    for reason, names in self._left.items():
      more = ", ..." if self._counts[reason] > len(names) else ""
      lines.append(
        f"  {self._counts[reason]} {reason}: {', '.join(names)}{more}"
      )
    return "\n".join(lines)

  def _leave(self, reason: str, name: str) -> None:
    self._counts[reason] += 1
    names = self._left.setdefault(reason, [])
    if len(names) < _SHOWN:
      name = name if len(name) <= 80 else f"{name[:80]}..."
      names.append(name if name.isprintable() else repr(name))


def _entries(folder: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
  """Every file below a folder, and why it is left out; "" if it is read."""
  found, folders = [], [os.fspath(folder)]
  while folders:
    here = folders.pop()
    try:
      with os.scandir(here) as entries:
        for entry in entries:
          reason = _reason(entry)
          if not reason and entry.is_dir():
            folders.append(entry.path)
          else:
            found.append((pathlib.Path(entry.path), reason))
    except OSError as error:
      raise _unreadable(here, error) from None
  return sorted(found)


def _reason(entry: os.DirEntry) -> str:
  """Why an entry of a folder is left out; "" if it is not."""
  if entry.name.startswith("."):
    return _HIDDEN
  try:
    mode = "folder" if entry.is_dir() else "file" if entry.is_file() else ""
  except OSError:  # A link to itself.
    mode = ""
  if entry.is_symlink() and mode != "file":
    return _LINKED if mode == "folder" else _BROKEN
  if mode != "file":
    return "" if mode else _SPECIAL
  ending = os.path.splitext(entry.name)[1].lower()
  if ending in ENDINGS:
    return ""
  return _PACKED if ending in _COMPRESSED else _OTHER


def _read(path: pathlib.Path, key: str) -> Iterator[tuple[str, str]]:
  """The documents of a file; `key` is the id of its only one."""
  try:
    if path.suffix.lower() != ".jsonl":
      yield key, _decode(path.read_bytes(), path, 0)
    elif path.stat().st_size:
      yield from _json_lines(path, key)
    else:
      yield key, ""
  except MemoryError:
    raise InputError(
      f"{path} does not fit into memory: split it, or write one document a "
      "line in .jsonl files."
    ) from None
  except OSError as error:
    raise _unreadable(path, error) from None


def _json_lines(path: pathlib.Path, key: str) -> Iterator[tuple[str, str]]:
  offset = 0
  with path.open("rb") as file:
    for number, line in enumerate(file, start=1):
      text = _decode(line, path, offset)
      offset += len(line)
      if not text.strip():
        continue
      where = f"{path}, line {number}"
      try:
        record = json.loads(text)
      except (RecursionError, MemoryError):
        raise InputError(
          f"{where}: JSON nested too deeply, or too large for the memory."
        ) from None
      except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error}).") from None
      except ValueError:  # Python refuses to make integers of many digits.
        raise InputError(
          f"{where}: a number of too many digits; write it as a string."
        ) from None
      if not isinstance(record, dict) or not isinstance(
        record.get("text"), str
      ):
        raise InputError(f'{where}: expected an object with a string "text".')
      id_ = record.get("id")
      if not isinstance(id_, str | int | float | None):
        raise InputError(f'{where}: "id" must be a string or a number.')
      yield f"{key}:{number}" if id_ is None else str(id_), record["text"]


def _decode(data: bytes, path: pathlib.Path, offset: int) -> str:
  """Text of the bytes at `offset` of a file, without a mark at its start."""
  if not offset:
    for mark, encoding in _MARKS.items():
      if data.startswith(mark):
        raise InputError(f"{path} is {encoding}. {_convert(encoding)}")
    if data.startswith(_ARCHIVES):
      raise InputError(f"{path} is compressed, whatever its name. Unpack it.")
    if data.startswith(_UTF8_MARK):
      data, offset = data[len(_UTF8_MARK) :], len(_UTF8_MARK)
  zero = data.find(0)
  if zero >= 0:
    head = data[:4000]
    zeros = tuple(2 * head[i::4].count(0) > len(head[i::4]) for i in range(4))
    if encoding := _ZEROS.get(zeros):
      raise InputError(f"{path} looks like {encoding}. {_convert(encoding)}")
    raise InputError(
      f"{path} is not text: byte {offset + zero} is 0. Remove the file or the "
      "zeros."
    )
  try:
    return data.decode()
  except UnicodeDecodeError as error:
    raise InputError(
      f"{path} is not UTF-8: byte {offset + error.start} is "
      f"0x{data[error.start]:02x}. {_convert('ISO-8859-1')}"
    ) from None


def _convert(encoding: str) -> str:
  return f"Convert it, e.g. iconv -f {encoding} -t UTF-8 FILE > NEW."


def _unreadable(path: str | pathlib.Path, error: OSError) -> InputError:
  return InputError(
    f"{path} cannot be read ({error.strerror}). Make it readable, or move it "
    "elsewhere."
  )
