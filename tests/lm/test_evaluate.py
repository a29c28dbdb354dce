"""Scores against NumPy, whatever the batches, the padding and the devices."""

import dataclasses
import json
import math
import random
import shutil
import types

import jax
import numpy as np
import pytest

from lm import evaluate as lib
from lm import generate
from lm.config import load
from lm.config.schema import MeshConfig
from lm.data import prepare
from lm.data.rows import Rows
from lm.eval import evaluator as evaluators
from lm.eval import score
from lm.model import mesh as meshes
from lm.runs import checkpoint, workdir
from lm.step import build
from ml_collections_configs import base


class _Meta:
  """Three bytes a token, as `layout.Meta` would convert."""

  def bits_per_byte(self, nats_per_token, split):
    assert split == "validation"
    return nats_per_token / 3 / math.log(2)


_ROWS = types.SimpleNamespace(
  split="validation", prepared=types.SimpleNamespace(meta=_Meta())
)


def test_equal_rows_give_the_textbook_mean_and_error():
  rng = np.random.default_rng(0)
  mean_R = rng.normal(5, 1, size=50)
  result = score.summarize(16 * mean_R, np.full(50, 16), _ROWS)
  np.testing.assert_allclose(result.loss, mean_R.mean())
  np.testing.assert_allclose(
    result.stderr, np.std(mean_R, ddof=1) / np.sqrt(50)
  )
  np.testing.assert_allclose(result.perplexity, np.exp(mean_R.mean()))
  np.testing.assert_allclose(
    result.bits_per_byte, np.log2(np.exp(mean_R.mean())) / 3
  )
  assert (result.tokens, result.rows) == (800, 50)


def test_unequal_rows_count_by_their_targets():
  result = score.summarize(np.array([6.0, 4.0]), np.array([3, 1]), _ROWS)
  assert result.loss == 2.5  # The mean of the rows' own 2 and 4 would be 3.


def test_the_error_is_the_spread_over_samples_of_rows():
  rng = np.random.default_rng(1)
  losses, errors = [], []
  for _ in range(2000):
    weight_R = rng.integers(1, 20, size=100)
    loss_R = weight_R * rng.normal(4, 1, size=100) + weight_R**2 / 20
    result = score.summarize(loss_R, weight_R, _ROWS)
    losses.append(result.loss)
    errors.append(result.stderr)
  # The spread of 2000 draws is known to 1 / sqrt(4000) = 1.6 %.
  np.testing.assert_allclose(np.mean(errors), np.std(losses), rtol=0.05)


def test_rows_of_padding_change_nothing():
  loss_R, weight_R = np.array([6.0, 9.0, 4.0]), np.array([3.0, 4.0, 2.0])
  expected = score.summarize(loss_R, weight_R, _ROWS)
  padded = score.summarize(
    np.append(loss_R, [0.0, 0.0]), np.append(weight_R, [0.0, 0.0]), _ROWS
  )
  assert padded == expected
  assert padded.rows == 3


def test_too_few_rows_give_no_error_and_nothing_gives_nothing():
  one = score.summarize(np.array([6.0]), np.array([3.0]), _ROWS)
  assert one.loss == 2.0
  assert math.isnan(one.stderr)
  none = score.summarize(np.zeros(2), np.zeros(2), _ROWS)
  assert math.isnan(none.loss)
  assert none.tokens == 0


def test_what_is_logged():
  result = score.summarize(np.array([6.0, 2.0]), np.array([3, 1]), _ROWS)
  assert set(result.scalars()) == {
    "loss", "stderr", "perplexity", "bits_per_byte",
  }  # fmt: skip
  assert str(result).startswith("loss 2.0000 ± 0.0000, ")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Parts and data of a small untrained run, checkpointed in `run.path`."""
  root = tmp_path_factory.mktemp("evaluate")
  rng = random.Random(0)
  (root / "text").mkdir()
  for i in range(380):
    words = " ".join(rng.choices("one two three four five".split(), k=30))
    (root / "text" / f"{i:03d}.txt").write_text(words)
  spec = f"dir:{root}/text"
  c = base.get_config()
  c.model.D, c.model.N, c.model.H, c.model.G, c.model.F = 32, 1, 2, 2, 64
  c.data.root, c.data.mixture, c.data.tokenizer = (
    str(root / "data"), ((spec, 1.0),), "bytes",
  )  # fmt: skip
  c.data.seq_length, c.data.batch_size, c.eval.batch_size = 32, 8, 8
  c.eval.sets = (spec,)
  config = load.from_config_dict(c)
  prepare.prepare(config.data, config.eval.sets, log=lambda _: None)
  data = build.find_data(config)
  parts = build.build(build.resolve(config, data))
  path = workdir.prepare(root / "run")
  workdir.write_json(path / "config.json", load.to_dict(parts.config))
  with jax.set_mesh(parts.mesh):
    state = build.init_state(parts)
  with checkpoint.Checkpointer(path, async_save=False) as checkpointer:
    checkpointer.save(0, state, {}, None)
  rows = Rows(data[spec], "validation")
  return types.SimpleNamespace(
    parts=parts, data=data, params=jax.device_get(state.params), path=path,
    rows=rows, spec=spec,
  )  # fmt: skip


def _by_numpy(run, rows_BL1):
  """(summed loss, targets) of each row in float64 from the model's logits."""
  parts = run.parts
  forward = jax.jit(lambda p, x: parts.model.apply({"params": p}, x))
  logits_BLV = forward(run.params, rows_BL1[:, :-1])
  logits_BLV = np.asarray(logits_BLV, np.float64)
  top_BL1 = logits_BLV.max(axis=-1, keepdims=True)
  sums_BL1 = np.exp(logits_BLV - top_BL1).sum(axis=-1, keepdims=True)
  log_probs_BLV = logits_BLV - top_BL1 - np.log(sums_BL1)
  targets_BL = rows_BL1[:, 1:]
  loss_BL = -np.take_along_axis(log_probs_BLV, targets_BL[..., None], axis=-1)[
    ..., 0
  ]
  valid_BL = targets_BL != parts.config.model.pad_id
  return (loss_BL * valid_BL).sum(axis=1), valid_BL.sum(axis=1)


