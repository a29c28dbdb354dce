"""`config.product`: which products are rounded, and what it does not change."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optim
from lm.config.errors import ConfigError
from lm.model import product_slots
from lm.model.draws import Draws
from lm.model.product_slots import Options, slots_of
from lm.objectives import table as objectives
from lm.objectives.view import Batch
from lm.runs import metrics
from lm.step import build

_WIDE = {"model__D": 64, "model__F": 128}  # Blocks of 32 on two devices.


def _parts(tiny, devices=1, **changes):
  config = tiny.config(**{**_WIDE, "mesh__data": devices, **changes})
  config = build.resolve(config, build.find_data(config))
  return build.build(config, jax.devices()[: config.mesh.fsdp * devices])


def _train(parts, steps=2, count=None):
  """Losses and the last weights; rows are the same for any microbatch."""
  losses = []
  rows = parts.config.data.batch_size
  with jax.set_mesh(parts.mesh):
    now, step = build.init_state(parts), build.compile_step(parts)
    for i in range(steps):
      drawn = np.random.default_rng(i).integers(2, 256, (rows, 33), np.int32)
      index = np.arange(i * rows, (i + 1) * rows).reshape(
        parts.buffer_shape[:2]
      )
      buffer = build.put_buffer(parts, drawn.reshape(parts.buffer_shape), index)
      count = np.int32(parts.buffer_shape[0])
      now, found = step(now, buffer, count)
      losses.append(float(found["train/loss"]))
  return losses, jax.device_get(now.params)


def _text(parts):
  """The compiled step, without the lines of the source."""
  with jax.set_mesh(parts.mesh):
    text = build.compile_step(parts).as_text()
  text = re.sub(r", metadata=\{[^}]*\}", "", text)
  tables = r"(FileNames|FunctionNames|FileLocations|StackFrames|\d+ .*)"
  return re.sub(rf"(?m)^{tables}$", "", text)


def _close(one, other, rtol=2e-5):
  np.testing.assert_allclose(one[0], other[0], rtol=rtol)
  for a, b in zip(
    jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True
  ):
    # AdamW's first steps are signs: only that few entries differ is a fact.
    assert np.mean(np.abs(a - b) > 1e-3 * np.abs(a).max()) < 0.01


# --- Which products.


def test_projections_are_rounded_and_the_rest_is_left_alone():
  options = Options("mxfp8_e4m3")
  for name in product_slots.NAMES:
    left_out = name in product_slots.HIGH
    assert (slots_of(options, name) == optim.Slots()) == left_out
  assert slots_of(Options("paper_e4m3"), "head") != optim.Slots()


def test_overrides_by_name_group_and_slot():
  options = Options(
    "mxfp8_e4m3",
    (
      ("attention", "mxfp4"),
      ("attention.scores", "none"),
      ("ffn.out", (("g_dw", "fp8_e5m2"), ("w_y", "none"))),
      ("head", "mxfp6"),
    ),
  )
  recipes = optim.PRODUCT_RECIPES
  assert slots_of(options, "attention.q") == recipes["mxfp4"]
  assert slots_of(options, "attention.values") == recipes["mxfp4"]
  assert slots_of(options, "attention.scores") == recipes["none"]
  assert slots_of(options, "head") == recipes["mxfp6"]
  out = slots_of(options, "ffn.out")
  assert (out.g_dw, out.w_y) == (optim.Slot(optim.E5M2), None)
  assert out.x_y == recipes["mxfp8_e4m3"].x_y


def test_a_slot_is_written_in_words():
  slot = product_slots.slot("fp4/16/nvfp4_up/random")
  assert slot == optim.Slot(optim.E2M1, 16, "nvfp4_up", random=True)
  assert product_slots.slot("fp4/16/nvfp4/square").square
  assert product_slots.slot("none") is None


def test_no_recipe_is_the_plain_step(tiny):
  plain = _text(_parts(tiny))
  kwargs = {"recipe": "none", "overrides": (("ffn", "none"),)}
  same = _parts(tiny, model__product="slots", model__product_kwargs=kwargs)
  assert _text(same) == plain
  assert _text(_parts(tiny, product__recipe="mxfp4")) != plain


def test_layers_that_stay_high(tiny):
  """Of three unrolled layers the middle one is rounded: six products."""

  def rounded(**changes):
    parts = _parts(
      tiny, model__N=3, model__layers="unroll", product__recipe="mxfp4",
      **changes,
    )  # fmt: skip
    objective = objectives.chosen(parts.config)
    batch = Batch(jnp.zeros((2, 33), jnp.int32), jnp.arange(2))
    with jax.set_mesh(parts.mesh):
      jaxpr = jax.make_jaxpr(
        lambda params: objective.loss_sums(parts.model, params, batch).loss
      )(parts.abstract_weights)
    return str(jaxpr).count("custom_vjp_call[")

  assert (rounded(), rounded(product__high_layers=1)) == (18, 6)


# --- What must not change the numbers.


@pytest.mark.parametrize("recipe", ["mxfp8_e4m3", "nvfp4"])
def test_remat_scan_and_microbatches_agree(tiny, recipe):
  def run(**changes):
    return _train(_parts(tiny, product__recipe=recipe, **changes))

  base = run(model__layers="scan")
  remat = run(model__layers="scan", model__remat="full")
  np.testing.assert_array_equal(base[0], remat[0])
  _close(base, remat)
  _close(base, run(model__layers="scan", train__microbatch_size=2))
  unrolled = run(model__layers="unroll")
  np.testing.assert_allclose(base[0], unrolled[0], rtol=2e-5)


def test_eight_devices_draw_like_one(tiny):
  def parts(recipe, devices, fsdp=1):
    return _parts(
      tiny, devices, mesh__fsdp=fsdp, product__recipe=recipe,
      model__layers="scan",
    )  # fmt: skip

  _close(_train(parts("nvfp4", 1)), _train(parts("nvfp4", 4, 2)))

  def gathers(recipe):
    return _text(parts(recipe, 4, 2)).count(" all-gather(")

  assert gathers("mxfp8_e4m3") <= gathers("none")


def test_blocks_across_devices_are_refused(tiny):
  """Of 64 channels each of four devices has 16, which blocks of 32 cross."""
  with pytest.raises(
    ConfigError, match="blocks of 32 along axis .* 16 entries"
  ):
    _parts(tiny, mesh__fsdp=4, product__recipe="mxfp8_e4m3")
  _parts(tiny, mesh__fsdp=4, product__recipe="forward_only", model__D=128)


def test_draws_differ_by_layer_product_row_and_update(tiny):
  parts = _parts(tiny, product__recipe="nvfp4", model__layers="scan")
  model, objective = parts.model, objectives.chosen(parts.config)
  tokens = jnp.asarray(
    np.random.default_rng(0).integers(2, 256, (8, 33)), jnp.int32
  )
  with jax.set_mesh(parts.mesh):
    params = build.init_state(parts).params

    @jax.jit
    def grad(index):
      def loss(params):
        batch = Batch(tokens, index)
        return objective.loss_sums(model, params, batch).loss

      return jax.grad(loss)(params)["blocks"]["mlp"]["in"]

    one, again = grad(jnp.arange(8)), grad(jnp.arange(8))
    other = grad(jnp.arange(8, 16))
  np.testing.assert_array_equal(one, again)
  assert np.mean(one != other) > 0.5
  keys = jax.random.split(jax.random.key(0), 2)
  draws = Draws(keys, jax.random.key(1))
  words = {
    jax.random.key_data(draws.at(name, layer).rows[row]).tobytes()
    for name in ("ffn.in", "ffn.out")
    for layer in (0, 1, None)
    for row in (0, 1)
  }
  assert len(words) == 12


def test_weights_drawn_by_update(tiny):
  """A slot of W at random draws anew at each update, alike for all rows."""
  override = (("ffn", (("w_y", "fp4/random"),)),)
  changes = {"product__overrides": override, "optim__learning_rate": 0.0}
  whole = _train(_parts(tiny, **changes), 3)
  _close(whole, _train(_parts(tiny, train__microbatch_size=2, **changes), 3))
  _close(whole, _train(_parts(tiny, 4, **changes), 3))


# --- Whole runs.


def test_a_switch_is_a_branch_with_another_recipe(tiny, tmp_path):
  switched, first, second = (tmp_path / name for name in "abc")
  run = {**_WIDE, "train__num_steps": 6, "eval__every": 2, "eval__batches": 1}
  code, output = tiny.run(
    switched, product__switch_at="((3,'mxfp4_random'),)", **run
  )
  assert code == 0, output
  code, output = tiny.run(first, checkpoint__every=3, **run)
  assert code == 0, output
  code, output = tiny.run(
    second, product__recipe="mxfp4_random",
    train__branch_from=f"{first}:3", **run,
  )  # fmt: skip
  assert code == 0, output
  one, other = metrics.read(switched), metrics.read(second)
  for key in ("train/loss", "train/grad_norm"):
    late = one[key].steps > 3
    np.testing.assert_array_equal(one[key].values[late], other[key].values)
  name = next(k for k in one if k.endswith("/final_loss"))
  assert one[name].values[-1] == other[name].values[-1]
  plain = metrics.read(first)["train/loss"].values
  np.testing.assert_array_equal(one["train/loss"].values[:3], plain[:3])
  assert np.all(one["train/loss"].values[4:] != plain[4:])


def test_evaluation_rounds_the_forward_pass(tiny, tmp_path):
  """The score is that of the rounded model, without random numbers."""
  run = {**_WIDE, "train__num_steps": 1, "optim__learning_rate": 0.0}
  scores = {}
  for recipe in ("none", "mxfp4", "mxfp4_random"):
    code, output = tiny.run(tmp_path / recipe, product__recipe=recipe, **run)
    assert code == 0, output
    found = metrics.read(tmp_path / recipe)
    name = next(k for k in found if k.endswith("/final_loss"))
    scores[recipe] = found[name].values[-1]
  assert scores["mxfp4"] == scores["mxfp4_random"] != scores["none"]
