"""Parts that a test adds from outside: each against NumPy in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from losses import batch, loss_sums, row_losses
from oracles import transformer as oracle

from lm.config.errors import ConfigError
from lm.methods import newton
from lm.model import params as param_table
from lm.model import seams
from lm.model.cache import init_cache
from lm.model.ffn import table as ffn_table
from lm.model.mixers import table as mixer_table
from lm.model.param_spec import ParamSpec, init_std
from lm.model.products import PRODUCTS, Product
from lm.model.transformer import Transformer
from lm.objectives import table as objectives
from lm.step import build, flops, memory, state, update


@dataclasses.dataclass(frozen=True)
class _Options:
  weight: float = 0.25  # Of the loss: weight * |y|^2 of each token.


def _halves_specs(cfg, layer, options):
  del options
  d, f = cfg.D, cfg.F // 2
  into, out = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")
  std, std_out = init_std(cfg, d), init_std(cfg, f, layer)
  return {
    "in": ParamSpec((2, d, f), into, "hidden", (1,), std),
    "out": ParamSpec((2, f, d), out, "hidden", (1,), std_out),
  }


def _halves(w, x_BLD, context, options):
  """The average of two gelu blocks of half the width."""
  h_BLEF = context.contract("ffn.in", "bld,edf->blef", x_BLD, w["in"])
  h_BLEF = jax.nn.gelu(h_BLEF)
  y_BLD = context.contract("ffn.out", "blef,efd->bld", h_BLEF, w["out"]) / 2
  squares = jnp.sum(jnp.square(y_BLD.astype(jnp.float32)))
  positive_D = jnp.sum(y_BLD > 0, axis=(0, 1))
  return y_BLD, {"loss": options.weight * squares, "positive": positive_D}


def _halves_problems(cfg):
  if cfg.F % 2:
    yield f"config.model.F={cfg.F} must be even."


HALVES = ffn_table.FeedForward(
  specs=_halves_specs,
  apply=_halves,
  weights=lambda cfg, options: (2 * cfg.D * cfg.F, cfg.D * cfg.F),
  flops=lambda cfg, options: 28 * options.weight,
  problems=_halves_problems,
  options=_Options,
)


def _mean(w, x_BLD, cache, places, context):
  """W times the mean of the tokens so far; the cache is their sum."""
  so_far_BLD = jnp.cumsum(x_BLD, axis=1)
  if cache is not None:
    so_far_BLD += cache[:, None]
    cache = so_far_BLD[:, -1]
  mean_BLD = so_far_BLD / (places.index_BL[..., None] + 1)
  y_BLD = context.contract("mean", "bld,de->ble", mean_BLD, w["w"])
  return y_BLD, cache, {"tokens": x_BLD.shape[0] * x_BLD.shape[1]}


MEAN = mixer_table.Mixer(
  specs=lambda cfg, layer: {
    "w": ParamSpec((cfg.D,) * 2, ("embed", "act_embed"), "hidden", (0,), 0.1)
  },
  apply=_mean,
  init_cache=lambda cfg, batch, size: jnp.zeros((batch, cfg.D)),
  weights=lambda cfg: (cfg.D**2, cfg.D**2),
)


@pytest.fixture(autouse=True)
def added(monkeypatch):
  monkeypatch.setitem(ffn_table.FEED_FORWARDS, "halves", HALVES)
  monkeypatch.setitem(mixer_table.MIXERS, "mean", MEAN)


# --- Against NumPy -----------------------------------------------------------


def _as_dense(w):
  """Two averaged halves are one block of the whole width."""
  into, out = w["in"], w["out"]
  return {"in": np.concatenate(into, 1), "out": np.concatenate(out, 0) / 2}


class _Numpy:
  """The oracle's model with the parts above; notes what they would report."""

  def __init__(self, monkeypatch):
    self._plain, self.squares, self.positive = oracle._mlp, 0.0, 0
    monkeypatch.setattr(oracle, "_mlp", self._mlp)

  def _mlp(self, w, x, o):
    if o.ffn != "halves":
      return self._plain(w, x, o)
    y = self._plain(_as_dense(w), x, o)
    self.squares += (y**2).sum()
    self.positive = self.positive + (y > 0).sum(0)
    return y

  def objective(self, params, rows, cfg, weight, z_loss):
    """(cross-entropy + z_loss + the layers' loss) / number of targets."""
    self.squares, self.positive = 0.0, 0
    targets = rows[:, 1:]
    logits = oracle.forward(params, rows[:, :-1], cfg)
    loss, z, count, _ = oracle.losses(logits, targets, targets != cfg.pad_id)
    return (loss + z_loss * z + weight * self.squares) / count, loss, count


def _float64(params):
  return jax.tree.map(np.float64, param_table.unstack_layers(params))


