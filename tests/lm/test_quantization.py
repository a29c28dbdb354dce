"""`config.quant`: which weights are rounded, what the loss sees, the scores."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import loss_sums

import optim
from lm.config.errors import ConfigError
from lm.eval import rounded as rounded_scores
from lm.eval.evaluator import Evaluator
from lm.runs import metrics, npz, weights
from lm.step import build
from lm.weights import rounded
from lm.weights import table as seam

_METHODS = {
  "qat": {},
  "rat": {"quant__grid": "fp4"},
  "lotion": {"quant__strength": 10.0},
  "lotion sampled": {"quant__strength": 1.0, "quant__curvature": "sampled"},
  "lotion factors": {
    "quant__strength": 10.0,
    "quant__curvature": "factors",
    "optim__name": "soap",
    "optim__kwargs": {},
  },
}


def _parts(tiny, method, devices=1, **changes):
  changes = {
    "quant__method": method.split()[0],
    **_METHODS.get(method, {}),
    "mesh__data": devices,
    **changes,
  }
  config = tiny.config(**changes)
  config = build.resolve(config, build.find_data(config))
  return build.build(config, jax.devices()[:devices])


def _rows(parts, step=0):
  rows = np.random.default_rng(step).integers(2, 256, parts.buffer_shape)
  return build.put_buffer(parts, rows.astype(np.int32))


def _train(parts, steps=2):
  with jax.set_mesh(parts.mesh):
    now = build.init_state(parts)
    train_step = build.compile_step(parts)
    losses = []
    for step in range(steps):
      now, metrics = train_step(now, _rows(parts, step), np.int32(1))
      losses.append(float(metrics["train/loss"]))
  return now, losses


def _seen(parts, params, step):
  config, step = parts.config, jnp.int32(step)
  return seam.seen(config, parts.specs, params, (), step, seam.TRAIN)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_matrices_of_the_blocks_are_chosen_each_layer_by_itself(tiny, layers):
  chosen = _parts(tiny, "qat", model__layers=layers).quantizers
  block = chosen["blocks"] if layers == "scan" else chosen["blocks"]["0"]
  one = optim.Quantizer(optim.INT4, batch_axes=int(layers == "scan"))
  assert block["attention"]["q"] == block["mlp"]["in"] == one
  assert block["norm1"]["gain"] is None
  assert chosen["embed"]["table"] is None


def test_blocks_lie_along_the_axis_that_products_sum_over(tiny):
  parts = _parts(
    tiny, "ptq", quant__block_size=16, quant__paths=".*", model__layers="scan"
  )
  block = parts.quantizers["blocks"]
  assert block["attention"]["q"].axis == 1  # [layers, embed, heads, channels]
  assert block["attention"]["out"].axis == 2  # [layers, heads, channels, embed]
  assert block["mlp"]["in"].axis == 1
  assert parts.quantizers["embed"]["table"].axis == 1  # [vocab, embed]


def test_rounding_is_the_same_for_scanned_and_unrolled_layers(tiny):
  losses = [
    _train(_parts(tiny, "qat", model__layers=layers))[1]
    for layers in ("scan", "unroll")
  ]
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


@pytest.mark.parametrize("method", ["qat", "rat"])
def test_the_loss_is_that_of_the_rounded_weights(tiny, method):
  parts = _parts(tiny, method)
  _, (loss, _) = _train(parts)
  with jax.set_mesh(parts.mesh):
    params = build.init_state(parts).params
    got = _seen(parts, params, 0)
    rows = _rows(parts).tokens[0]
    sums = loss_sums(parts.model, got, rows)
    plain = loss_sums(parts.model, params, rows)
  assert loss == pytest.approx(float(sums.loss / sums.weight), rel=1e-6)
  assert loss != pytest.approx(float(plain.loss / plain.weight), rel=1e-6)
  leaf = params["blocks"]["0"]["mlp"]["in"]
  quantizer = parts.quantizers["blocks"]["0"]["mlp"]["in"]
  got = got["blocks"]["0"]["mlp"]["in"]
  lower, upper = optim.neighbours(leaf, quantizer)
  assert np.all((got == lower) | (got == upper))


def test_each_update_draws_afresh_and_a_repeated_one_alike(tiny):
  parts = _parts(tiny, "rat")
  with jax.set_mesh(parts.mesh):
    params = build.init_state(parts).params
    leaves = [
      np.asarray(_seen(parts, params, step)["blocks"]["0"]["mlp"]["in"])
      for step in (0, 0, 1)
    ]
  assert np.array_equal(leaves[0], leaves[1])
  assert not np.array_equal(leaves[0], leaves[2])


@pytest.mark.parametrize("method", ["qat", "rat"])
def test_the_scales_are_differentiated_if_told(tiny, method):
  with_scale, without = (
    _train(_parts(tiny, method, quant__scale_gradient=told))[0].params
    for told in (True, False)
  )
  leaves = jax.tree.map(np.array_equal, with_scale, without)
  assert not all(jax.tree.leaves(leaves))


def test_without_strength_the_penalty_changes_nothing(tiny):
  plain = _train(_parts(tiny, "none"))[0].params
  penalized = _train(_parts(tiny, "lotion", quant__strength=0.0))[0].params
  for a, b in zip(
    jax.tree.leaves(plain), jax.tree.leaves(penalized), strict=True
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", [m for m in _METHODS if "lotion" in m])
def test_every_curvature_moves_the_rounded_weights(tiny, method):
  changes = {"quant__warmup": 0.0, "optim__clip_norm": 0.0}
  strong = {**changes, "quant__strength": 1e4}
  first = [
    _train(_parts(tiny, method, **options), steps=3)[0].params
    for options in (strong, {**changes, "quant__strength": 0.0})
  ]
  same = jax.tree.map(np.array_equal, *first)
  assert not same["blocks"]["0"]["mlp"]["in"]


def test_a_mesh_rounds_as_one_device(tiny):
  """Draws of single weights, that is; test_sharded.py has the other methods."""
  changes = {"optim__learning_rate": 1e-4}
  one, two = (_train(_parts(tiny, "rat", n, **changes))[1] for n in (1, 2))
  np.testing.assert_allclose(one, two, rtol=1e-5)


def test_the_state_keeps_its_curvature_where_the_weights_are(tiny):
  parts = _parts(
    tiny, "lotion", 8, mesh__data=1, mesh__fsdp=8, model__D=64, model__F=128
  )
  lies = parts.shardings.opt_state[0].curvature["blocks"]["0"]["mlp"]["in"]
  assert lies == parts.shardings.params["blocks"]["0"]["mlp"]["in"]


def test_blocks_that_cross_devices_are_refused(tiny):
  with pytest.raises(ConfigError, match=r"quant.block_size=16.*cross"):
    _parts(
      tiny, "ptq", 4, mesh__data=1, mesh__fsdp=4, quant__block_size=16,
    )  # fmt: skip
  with pytest.raises(ConfigError, match=r"block_size=24.*divide"):
    _parts(tiny, "ptq", quant__block_size=24)


def test_paths_that_match_nothing_are_refused(tiny):
  with pytest.raises(ConfigError, match=r"quant.paths.*mlp/in"):
    _parts(tiny, "ptq", quant__paths="layers/.*")


def test_the_scores_are_those_of_rounded_weights(tiny):
  parts = _parts(tiny, "ptq", quant__grid="fp4")
  data = build.find_data(parts.config)
  (name,) = parts.config.eval.sets
  with jax.set_mesh(parts.mesh):
    params = build.init_state(parts).params
    evaluator = Evaluator(parts, data)
    rounder = rounded_scores.Rounder(parts)
    rounder.compile()
    score = rounded_scores.score(evaluator, rounder, params, 2, draws=8)[name]
    plain = evaluator.run(params, 2)[name].loss
    by_hand = optim.quantize_params(params, parts.quantizers)
    assert score.nearest == evaluator.run(by_hand, 2)[name].loss
    assert rounder.measure(by_hand)["quant/on_grid_share"] == 1.0
  assert score.nearest != plain
  assert abs(score.random - plain) < 0.1
  assert 0 < score.stderr < 0.05


def test_no_biased_draws_are_scored(tiny):
  parts = _parts(tiny, "ptq", quant__grid="fp4", quant__scale="pow2_floor")
  with jax.set_mesh(parts.mesh):
    evaluator = Evaluator(parts, build.find_data(parts.config))
    rounder = rounded_scores.Rounder(parts)
    rounder.compile()
    params = build.init_state(parts).params
    (score,) = rounded_scores.score(evaluator, rounder, params, 1, 8).values()
  assert set(score.scalars()) == {"loss_nearest"}


def _grids():
  """Every grid with both sizes of blocks; four of them by default."""
  default = {("int4", 16), ("mxint8", 16), ("fp6_e2m3", 0), ("fp8_e5m2", 0)}
  for case in itertools.product(rounded.GRIDS, (0, 16)):
    marks = () if case in default else pytest.mark.slow
    yield pytest.param(*case, marks=marks)


@pytest.mark.parametrize(("grid", "block_size"), _grids())
def test_packed_weights_come_back_on_their_grid(tiny, grid, block_size):
  parts = _parts(tiny, "ptq", quant__grid=grid, quant__block_size=block_size)
  params = jax.tree.map(np.asarray, build.init_state(parts).params)
  flat = npz.pack(params, parts.quantizers)
  back = npz.unpack(flat, parts.quantizers)
  expected = optim.quantize_params(params, parts.quantizers)
  for a, b in zip(
    jax.tree.leaves(back), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  bits = 4 if grid in ("int4", "fp4") else 8
  codes = flat["blocks/0/mlp/in#codes"]
  assert codes.nbytes == params["blocks"]["0"]["mlp"]["in"].size * bits // 8


def test_a_run_reports_exports_and_loads_rounded_weights(tiny, tmp_path):
  run, out = tmp_path / "run", tmp_path / "rounded.npz"
  code, output = tiny.run(run, quant__method="lotion", quant__strength=1.0)
  assert code == 0, output
  columns = metrics.read(run)
  (scored,) = {key.rsplit("/", 1)[0] for key in columns if "nearest" in key}
  for key in ("loss", "loss_nearest", "loss_random", "loss_random_stderr"):
    assert columns[f"{scored}/final_{key}"].steps.tolist() == [6]
  assert columns["quant/mean_step_size"].values[-1] > 0
  weights.export(run, out, quantize=True)
  config, params = weights.read_export(out)
  chosen = rounded.of_unrolled(config)
  again = optim.quantize_params(params, chosen)
  leaf = ("blocks", "1", "attention", "out")
  a, b = params, again
  for key in leaf:
    a, b = a[key], b[key]
  np.testing.assert_allclose(a, b, rtol=1e-6)  # 7 (max / 7) need not be max.
  code, output = tiny.run(tmp_path / "next", train__init_from=str(out))
  assert code == 0, output


def test_a_grid_can_be_chosen_after_training(tiny):
  config = tiny.config()
  assert rounded.override(config, None, None) is config
  chosen = rounded.override(config, "int8", 16).quant
  assert (chosen.method, chosen.grid, chosen.block_size) == ("ptq", "int8", 16)
  with pytest.raises(ConfigError, match="--block_size"):
    rounded.override(config, None, 16)
  trained = dataclasses.replace(
    config, quant=dataclasses.replace(config.quant, method="qat")
  )
  assert rounded.override(trained, "fp4", None).quant.method == "qat"
