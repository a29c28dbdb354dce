"""The notebooks on Adam and Gauss-Newton run, at their small size."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _table(name):
  """{claim: ours} of the table that a notebook prints last."""
  environment = dict(
    os.environ,
    NOTEBOOK_SIZE="small",
    MPLBACKEND="agg",
    PYTHONPATH=str(_ROOT),
  )
  done = subprocess.run(
    [sys.executable, f"{name}.py"],
    check=False,
    cwd=_ROOT / "notebooks",
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  rows = [re.split(r"\s{2,}", x) for x in done.stdout.splitlines()]
  return {row[0]: row[-1] for row in rows if len(row) >= 2}


@pytest.mark.slow
def test_convex_problems():
  table = _table("theory_13_adam_or_gauss_newton")
  adam, newton = (
    [float(x) for x in table[f"E1 {name}, T = 50 / 200"].split(" / ")]
    for name in ("Adam", "GN^-1 (= GD)")
  )
  assert max(adam) < 1e-15
  assert min(newton) > 1e-3
  for claim, bound in (
    ("E3 sampled risk against theory, largest, in standard errors", 5),
    ("E4 largest of 256 errors, in standard errors", 5),
  ):
    assert float(table[claim]) < bound


@pytest.mark.slow
def test_networks():
  table = _table("theory_14_diagonals_of_networks")
  ends = [float(x) for x in table[_BLOCKS].split(" / ")]
  assert ends[2] < ends[0] < 1e-10  # GN^-1 and Adam, in the eigenbasis.
  assert len(table) > 25


_BLOCKS = "E6 blocks, s = 1.0: Adam / GN^-1/2 / GN^-1"