@pytest.mark.parametrize("layers", ["scan", "unroll"])
@pytest.mark.parametrize("more", [{}, {"loss_chunk": 5, "remat": "full"}])
def test_a_feed_forward_and_its_sums_are_those_of_numpy(
  make_config, make_params, rows, monkeypatch, layers, more
):
  cfg = make_config(ffn="halves", layers=layers, **more)
  params, model = make_params(cfg), Transformer(cfg)
  numpy = _Numpy(monkeypatch)
  _, loss, count = numpy.objective(_float64(params), rows, cfg, 0, 0)
  sums = jax.jit(lambda p: loss_sums(model, p, rows))(params)
  assert float(sums.loss) == pytest.approx(loss, rel=1e-5)
  assert float(sums.weight) == count
  assert set(sums.aux) == {"ffn/loss", "ffn/positive"}
  found = float(sums.aux["ffn/loss"])
  assert found == pytest.approx(0.25 * numpy.squares, rel=1e-5)
  np.testing.assert_array_equal(sums.aux["ffn/positive"], numpy.positive)
  loss_B, _ = row_losses(model, params, rows)  # Evaluations: the plain loss.
  assert float(loss_B.sum()) == pytest.approx(loss, rel=1e-5)


# (rows of a pass, devices along data and fsdp)
_CASES = [(16, 1, 1), (4, 1, 1), (16, 8, 1), (8, 4, 2), (8, 8, 1)]


@pytest.fixture(scope="module")
def trained(make_config):
  """Tiny batches whose last row is padded."""
  rows = np.random.default_rng(0).integers(2, 29, (16, 13)).astype(np.int32)
  rows[::3, 5] = 1
  rows[-1, 7:] = 0
  return rows