def _score(run, *, batch_size=8, max_batches=0, mesh=(8, 1, 1)):
  config = run.parts.config
  config = dataclasses.replace(
    config,
    eval=dataclasses.replace(config.eval, batch_size=batch_size),
    mesh=MeshConfig(
      **dict(zip(meshes.AXES, mesh, strict=True)), rules="logical"
    ),
  )
  parts = build.build(config)
  params = jax.device_put(run.params, parts.shardings.params)
  with jax.set_mesh(parts.mesh):
    evaluator = evaluators.Evaluator(parts, run.data)
    return evaluator.run(params, max_batches)[run.spec]


def _close(result, expected):
  assert (result.tokens, result.rows) == (expected.tokens, expected.rows)
  np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_a_whole_split_with_a_partial_batch_is_what_numpy_says(run):
  total = len(run.rows)
  assert total % 8  # Or the last batch would not be partial.
  rows_BL1 = run.rows.read(range(total))
  loss_R, weight_R = _by_numpy(run, rows_BL1)
  assert weight_R.min() < 32  # Some row holds padding.
  result = _score(run)
  _close(result, score.summarize(loss_R, weight_R, run.rows))
  split = run.data[run.spec].meta.splits["validation"]
  assert result.tokens == split.tokens
  total_bits = loss_R.sum() / math.log(2)
  np.testing.assert_allclose(
    result.bits_per_byte, total_bits / split.utf8_bytes, rtol=1e-5
  )


def test_exactly_the_asked_batches_are_scored(run):
  loss_R, weight_R = _by_numpy(run, run.rows.read(range(16)))
  result = _score(run, max_batches=2)
  _close(result, score.summarize(loss_R, weight_R, run.rows))
  assert result.rows == 16


def test_rows_that_do_not_divide_are_filled_up_with_padding(run):
  loss_R, weight_R = _by_numpy(run, run.rows.read(range(26)))
  result = _score(run, batch_size=13, max_batches=2)
  _close(result, score.summarize(loss_R, weight_R, run.rows))
  assert result.rows == 26


@pytest.mark.parametrize("changes", [{"batch_size": 16}, {"mesh": (2, 2, 2)}])
def test_batches_and_devices_do_not_matter(run, changes):
  _close(_score(run, **changes), _score(run))


@pytest.mark.parametrize("mesh", [(3, 1, 1), (2, 2, 2)])
def test_a_run_is_read_on_whatever_devices_there_are(run, capsys, mesh):
  """Its mesh may not fit them, nor its rows divide."""
  path = run.path.parent / f"moved{mesh[0]}"
  shutil.copytree(run.path, path)
  saved = json.loads((path / "config.json").read_text())
  saved["mesh"] |= dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
  saved["eval"]["batch_size"] = 13
  (path / "config.json").write_text(json.dumps(saved))
  assert lib.main([f"--workdir={path}"]) == 0
  moved = capsys.readouterr().out
  assert lib.main([f"--workdir={run.path}"]) == 0
  assert moved == capsys.readouterr().out


def test_the_program_scores_a_run_beside_the_floor(run, capsys):
  assert lib.main([f"--workdir={run.path}"]) == 0
  header, _, row = capsys.readouterr().out.splitlines()
  assert header.split()[:4] == ["set", "loss", "±", "stderr"]
  expected = _score(run)
  assert row.startswith(run.spec)
  assert f"{expected.loss:.4f} ± {expected.stderr:.4f} " in row
  floors = run.data[run.spec].meta.floors
  best = min(floors["unigram"], floors["bigram"], floors["trigram"])
  assert f"{best:.4f} (" in row


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--step=7", "no checkpoint of step 7"),
    ("--average=ema:0.9", "keeps: none at all (config.optim.averages)"),
    ("--sets=sotu", "sotu is not prepared"),
  ],
)
def test_errors_of_the_program(run, capsys, argument, message):
  assert lib.main([f"--workdir={run.path}", argument]) == 2
  assert message in capsys.readouterr().err


def test_generation_reads_the_same_run(run, capsys):
  program = [f"--workdir={run.path}", "--prompt=one", "--num_tokens=4"]
  assert generate.main(program) == 0
  out = capsys.readouterr().out
  assert out.startswith("one")
  assert generate.main([*program, "--samples=2"]) == 0
  assert capsys.readouterr().out.count("--- ") == 2
