"""A folder's text: read, or left out by name; bad files with their place."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import tempfile

import pytest

from lm.config.errors import InputError
from lm.data import folders
from lm.data.prepare import prepare


def _documents(path):
  return list(folders.Folder(path).documents())


def _fill(path):
  """A folder with everything that people leave in folders."""
  elsewhere = path.parent / "elsewhere"
  (elsewhere / "deep").mkdir(parents=True)
  (elsewhere / "deep" / "far.txt").write_text("far")
  for name in ("sub/.git", "sub/empty", "shard.txt"):
    (path / name).mkdir(parents=True)
  files = {
    "a.txt": "one", "B.TXT": "two", "c.Md": "three", "d.JSONL": '{"text":"4"}',
    "sub/.git/x.txt": "no", ".DS_Store": "no", "blank.txt": " \n",
    "nothing.jsonl": "", "lines.jsonl": '\n{"id": "e", "text": " "}\n',
    "x.txt.gz": "no", "sub/y.ZIP": "no", "t.tar": "no", "page.html": "no",
    "data.csv": "no", "a.txt~": "no", "README": "no", "shard.txt/in.md": "in",
  }  # fmt: skip
  for name, text in files.items():
    (path / name).write_text(text)
  (path / "linked.txt").symlink_to(elsewhere / "deep" / "far.txt")
  (path / "linked").symlink_to(elsewhere)
  (path / "circle").symlink_to(path)
  (path / "gone.txt").symlink_to(path / "nowhere.txt")
  (path / "self.txt").symlink_to(path / "self.txt")
  os.mkfifo(path / "pipe.txt")  # Opening it would wait for ever.


def test_everything_is_read_or_named(tmp_path):
  path = tmp_path / "text"
  path.mkdir()
  _fill(path)
  folder = folders.Folder(path)
  assert list(folder.documents()) == [
    ("B.TXT", "two"), ("a.txt", "one"), ("c.Md", "three"), ("d.JSONL:1", "4"),
    ("linked.txt", "far"), ("shard.txt/in.md", "in"),
  ]  # fmt: skip
  said = folder.left_out()
  for line in (
    "2 hidden: .DS_Store, sub/.git",
    "3 compressed (unpack them): sub/y.ZIP, t.tar, x.txt.gz",
    "4 other endings than .txt, .md, .jsonl: README, a.txt~, data.csv, ...",
    "2 links to folders (name the folder itself, as another dir:PATH): circle, "
    "linked",
    "2 broken links: gone.txt, self.txt",
    "1 neither files nor folders: pipe.txt",
    "3 without text: blank.txt, e, nothing.jsonl",
  ):
    assert f"  {line}\n" in said + "\n"
  # The system's own list of what is there, hidden folders unopened.
  listed = subprocess.check_output(
    ["find", path, "-mindepth", "1", "-name", ".*", "-print", "-prune", "-o",
     "-not", "-type", "d", "-print"], text=True,
  )  # fmt: skip
  assert len(listed.splitlines()) == 6 + 2 + 3 + 4 + 2 + 2 + 1 + 3


def test_the_summary_of_many_files_is_short(tmp_path):
  for i in range(500):
    (tmp_path / f"{i:03}.csv").touch()
  (tmp_path / "a.txt").write_text("one")
  (tmp_path / "b.jsonl").write_text(
    "".join(json.dumps({"id": "x" * 999 + str(i), "text": ""}) + "\n"
            for i in range(500))
  )  # fmt: skip
  folder = folders.Folder(tmp_path)
  assert list(folder.documents()) == [("a.txt", "one")]
  assert len(folder.left_out().splitlines()) == 3
  assert len(folder.left_out()) < 800


def test_prepare_prints_what_it_leaves_out(tmp_path, make_folder, make_section):
  spec = make_folder(tmp_path / "words", 60)
  (tmp_path / "words" / "more.csv").write_text("not read")
  lines = []
  prepare(make_section(tmp_path / "data", spec), (), log=lines.append)
  (said,) = [line for line in lines if "Not read" in line]
  assert "1 other endings than .txt, .md, .jsonl: more.csv" in said


@pytest.mark.parametrize("name", ["x.csv", "x.txt.gz", ".x.txt", "x.txt", None])
def test_a_folder_without_text_is_an_error(tmp_path, name):
  if name:
    (tmp_path / name).write_text("" if name == "x.txt" else "text")
  with pytest.raises(InputError, match="no text to read below") as error:
    _documents(tmp_path)
  assert (name or "is empty") in str(error.value)


_TEXT = "Größe: 1\nzwei\n"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize(
  ("codec", "encoding"),
  [
    ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"),
    ("utf-32", "UTF-32"), ("utf-32-le", "UTF-32LE"), ("utf-32-be", "UTF-32BE"),
  ],
)  # fmt: skip
def test_the_encoding_is_named_with_how_to_convert(
  tmp_path, name, codec, encoding
):
  text = _TEXT if name == "a.txt" else json.dumps({"text": _TEXT})
  (tmp_path / name).write_bytes(text.encode(codec))
  with pytest.raises(InputError, match=rf"{name} .*\b{encoding}\.") as error:
    _documents(tmp_path)
  command = f"iconv -f {encoding} -t UTF-8"
  assert command in str(error.value)
  out = subprocess.check_output([*command.split(), tmp_path / name])
  (tmp_path / name).write_bytes(out)
  assert _documents(tmp_path)[0][1] == _TEXT


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_a_marked_text_without_latin_is_named_too(tmp_path, mark):
  codec = "utf-16-le" if mark == b"\xff\xfe" else "utf-16-be"
  (tmp_path / "a.txt").write_bytes(mark + "日本語".encode(codec))
  with pytest.raises(InputError, match="is UTF-16"):
    _documents(tmp_path)


def test_a_utf8_mark_is_no_text(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
  (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "two"}\n')
  (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbf")
  assert _documents(tmp_path) == [("a.txt", "one"), ("b.jsonl:1", "two")]
  (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\xe9")
  with pytest.raises(InputError, match="byte 6 is 0xe9"):
    _documents(tmp_path)


_GOOD = b'{"text": "ok"}\n'


@pytest.mark.parametrize(
  ("name", "data", "words"),
  [
    ("a.txt", b"one\0two", "not text: byte 3 is 0"),
    ("a.txt", b"\x1f\x8b\x08", "compressed"),
    ("a.txt", b"PK\x03\x04\0\0", "compressed"),
    ("a.jsonl", _GOOD + b'{"text": "abc', "line 2: not JSON"),
    ("a.jsonl", _GOOD + b'{"text": "a"} {}', "line 2: not JSON"),
    ("a.jsonl", _GOOD + b'{"text": "a\0b"}', "byte 26 is 0"),
    (
      "a.jsonl",
      _GOOD + b'{"text":"a","x":' + b"[" * 10**5 + b"]" * 10**5 + b"}",
      "line 2: JSON nested",
    ),
    (
      "a.jsonl",
      _GOOD + b'{"text":"a","id":' + b"9" * 6000 + b"}",
      "line 2: a number of too many digits",
    ),
    ("a.jsonl", _GOOD + b'{"text":"a","id":[1]}', 'line 2: "id" must be'),
    ("a.jsonl", _GOOD + b"\xef\xbb\xbf{}", "line 2: not JSON"),
    ("a.JSONL", _GOOD + b"null", "line 2: expected an object"),
  ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path, name, data, words):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(InputError, match=f"{name}.*{words}"):
    _documents(tmp_path)


def test_lines_too_large_for_the_memory_are_named(tmp_path, monkeypatch):
  def no_memory(_):
    raise MemoryError

  (tmp_path / "a.jsonl").write_bytes(_GOOD)
  with monkeypatch.context() as patched:
    patched.setattr(folders.json, "loads", no_memory)
    with pytest.raises(InputError, match=r"a\.jsonl, line 1: .* too large"):
      _documents(tmp_path)
  (tmp_path / "a.jsonl").rename(tmp_path / "a.txt")
  monkeypatch.setattr(pathlib.Path, "read_bytes", no_memory)
  with pytest.raises(InputError, match=r"a\.txt does not fit into memory"):
    _documents(tmp_path)


@contextlib.contextmanager
def _as_somebody():
  """Not as root, who may read everything."""
  if os.geteuid():
    yield
    return
  os.seteuid(65534)
  try:
    yield
  finally:
    os.seteuid(0)


@pytest.mark.parametrize("name", ["sub/a.txt", "sub/a.jsonl", "sub"])
def test_what_may_not_be_read_is_an_error(name):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    (path / "sub").mkdir()
    (path / "b.txt").write_text("one")
    if name != "sub":
      (path / name).write_bytes(_GOOD)
    path.chmod(0o755)
    (path / name).chmod(0)
    with (
      _as_somebody(),
      pytest.raises(InputError, match=f"{name} cannot be .*Permission denied"),
    ):
      _documents(path)
    (path / name).chmod(0o755)


def test_a_socket_is_named(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "a.txt").write_text("one")
  with socket.socket(socket.AF_UNIX) as server:
    server.bind("s.txt")
    folder = folders.Folder(tmp_path)
    assert list(folder.documents()) == [("a.txt", "one")]
  assert "1 neither files nor folders: s.txt" in folder.left_out()
