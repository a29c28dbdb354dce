"""Estimates against a run counted by hand, and the page that shows them."""

import pathlib
import re
import subprocess
import sys

import pytest

from lm.config import load
from lm.config.errors import ConfigError
from lm.step import chips, flops
from lm.tools import estimate
from ml_collections_configs import base, olmo150m

_ROOT = pathlib.Path(__file__).parents[3]


def _config(**changes):
  config = base.get_config()
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace("__", "."): value})
  return load.from_config_dict(config)


def test_the_150m_run_by_hand():
  todo = estimate.work(load.from_config_dict(olmo150m.get_config()))
  d, layers, length, pieces = 1024, 12, 1024, 32_128  # Padded up from 32,100.
  block = 2 * (4 * d * d + 2 * d * 4 * d) + 2 * length * d
  assert todo.flops_per_token == 3 * (layers * block + 2 * d * pieces)
  assert todo.tokens == 12_500 * 256 * 1024
  assert todo.updates == 12_500
  assert todo.parameters.embedding == d * pieces
  found = estimate.estimate(todo, "v5e", 16, 0.4)
  seconds = todo.tokens * todo.flops_per_token / (16 * 197e12 * 0.4)
  assert found.hours == pytest.approx(seconds / 3600)


@pytest.mark.parametrize("chip", list(estimate.PEAKS))
def test_utilisation_of_the_estimated_speed_is_the_assumed_one(chip):
  todo = estimate.work(_config(model__V=4096))
  found = estimate.estimate(todo, chip, 8, 0.25)
  kind = chips.KINDS[chip].device_kind
  share = flops.mfu(found.tokens_per_s, todo.flops_per_token, 8, kind)
  assert share == pytest.approx(0.25)


def test_a_batch_that_grows_is_counted_in_tokens():
  row = 256
  todo = estimate.work(
    _config(
      data__batch_size=4,
      data__batch_schedule=((0, 4), (20 * row, 8)),
      train__microbatch_size=4,
      train__num_tokens=100 * row,
    )
  )
  assert (todo.updates, todo.tokens) == (5 + 10, 100 * row)


@pytest.mark.parametrize(
  ("tokenizer", "pieces"), [("bpe", 4096 + 128), ("bytes", 384)]
)
def test_the_vocabulary_is_the_tokenizers_if_it_is_known(tokenizer, pieces):
  todo = estimate.work(
    _config(data__tokenizer=tokenizer, data__vocab_size=4097)
  )
  assert todo.parameters.embedding == 256 * pieces


def test_the_vocabulary_of_a_file_has_to_be_given():
  with pytest.raises(ConfigError, match=r"--config\.model\.V=32100"):
    estimate.work(_config(data__tokenizer="sp:t5.model"))


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("v9", 16, 0.4), "--chip=v9 is none of v4"),
    (("v4", 0, 0.4), "--chips=0"),
    (("v4", 16, 40.0), r"--mfu=40.0 must be in \(0, 1\]"),
    (("v4", 16, 0.0), "--mfu=0.0"),
  ],
)
def test_bad_arguments(arguments, message):
  todo = estimate.work(_config())
  with pytest.raises(ValueError, match=message):
    estimate.estimate(todo, *arguments)


def test_costs_are_told_only_with_a_price():
  todo = estimate.work(_config())
  row = estimate.Estimate("v4", 16, 0.4, 1e6, 2.5)
  assert "cost" not in estimate.table(todo, [row], {})
  lines = estimate.table(todo, [row], {"v4": 3.0}).splitlines()
  assert lines[-3].split()[-2:] == ["chip-hours", "cost"]
  assert lines[-1].split()[-3:] == ["2.50", "40.0", "120.00"]


def test_the_table_of_the_page_is_what_its_command_prints():
  page = (_ROOT / "docs" / "pods.md").read_text()
  command, output = re.search(
    r"```sh\n(python -m lm\.tools\.estimate .*?)```\n+```text\n(.*?)```",
    page,
    re.DOTALL,
  ).groups()
  words = command.replace("\\\n", " ").split()
  done = subprocess.run(
    [sys.executable, *words[1:]], cwd=_ROOT, capture_output=True, text=True
  )
  assert (done.stdout, done.stderr) == (output, "")


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--mfu=high", "--mfu='high' is not a number"),
    ("--price=1,2", "one price for each of --chip=v5e"),
  ],
)
def test_bad_flags(flag, message):
  done = subprocess.run(
    [
      sys.executable, "-m", "lm.tools.estimate", flag,
      "--config=ml_collections_configs/tiny.py",
    ],
    cwd=_ROOT, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 2
  assert message in done.stderr
