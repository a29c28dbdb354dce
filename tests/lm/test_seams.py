"""A new kind of thing is one file and one entry: six toys that `lm` has not.

Each toy is added from outside, trained for 20 updates on 8 devices, killed and
resumed to the same bits, evaluated, sampled where it can be, and exported.
"""

import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import waiting

from lm.runs import metrics

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TOYS = pathlib.Path(__file__).resolve().parent / "toys"
# Toy -> the keys that choose it, and whether its texts can be sampled.
TOYS = {
  "bytes_seen": ({"log__probes": "{'bytes_seen': {'every': 4}}"}, True),
  "halfway": ({"optim__name": "halfway"}, True),
  "halves": ({"model__ffn": "halves"}, True),
  "masked": (
    {
      "train__objective": "masked",
      "train__objective_kwargs": "{'share': 0.5}",
    },
    False,
  ),
  "narrow": ({"model__product": "narrow"}, True),
  "rank_one": ({"train__weights": "rank_one"}, True),
}
_RUN = {
  "train__num_steps": 20,
  "checkpoint__every": 10,
  "eval__every": 10,
  "eval__batches": 1,
  "mesh__data": 4,
  "mesh__fsdp": 2,
  "data__batch_size": 16,
  "train__microbatch_size": 8,
}


def _start(toy, *words, **env):
  done = subprocess.run(
    [sys.executable, str(_TOYS / "start.py"), toy, *words],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT)} | env,
    capture_output=True,
    text=True,
    timeout=waiting.LONG,
  )
  return done.returncode, done.stdout + done.stderr


def _numbers(folder):
  """All metrics but the times."""
  return {
    key: (column.steps.tolist(), column.values.tolist())
    for key, column in metrics.read(folder).items()
    if not key.startswith("perf/") and key != "seconds"
  }


def _weights(path):
  with np.load(path) as file:
    return {name: file[name] for name in file.files if name != "config"}


def test_toys_are_short_and_touch_nothing():
  """One file each, which only adds an entry to a table."""
  files = {p.stem for p in _TOYS.glob("*.py")} - {"start"}
  assert files == set(TOYS)
  for toy in TOYS:
    source = (_TOYS / f"{toy}.py").read_text()
    assert len(source.splitlines()) <= 40, toy
    assert len(re.findall(r"^[A-Z_]+\[\"\w+\"\] = ", source, re.M)) == 1, toy


@pytest.mark.parametrize("toy", TOYS)
def test_a_toy_trains_dies_goes_on_and_is_read(tiny, tmp_path, toy):
  keys, can_sample = TOYS[toy]
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  code, output = _start(toy, "main", *tiny.flags(whole, **_RUN | keys))
  assert code == 0, output
  flags = tiny.flags(killed, **_RUN | keys)
  code, output = _start(toy, "main", *flags, DIE_AT="10")
  assert code == -9, output
  code, output = _start(toy, "main", *flags)
  assert code == 0, output
  numbers = _numbers(whole)
  assert _numbers(killed) == numbers
  files = [tmp_path / f"{run.name}.npz" for run in (whole, killed)]
  code, output = _start(
    toy,
    *("export", f"--workdir={whole}", f"--out={files[0]}", "and"),
    *("export", f"--workdir={killed}", f"--out={files[1]}", "and"),
    *("evaluate", f"--workdir={whole}", "--batches=2", "and"),
    *("generate", f"--workdir={whole}", "--prompt=The ", "--num_tokens=5"),
  )
  final = numbers[f"eval/{tiny.corpus}/final_loss"][1][-1]
  assert f"{final:.4f}" in output
  if can_sample:
    assert code == 0, output
    assert "\nThe " in output
  else:
    assert code == 2, output
    assert "'masked' has no way to sample" in output
  exports = [_weights(path) for path in files]
  jax.tree.map(np.testing.assert_array_equal, *exports)
  _CHECKS[toy](numbers, exports[0])


def _learned(numbers, export):
  loss = numbers["train/loss"][1]
  assert len(loss) == 20
  assert np.mean(loss[-3:]) < np.mean(loss[:3])


def _halves(numbers, export):
  _learned(numbers, export)
  assert export["blocks/0/mlp/left/in"].shape == (32, 32)
  apart, loss = (numbers[f"train/ffn/{k}"][1] for k in ("apart", "loss"))
  np.testing.assert_allclose(loss, 0.01 * np.array(apart), rtol=1e-5)
  assert apart[-1] > 0


def _rank_one(numbers, export):
  """The export is a plain model; its table has moved by rank one."""
  assert not any(name.startswith("toy") for name in export)
  assert len(numbers["train/loss"][1]) == 20


def _narrow(numbers, export):
  _learned(numbers, export)


def _bytes(numbers, export):
  steps, values = numbers["toy/largest"]
  assert steps == [4, 8, 12, 16, 20]
  largest = max(float(jnp.max(jnp.abs(x))) for x in export.values())
  assert values[-1] == pytest.approx(largest, rel=1e-6)
  assert all(1 < n < 259 for n in numbers["toy/bytes"][1])


_CHECKS = {
  "bytes_seen": _bytes,
  "halfway": _learned,
  "halves": _halves,
  "masked": _learned,
  "narrow": _narrow,
  "rank_one": _rank_one,
}
