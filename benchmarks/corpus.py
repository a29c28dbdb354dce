"""A corpus that needs no network: the help texts that Python ships."""

import pathlib
import pydoc_data.topics
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.timing import ROOT


def prepare(
  folder: pathlib.Path, values: Mapping[str, Any], documents: int | None = None
) -> list[str]:
  """Writes and prepares the corpus, once; returns the flags of a run on it.

  Args:
    folder: Gets text/ and data/.
    values: Further keys of the configuration.
    documents: How many, in the order of their names; None for all.
  """
  text = folder / "text"
  values = dict(values) | {
    "data.root": folder / "data",
    "data.mixture": ((f"dir:{text}", 1.0),),
    "eval.sets": (f"dir:{text}",),
  }
  flags = [f"--config={ROOT / 'ml_collections_configs' / 'base.py'}"]
  flags += [f"--config.{key}={value}" for key, value in values.items()]
  if not text.exists():
    text.mkdir(parents=True)
    topics = sorted(pydoc_data.topics.topics.items())
    for name, topic in topics[:documents]:
      (text / f"{name.replace(' ', '_')}.txt").write_text(topic)
    run = [sys.executable, "-m", "lm.data.prepare", *flags]
    subprocess.run(run, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
  return flags