@pytest.mark.parametrize(("rows", "data", "fsdp"), _CASES)
def test_sums_of_an_update_are_those_of_the_whole_batch_in_numpy(
  make_config, make_params, trained, monkeypatch, rows, data, fsdp
):
  """For any microbatch and mesh: what is logged, and the gradient."""
  cfg = make_config(ffn="halves", ffn_kwargs=(("weight", 0.5),), z_loss=0.01)
  params, model, tx = make_params(cfg), Transformer(cfg), optax.sgd(1.0)
  objective = objectives.Chosen()
  step = update.make_train_step(
    update.Loss(
      lambda p, rows: objective.loss_sums(model, p, rows),
      lambda tokens: objective.count(cfg, tokens),
      cfg.z_loss,
    ),
    optax.with_extra_args_support(tx),
    lambda _: 1.0,
  )
  mesh = jax.make_mesh(
    (data, fsdp, 1),
    ("data", "fsdp", "tensor"),
    devices=jax.devices()[: data * fsdp],
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  spec = jax.sharding.PartitionSpec(None, ("data", "fsdp"))
  count = len(trained) // rows
  buffer = jax.tree.map(
    lambda x: np.asarray(x).reshape(count, rows, *x.shape[1:]), batch(trained)
  )
  with jax.set_mesh(mesh):
    buffer = jax.device_put(buffer, jax.sharding.NamedSharding(mesh, spec))
    begin = state.init_state(params, tx)
    after, metrics = jax.jit(step)(begin, buffer, np.int32(count))
  numpy = _Numpy(monkeypatch)
  exact = _float64(params)
  _, loss, count = numpy.objective(exact, trained, cfg, 0.5, cfg.z_loss)
  np.testing.assert_allclose(metrics["train/loss"], loss / count, rtol=1e-5)
  np.testing.assert_allclose(
    metrics["train/ffn/loss"], 0.5 * numpy.squares / count, rtol=1e-5
  )
  logged = [metrics[f"train/ffn/positive/{i}"] for i in range(cfg.D)]
  np.testing.assert_allclose(logged, numpy.positive / count, rtol=1e-6)

  # The slope of NumPy's objective along one direction, by differences.
  ours = jax.tree.map(
    lambda a, b: np.float64(a) - np.float64(b), after.params, params
  )
  direction = jax.tree.map(lambda x: 1e-4 * np.cos(7 * np.float64(x)), exact)

  def along(sign):
    moved = jax.tree.map(lambda p, d: p + sign * d, exact, direction)
    return numpy.objective(moved, trained, cfg, 0.5, cfg.z_loss)[0]

  slope = (along(1) - along(-1)) / 2
  products = jax.tree.map(lambda g, d: np.vdot(-g, d), ours, direction)
  assert sum(jax.tree.leaves(products)) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_a_mixer_is_numpys_and_decodes_from_its_own_cache(
  make_config, make_params, rows, monkeypatch, layers
):
  cfg = make_config(mixer="mean", layers=layers, positions="none")
  params, model = make_params(cfg), Transformer(cfg)
  monkeypatch.setattr(
    oracle,
    "_attention",
    lambda w, x, *_: (
      np.cumsum(x, 0) / np.arange(1, len(x) + 1)[:, None] @ w["w"]
    ),
  )
  wanted = oracle.forward(_float64(params), rows, cfg)
  cache, parts = init_cache(cfg, len(rows), rows.shape[1]), []
  for piece in np.split(rows, [6, 7, 8], axis=1):
    logits, cache = model.apply(
      {"params": params}, piece, cache, method="decode"
    )
    parts.append(logits)
  np.testing.assert_allclose(
    np.concatenate(parts, 1), wanted, rtol=1e-4, atol=1e-4
  )
  _, sums = model.apply({"params": params}, rows, method="hidden")
  assert float(sums["mixer/tokens"]) == cfg.N * rows.size


# --- Sizes -------------------------------------------------------------------


def test_sizes_of_a_part_by_hand(make_config):
  cfg = make_config(D=8, N=3, H=2, G=2, F=20, V=64, L=6, ffn="halves")
  layer = 4 * 8 * 8 + 2 * 8 * 20
  counts = param_table.count_params(cfg)
  assert counts.body == 3 * (layer + 2 * 8) + 8
  assert counts.total == counts.body + 64 * 8
  assert counts.active == counts.total - 3 * 8 * 20
  sizes = [x.size for x in jax.tree.leaves(param_table.param_specs(cfg))]
  assert sum(sizes) == counts.total
  met = 4 * 8 * 8 + 8 * 20
  beyond = 4 * 6 * 8 + 7  # Scores and values; what the part says.
  found = flops.forward_flops_per_token(cfg, causal_half=False)
  assert found == 3 * (2 * met + beyond) + 2 * 8 * 64
  plain = param_table.count_params(dataclasses.replace(cfg, ffn="dense"))
  assert plain.active == plain.total == counts.total


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_experts_are_a_stack_of_matrices(make_config, layers):
  cfg = make_config(ffn="halves", layers=layers)
  layouts = param_table.matrix_layouts(param_table.param_specs(cfg))
  if layers == "scan":
    found, wanted = layouts["blocks"]["mlp"]["in"], ((0, 1), (2,), (3,))
  else:
    found, wanted = layouts["blocks"]["0"]["mlp"]["in"], ((0,), (1,), (2,))
  assert found == wanted


def test_a_stack_may_be_any_axis():
  spec = ParamSpec(
    (3, 4, 2, 5), ("mlp", "layers", "experts", "embed"), "", (3,)
  )
  (found,) = param_table.matrix_layouts([spec])
  assert found == ((1, 2), (3,), (0,))


def test_activations_of_a_wider_part_are_split_over_tensor(make_config):
  """Of D = 16: 4 heads and F = 24 are split, a part of neither is not."""
  cfg = make_config(mixer="mean", positions="none")
  assert memory._is_split(cfg, (2, 12, 24))
  assert not memory._is_split(cfg, (2, 12, 4, 4))
  assert memory._is_split(dataclasses.replace(cfg, mixer="softmax"), (2, 4, 3))


# --- Products ----------------------------------------------------------------

_NAMES = {
  "attention.q", "attention.k", "attention.v", "attention.out",
  "attention.scores", "attention.values", "ffn.in", "ffn.gate", "ffn.out",
  "head",
}  # fmt: skip


def _logits(cfg, params, rows):
  return jax.jit(Transformer(cfg).apply)({"params": params}, rows[:, :-1])


@pytest.mark.parametrize("tied", [True, False])
def test_every_product_has_a_name(
  make_config, make_params, rows, monkeypatch, tied
):
  """With a product that multiplies nothing, no product is left."""
  met = set()

  def nothing(name, equation, x, w, out_dtype, cfg):
    met.add(name)
    shape = jax.eval_shape(lambda *a: jnp.einsum(equation, *a), x, w).shape
    return jnp.zeros(shape, out_dtype)

  monkeypatch.setitem(PRODUCTS, "nothing", Product(nothing))
  cfg = make_config(mlp="swiglu", tied=tied, product="nothing")
  params = make_params(cfg)
  jaxpr = str(jax.make_jaxpr(lambda p: _logits(cfg, p, rows))(params))
  assert "dot_general" not in jaxpr
  assert "product" not in jaxpr
  assert met == _NAMES
  plain = dataclasses.replace(cfg, product="plain")
  assert "product" in str(
    jax.make_jaxpr(lambda p: _logits(plain, p, rows))(params)
  )
  mesh = jax.make_mesh(
    (1, 1, 2),
    ("data", "fsdp", "tensor"),
    devices=jax.devices()[:2],
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  with jax.set_mesh(mesh):  # Here the look-up is a product, too.
    jaxpr = str(jax.make_jaxpr(lambda p: _logits(cfg, p, rows))(params))
  assert "dot_general" not in jaxpr
  assert met == _NAMES | {"embed"}


def test_a_product_is_chosen_by_name(
  make_config, make_params, rows, monkeypatch
):
  """Halving the products with matrices is halving the matrices."""

  def halve(name, equation, x, w, out_dtype, context):
    y = jnp.einsum(equation, x, w, preferred_element_type=out_dtype)
    weighs = name not in ("attention.scores", "attention.values", "head")
    kwargs = dict(context.cfg.product_kwargs)
    return y / 2 if weighs or kwargs.get("head") else y

  monkeypatch.setitem(PRODUCTS, "halve", Product(halve))
  cfg = make_config(tied=False, mlp="swiglu")
  params = make_params(cfg)
  halved = jax.tree.map_with_path(
    lambda path, x: (
      x / 2 if x.ndim > 1 and path[0].key not in ("embed", "head") else x
    ),
    params,
  )
  np.testing.assert_allclose(
    _logits(dataclasses.replace(cfg, product="halve"), params, rows),
    _logits(cfg, halved, rows),
    rtol=1e-5,
    atol=1e-5,
  )


# --- What is refused ---------------------------------------------------------


def test_every_problem_is_told_at_once(tiny):
  config = tiny.config(
    model__ffn="haves",
    model__mixer="softmx",
    model__product="plane",
    optim__name="adamv",
  )
  found = "\n".join(build.problems(config))
  for text in (
    "config.model.ffn='haves' is not one of dense, halves. Did you mean "
    "'halves'?",
    "config.model.mixer='softmx'",
    "Did you mean 'softmax'?",
    "Did you mean 'plain'?",
    "config.optim.name='adamv'",
  ):
    assert text in found


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (
      {"ffn": "halves", "ffn_kwargs": {"waight": 1.0}},
      ["config.model.ffn_kwargs.waight", "'weight'?", "Known: weight."],
    ),
    (
      {"ffn": "halves", "ffn_kwargs": {"weight": "x"}},
      ["config.model.ffn_kwargs.weight='x' is str, expected float"],
    ),
    (
      {"ffn_kwargs": {"weight": 1.0}},
      ["config.model.ffn_kwargs.weight", "There are none."],
    ),
    ({"ffn": "halves", "F": 65}, ["config.model.F=65 must be even"]),
    ({"mixer_kwargs": {"a": 1}}, ["config.model.mixer_kwargs.a"]),
    ({"product_kwargs": {"a": 1}}, ["config.model.product_kwargs.a"]),
    ({"mlp": "geglu"}, ["config.model.mlp='geglu'", "swiglu"]),
  ],
)
def test_an_entry_declares_its_keys(tiny, changes, words):
  config = tiny.config(**{f"model__{k}": v for k, v in changes.items()})
  (problem,) = seams.problems(config.model)
  for word in words:
    assert word in problem
  assert problem in build.problems(config)


