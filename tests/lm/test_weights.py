"""`config.train.weights`: rank one over a frozen model, for every reader."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import evaluate, generate
from lm.eval.evaluator import Evaluator
from lm.model import params as param_table
from lm.model.params import ParamSpec
from lm.runs import checkpoint, metrics, resume, weights
from lm.step import build, memory
from lm.train import loop
from lm.weights import table


def _specs(config, specs):
  del specs
  d, f = config.model.D, config.model.F
  return {
    "one": {
      "a": ParamSpec((d, 1), ("embed", None), "hidden", (0,), 0.1),
      "b": ParamSpec((1, f), (None, "mlp"), "hidden", (0,), 0.1),
    }
  }


def _seen(config, specs, params, frozen, step, key, mode):
  del config, specs, step, key, mode
  block = frozen["blocks"]["0"]
  change = params["one"]["a"] @ params["one"]["b"]
  mlp = block["mlp"] | {"in": block["mlp"]["in"] + change}
  blocks = frozen["blocks"] | {"0": block | {"mlp": mlp}}
  return frozen | {"blocks": blocks}


_RANK_ONE = table.Weights(extra_specs=_specs, seen=_seen, frozen=True)
_CHANGES = {
  "train__weights": "rank_one",
  "mesh__data": 2,
  "mesh__fsdp": 4,
  "optim__averages": ("ema:0.5",),
  "optim__learning_rate": 0.1,
}


@pytest.fixture(scope="module", autouse=True)
def _entry():
  table.WEIGHTS["rank_one"] = _RANK_ONE
  yield
  del table.WEIGHTS["rank_one"]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
  folder = tmp_path_factory.mktemp("rank_one") / "run"
  assert loop.train(tiny.config(**_CHANGES), folder) == 0
  return folder


def _parts(tiny, **changes):
  config = tiny.config(**changes)
  return build.build(build.resolve(config, build.find_data(config)))


def _state(tiny, folder):
  parts = _parts(tiny, **_CHANGES)
  return parts, checkpoint.restore(folder, 6, parts)


def test_the_models_own_leaves_stay_and_the_others_learn(tiny, run):
  parts, state = _state(tiny, run)
  assert state.params.keys() == {"one"}
  key = jax.random.key(parts.config.seed)
  begin = param_table.init_params(parts.config.model, key)
  jax.tree.map(np.testing.assert_array_equal, state.frozen, begin)
  drawn = param_table.init_leaves(
    _specs(parts.config, None), key, parts.config.model.init_cut
  )
  for name in "ab":
    change = np.abs(state.params["one"][name] - drawn["one"][name])
    assert np.median(change) > 1e-2
  kept = {row.name: row for row in memory.kept(parts)}
  size = sum(4 * leaf.size for leaf in jax.tree.leaves(begin))
  assert kept["weights that are not trained"].whole == size
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state.inner))
  assert moments < 3 * (32 + 64)  # Two of each, and counts.


def test_the_export_is_a_plain_model_of_the_weights(tiny, run, tmp_path):
  out = tmp_path / "merged.npz"
  weights.export(run, out, average="ema:0.5")
  _, state = _state(tiny, run)
  average = jax.tree.map(
    lambda s: np.asarray(s) / (1 - 0.5**6), state.opt_state.average
  )
  _, exported = weights.read_export(out)
  wanted = jax.tree.map(np.asarray, state.frozen)
  wanted["blocks"]["0"]["mlp"]["in"] = (
    wanted["blocks"]["0"]["mlp"]["in"]
    + average["one"]["a"] @ average["one"]["b"]
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    exported,
    wanted,
  )
  # The run has scored this model, and a plain run can start from it.
  plain = _parts(tiny)
  with jax.set_mesh(plain.mesh):
    loaded = weights.load(plain, str(out))
    evaluator = Evaluator(plain, build.find_data(plain.config))
    (result,) = evaluator.run(loaded, 2).values()
  key = f"eval/{tiny.corpus}/avg/ema:0.5/final_loss"
  column = metrics.read(run)[key]
  np.testing.assert_allclose(column.values[-1], result.loss, rtol=1e-5)
  again = _parts(tiny, **_CHANGES, train__init_from=str(out))
  with jax.set_mesh(again.mesh):
    fresh, _ = resume.fresh(again)
  np.testing.assert_allclose(
    fresh.frozen["blocks"]["0"]["mlp"]["in"],
    wanted["blocks"]["0"]["mlp"]["in"],
    rtol=1e-6,
    atol=1e-7,
  )


def test_every_command_reads_what_the_model_sees(
  tiny, run, capsys, monkeypatch
):
  arguments = [f"--workdir={run}"]

  def commands():
    assert evaluate.main([*arguments, "--batches=2", "--grid=int4"]) == 0
    assert generate.main([*arguments, "--num_tokens=8", "--temperature=0"]) == 0
    return capsys.readouterr().out.replace("\n\n", "\n").split("\n")

  before = commands()

  def nothing(config, specs, params, frozen, step, key, mode):
    return jax.tree.map(jnp.zeros_like, frozen)

  monkeypatch.setitem(
    table.WEIGHTS, "rank_one", _RANK_ONE._replace(seen=nothing)
  )
  after = commands()
  assert len(before) == len(after)
  differ = [a != b for a, b in zip(before, after, strict=True)]
  assert sum(differ) >= 4  # Scores, rounded scores, their grid, the text.
  scores = [line for line in after if line.startswith(tiny.corpus)]
  assert len(scores) == 2
  for line in scores:  # No piece is likelier than another.
    assert f" {np.log(258):.4f}" in line


def test_names_are_checked_with_the_roundings(tiny):
  def problems(**changes):
    return table.problems(tiny.config(**changes))

  assert problems(quant__method="qat") == []
  assert problems(quant__method="qat", train__weights="rounded") == []
  assert problems(train__weights="rank_one", quant__method="ptq") == []
  (line,) = problems(train__weights="rank_on")
  assert "Did you mean 'rank_one'?" in line
  (line,) = problems(train__weights="rank_one", quant__method="rat")
  assert (
    "config.train.weights='rank_one' with config.quant.method='rat'" in line
  )
  (line,) = problems(train__weights="rank_one", quant__method="lotion")
  assert "penalty" in line
  (line,) = problems(train__weights="rounded")
  assert "needs config.quant.method='qat' or 'rat', not 'none'" in line
