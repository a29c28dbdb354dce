"""The first steps of a user: train, score, sample, each by its program.

`.ci/newest` runs this on the newest Python, where the rest of `lm` is not run.
"""

import math
import subprocess
import sys

import pytest

from lm.runs import metrics

_VOCABULARY = 258  # Bytes, the end of a document, and padding.


def _run(module, *flags):
  return subprocess.run(
    [sys.executable, "-m", module, *flags],
    check=True, capture_output=True, text=True,
  ).stdout  # fmt: skip


def test_a_run_learns_and_is_scored_and_sampled(tiny, tmp_path):
  code, output = tiny.run(tmp_path, train__num_steps=30, log__progress="plain")
  assert code == 0, output
  losses = metrics.read(tmp_path)["train/loss"].values
  assert len(losses) == 30
  # A guess that knows nothing costs log V; text of ASCII soon costs less.
  assert losses[0] == pytest.approx(math.log(_VOCABULARY), abs=0.5)
  # Batches of 8 x 32 bytes differ by 0.25 nats, and which they are depends on
  # the folder's name: the mean of ten is compared, not the last.
  last = float(losses[-10:].mean())
  assert last < math.log(_VOCABULARY) - 0.5
  row = _run("lm.evaluate", f"--workdir={tmp_path}").splitlines()[-1]
  assert row.startswith(tiny.corpus)
  score = float(row.removeprefix(tiny.corpus).split()[0])
  assert score == pytest.approx(last, abs=0.5)
  flags = [f"--workdir={tmp_path}", "--prompt=The ", "--num_tokens=8"]
  assert _run("lm.generate", *flags).startswith("The ")