def test_a_fused_kernel_would_not_use_the_product(tiny, monkeypatch):
  monkeypatch.setitem(PRODUCTS, "other", Product(lambda *_: jnp.zeros(())))
  config = tiny.config(model__attention="splash", model__product="other")
  (problem,) = seams.problems(config.model)
  assert "config.model.attention='splash'" in problem


def test_keys_of_an_entry_survive_storing(tiny):
  from lm.config import load

  kwargs = {"weight": 0.5, "sizes": [1, [2, 3]]}
  config = tiny.config(model__ffn="halves", model__ffn_kwargs=kwargs)
  assert config.model.ffn_kwargs == (("sizes", (1, (2, 3))), ("weight", 0.5))
  assert load.from_dict(load.to_dict(config)) == config
  assert hash(config.model)
  old = load.to_dict(config)
  for key in [k for k in old["model"] if "ffn" in k or "mixer" in k]:
    del old["model"][key]  # As runs of earlier code have it.
  assert load.from_dict(old).model.ffn == "dense"


def test_gauss_newton_refuses_losses_of_layers(tiny):
  config = tiny.config(
    model__ffn="halves",
    optim__name="gauss_newton",
    optim__kwargs={},
    gauss_newton__inner_steps=2,
    schedule__name="constant",
    schedule__warmup=0.0,
    data__batch_size=24,
    train__microbatch_size=8,
  )
  config = build.resolve(config, build.find_data(config))
  model = Transformer(config.model)
  params = param_table.init_params(config.model, jax.random.key(0))
  rows = jnp.ones((8, 33), jnp.int32)
  with pytest.raises(ConfigError, match="adds ffn/loss.*ffn='halves'"):
    jax.eval_shape(newton.model_fn(model, config).body_fn, params, batch(rows))
  whole = newton.model_fn(model, config, lambda params: params)
  with pytest.raises(ConfigError, match="adds ffn/loss"):
    jax.eval_shape(whole, params, batch(rows))
