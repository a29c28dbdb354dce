"""Averages of the weights and Schedule-Free's point, through the trainer."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import optim
from lm import evaluate, export
from lm.eval import score
from lm.eval.evaluator import Evaluator
from lm.runs import checkpoint, metrics, weights, workdir
from lm.step import build, state
from lm.train import loop

STEPS = 6
_KEEP_ALL = {
  "mesh__data": 8,
  "checkpoint__every": 1,
  "checkpoint__keep": STEPS,
  "train__num_steps": STEPS,
  "optim__learning_rate": 0.03,
}
_NAMES = ("ema:0.8", "age:3", "tail:0.5")


def _train(tiny, folder, **changes):
  """Trains in this process, on its eight devices."""
  config = tiny.config(**_KEEP_ALL | changes)
  assert loop.train(config, folder) == 0
  return folder


@pytest.fixture(scope="module")
def averaged(tiny, tmp_path_factory):
  folder = tmp_path_factory.mktemp("averaged")
  return _train(tiny, folder, optim__averages=_NAMES)


@pytest.fixture(scope="module")
def free(tiny, tmp_path_factory):
  """A run of Schedule-Free AdamW."""
  return _train(
    tiny,
    tmp_path_factory.mktemp("free"),
    optim__name="schedule_free_adamw",
    optim__kwargs={"b1": 0.8},
    schedule__name="constant",
    eval__every=3,
    eval__batches=2,
  )


def _parts(folder):
  return build.build(workdir.read_config(folder))


def _leaves(tree):
  return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


def _state(folder, step=STEPS):
  parts = _parts(folder)
  return checkpoint.restore(folder, step, parts)


def test_averages_are_those_of_the_saved_weights(averaged):
  parts = _parts(averaged)
  walked = [
    _leaves(weights.restore(parts, averaged, step))
    for step in range(1, STEPS + 1)
  ]
  begin = _leaves(build.init_state(parts).params)
  share = 0.8 ** np.arange(STEPS - 1, -1, -1.0)
  age = begin
  for n, w in enumerate(walked, 1):
    keep = 2 ** (-3 / n)
    age = [keep * s + (1 - keep) * x for s, x in zip(age, w, strict=True)]
  wanted = {
    "ema:0.8": [
      np.tensordot(share / share.sum(), np.stack(x), 1)
      for x in zip(*walked, strict=True)
    ],
    "age:3": age,
    "tail:0.5": [np.mean(x, 0) for x in zip(*walked[-3:], strict=True)],
  }
  for name in _NAMES:
    found = _leaves(weights.restore(parts, averaged, average=name))
    for a, b in zip(found, wanted[name], strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7, err_msg=name)


def test_each_average_has_its_own_score(averaged, tiny, capsys):
  columns = metrics.read(averaged)
  losses = {columns[f"eval/{tiny.corpus}/final_loss"].values[-1]}
  for name in _NAMES:
    key = f"eval/{tiny.corpus}/avg/{name}/final_loss"
    loss = columns[key].values[-1]
    capsys.readouterr()
    options = [f"--average={name}", "--batches=2"]
    assert evaluate.main([f"--workdir={averaged}", *options]) == 0
    assert f"{loss:.4f} ±" in capsys.readouterr().out
    losses.add(loss)
  assert len(losses) == 4


def test_an_unknown_average_is_refused_with_the_known(averaged, capsys):
  out = str(averaged / "no.npz")
  flags = [f"--workdir={averaged}", f"--out={out}", "--average=ema:0.9"]
  assert export.main(flags) == 2
  assert "age:3, ema:0.8, tail:0.5" in capsys.readouterr().err


def test_a_run_stops_by_the_loss_of_an_average(tiny, tmp_path):
  """The loss falls, so the average, which lags, comes below it later."""
  changes = {"optim__averages": ("ema:0.8",), "eval__every": 1}
  whole = metrics.read(_train(tiny, tmp_path / "whole", **changes))
  key = f"eval/{tiny.corpus}/avg/ema:0.8/loss"
  own = whole[f"eval/{tiny.corpus}/loss"].values
  values = whole[key].values
  bound = (values[3] + values[2]) / 2
  assert own[2] < bound < values[2]
  _train(
    tiny, tmp_path / "stopped", **changes,
    train__stop_at_average="ema:0.8", train__stop_at_loss=float(bound),
  )  # fmt: skip
  stopped = metrics.read(tmp_path / "stopped")
  assert stopped[key].steps.tolist() == [1, 2, 3, 4]
  assert stopped[key].values.tolist() == values[:4].tolist()
  last = f"eval/{tiny.corpus}/final_loss"
  assert stopped[last].steps.tolist() == [4]


def test_the_curve_has_the_same_rows_to_its_end(tiny, free):
  """Two batches at each point, and the whole split under another name."""
  parts = _parts(free)
  columns = metrics.read(free)
  name = f"eval/{tiny.corpus}"
  assert columns[f"{name}/loss"].steps.tolist() == [3, 6]
  with jax.set_mesh(parts.mesh):
    scorer = Evaluator(parts, build.find_data(parts.config))
    params = weights.restore(parts, free)
    for key, batches in (("loss", 2), ("final_loss", 2), ("loss", 1)):
      (result,) = scorer.run(params, batches).values()
      same = result.loss == pytest.approx(columns[f"{name}/{key}"].values[-1])
      assert same == (batches == 2)
  assert isinstance(result, score.EvalResult)


def test_schedule_free_is_evaluated_at_its_average(free, tiny):
  now = _state(free)
  kind = optim.PrimalAveragingState
  nodes = jax.tree.leaves(now.opt_state, is_leaf=lambda x: isinstance(x, kind))
  (own,) = [node for node in nodes if isinstance(node, kind)]
  x = jax.tree.map(lambda y, m: y + 0.2 * m, now.params, own.momentum)
  parts = _parts(free)
  found = weights.restore(parts, free)
  for a, b in zip(_leaves(found), _leaves(x), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  with jax.set_mesh(parts.mesh):
    scorer = Evaluator(parts, build.find_data(parts.config))
    (at_x,), (at_y,) = (scorer.run(p, 2).values() for p in (x, now.params))
  last = metrics.read(free)[f"eval/{tiny.corpus}/final_loss"].values[-1]
  assert last == pytest.approx(at_x.loss, rel=1e-6)
  assert abs(last - at_y.loss) > 1e-4


def test_schedule_free_is_exported_at_its_point(free, tmp_path):
  out = tmp_path / "free.npz"
  assert export.main([f"--workdir={free}", f"--out={out}"]) == 0
  _, exported = weights.read_export(out)
  wanted = _leaves(weights.restore(_parts(free), free))
  for a, b in zip(_leaves(exported), wanted, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("name", ["averaged", "free"])
def test_a_run_goes_on_to_the_same_bits(name, tmp_path, request):
  whole, again = request.getfixturevalue(name), tmp_path / "again"
  shutil.copytree(whole, again)
  for step in (5, 6):
    shutil.rmtree(again / "checkpoints" / str(step))
  (again / "metrics.jsonl").unlink()
  assert loop.train(_stored(whole), again) == 0
  assert state.digest(_state(again)) == state.digest(_state(whole))
  found, wanted = metrics.read(again), metrics.read(whole)
  for key in (key for key in wanted if key.startswith("eval/")):
    assert found[key].values[-1] == wanted[key].values[-1], key


def test_tails_of_another_length_are_refused(averaged, tmp_path):
  """Half of 6 updates was begun; half of 12 would not have been."""
  again = tmp_path / "again"
  shutil.copytree(averaged, again)
  config = _stored(averaged)
  longer = dataclasses.replace(config.train, num_steps=2 * STEPS)
  config = dataclasses.replace(config, train=longer)
  with pytest.raises(ValueError, match=r"tail:0\.5.*num_steps=6"):
    loop.train(config, again)


def _stored(folder):
  """The configuration of a run before it was resolved."""
  config = workdir.read_config(folder)
  model = dataclasses.replace(config.model, V=0)
  return dataclasses.replace(config, model=model)
