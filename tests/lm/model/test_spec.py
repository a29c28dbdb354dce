"""The parameter table: counts, initial values, layouts, masks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lm.model import params as param_table
from lm.model.transformer import Transformer

OLMO = dict(qk_norm="full", tied=False, V=32128)
CBS = OLMO | dict(V=50304)
GN = OLMO | dict(norm="rmsnorm", qk_norm_bias=True, mlp="gelu")
# (D, N, H, F), other options, body, embedding and head in total.
PRESETS = {
  "olmo150m": ((1024, 12, 16, 4096), OLMO, 151_045_120, 65_798_144),
  "olmo150m_6": ((1408, 6, 22, 5632), OLMO, 142_772_608, 90_472_448),
  "olmo300m": ((1024, 24, 16, 4096), OLMO, 302_089_216, 65_798_144),
  "olmo300m_12": ((1440, 12, 16, 5760), OLMO, 298_668_960, 92_528_640),
  "olmo300m_6": ((2048, 6, 32, 8192), OLMO, 302_041_088, 131_596_288),
  "cbs85m": ((768, 12, 12, 3072), CBS, 84_972_288, 77_266_944),
  "cbs151m": ((1024, 12, 16, 4096), CBS, 151_045_120, 103_022_592),
  "cbs302m": ((1024, 24, 16, 4096), CBS, 302_089_216, 103_022_592),
  "cbs604m": ((2048, 12, 16, 8192), CBS, 604_080_128, 206_045_184),
  "cbs1b2": ((2048, 24, 32, 8192), CBS, 1_208_158_208, 206_045_184),
  "gn45m": ((512, 4, 8, 2048), GN, 12_595_712, 32_899_072),
  "gn150m": ((768, 12, 16, 3072), GN, 84_990_720, 49_348_608),
  "nanodo": (
    (512, 6, 8, 2048),
    dict(V=32000, tied=True, positions="learned", L=512),
    18_881_024,
    16_384_000 + 512 * 512,
  ),
}


def _options(name):
  (d, n, h, f), options, *_ = PRESETS[name]
  return dict(D=d, N=n, H=h, G=h, F=f, real_V=options["V"]) | options


@pytest.mark.parametrize("layers", ["scan", "unroll"])
@pytest.mark.parametrize("name", PRESETS)
def test_counts_of_the_presets(make_config, name, layers):
  (d, n, _, f), options, body, outside = PRESETS[name]
  cfg = make_config(**_options(name), layers=layers)
  counts = param_table.count_params(cfg)
  assert counts.body == body
  assert counts.embedding + counts.head == outside
  assert counts.total == body + outside
  # The formula of MHA: 4 D^2 + 2 D F, gains of 2 norms and of q and k.
  norms = 2 * d + (0 if name == "nanodo" else 2 * d)
  biases = 2 * d if "qk_norm_bias" in options else 0
  assert body == n * (4 * d * d + 2 * d * f + norms + biases) + d


def test_counts_of_grouped_and_gated(make_config):
  cfg = make_config(G=2, mlp="swiglu", qk_norm="head", norm_bias=True)
  d, n, g, f, k = cfg.D, cfg.N, cfg.G, cfg.F, cfg.K
  layer = 2 * d * d + 2 * d * g * k + 3 * d * f + 4 * d + 2 * k
  assert param_table.count_params(cfg).body == n * layer + 2 * d
  sizes = [x.size for x in jax.tree.leaves(param_table.init_params(cfg, _KEY))]
  assert sum(sizes) == param_table.count_params(cfg).total


_KEY = jax.random.key(0)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
@pytest.mark.parametrize("tied", [True, False])
def test_table_is_what_the_modules_declare(make_config, layers, tied):
  cfg = make_config(
    layers=layers, tied=tied, positions="learned", qk_norm="full", mlp="swiglu"
  )
  tokens = jnp.zeros((1, cfg.L), jnp.int32)
  declared = jax.eval_shape(Transformer(cfg).init, _KEY, tokens)["params"]
  table = jax.tree.map(lambda s: s.shape, param_table.param_specs(cfg))
  assert jax.tree.map(lambda x: x.shape, declared) == table


def test_values_of_init_itself_are_unusable(make_config):
  tokens = jnp.zeros((1, 4), jnp.int32)
  params = Transformer(make_config()).init(_KEY, tokens)["params"]
  assert all(np.isnan(x).all() for x in jax.tree.leaves(params))


def test_both_layouts_start_from_the_same_bits(make_config):
  cfg = make_config(N=3, qk_norm="full", tied=False)
  unrolled = param_table.init_params(cfg, _KEY)
  stacked = param_table.init_params(
    dataclasses.replace(cfg, layers="scan"), _KEY
  )
  _assert_equal(param_table.stack_layers(unrolled), stacked)
  _assert_equal(param_table.unstack_layers(stacked), unrolled)
  _assert_equal(param_table.to_layout(unrolled, "unroll"), unrolled)
  _assert_equal(param_table.to_layout(unrolled, "scan"), stacked)
  blocks = unrolled["blocks"]
  assert not np.array_equal(
    blocks["0"]["attention"]["q"], blocks["1"]["attention"]["q"]
  )


def _assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  assert all(
    np.array_equal(x, y)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_init_depends_on_key_and_leaf(make_config):
  params = param_table.init_params(make_config(), _KEY)
  other = param_table.init_params(make_config(), jax.random.key(1))
  q, k = (params["blocks"]["0"]["attention"][n] for n in "qk")
  assert not np.array_equal(q, k)
  assert not np.array_equal(q, other["blocks"]["0"]["attention"]["q"])


def test_stacked_init_is_as_long_for_any_depth(make_config):
  def length(n):
    cfg = make_config(N=n, layers="scan")
    init = jax.make_jaxpr(lambda key: param_table.init_params(cfg, key))
    return len(str(init(_KEY)).splitlines())

  assert length(2) == length(40)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
@pytest.mark.parametrize("cut", [0.0, 2.0, 3.0])
@pytest.mark.parametrize("scheme", ["mitchell", "fan_in", "megatron"])
def test_deviations(make_config, scheme, cut, layers):
  d, f, n = 64, 160, 3
  cfg = make_config(
    D=d, F=f, N=n, H=4, G=4, V=512, real_V=512, tied=False, mlp="swiglu",
    init=scheme, init_cut=cut, init_std=0.05, layers=layers, norm_bias=True,
  )  # fmt: skip
  params = param_table.unstack_layers(param_table.init_params(cfg, _KEY))
  into, out = {
    "mitchell": (d**-0.5, lambda fan, i: (2 * fan * (i + 1)) ** -0.5),
    "fan_in": (d**-0.5, lambda fan, i: fan**-0.5),
    "megatron": (0.05, lambda fan, i: 0.05 / math.sqrt(2 * n)),
  }[scheme]
  expected = [
    (params["embed"]["table"], into),
    (params["head"]["kernel"], into),
  ]
  for i in range(n):
    w = params["blocks"][str(i)]
    expected += [(w["attention"][name], into) for name in "qkv"]
    expected += [(w["mlp"]["in"], into), (w["mlp"]["gate"], into)]
    expected += [
      (w["attention"]["out"], out(d, i)),
      (w["mlp"]["out"], out(f, i)),
    ]
    np.testing.assert_array_equal(w["norm1"]["gain"], 1)
    np.testing.assert_array_equal(w["norm1"]["bias"], 0)
  factor = stats.truncnorm(-cut, cut).std() if cut else 1.0
  for x, std in expected:
    # 4.5 standard errors of a deviation estimated from x.size values.
    tolerance = 4.5 / math.sqrt(2 * x.size)
    measured = float(jnp.std(x)) / (std * factor)
    assert measured == pytest.approx(1, abs=tolerance)
    if cut:
      assert float(jnp.max(jnp.abs(x))) <= cut * std * (1 + 1e-6)


def test_embedding_deviation_can_be_set(make_config):
  cfg = make_config(V=2048, embed_init_std=1.0, init_cut=0.0)
  table = param_table.init_params(cfg, _KEY)["embed"]["table"]
  assert float(jnp.std(table)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_matrices_decay_and_vectors_do_not(make_config, layers):
  cfg = make_config(layers=layers, qk_norm="full", norm_bias=True, tied=False)
  specs = param_table.param_specs(cfg)
  names = {
    path[-1].key: decays
    for path, decays in jax.tree_util.tree_leaves_with_path(
      param_table.decay_mask(specs)
    )
  }
  assert names.pop("gain") is False
  assert names.pop("bias") is False
  assert set(names) == {"table", "kernel", "q", "k", "v", "out", "in"}
  assert all(names.values())


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_every_axis_has_one_place_in_the_matrix_layout(make_config, layers):
  cfg = make_config(layers=layers, qk_norm="full", positions="learned")
  specs = param_table.param_specs(cfg)
  layouts = param_table.matrix_layouts(specs)
  shift = 1 if layers == "scan" else 0
  for s, layout in zip(
    jax.tree.leaves(specs),
    jax.tree.leaves(
      layouts, is_leaf=lambda x: isinstance(x, param_table.MatrixLayout)
    ),
    strict=True,
  ):
    assert sorted(sum(layout, ())) == list(range(len(s.shape)))
    assert len(s.axes) == len(s.shape)
  blocks = layouts["blocks"] if shift else layouts["blocks"]["0"]
  out = blocks["attention"]["out"]
  assert (out.inputs, out.outputs) == ((shift, 1 + shift), (2 + shift,))
  assert blocks["attention"]["q"].outputs == (1 + shift, 2 + shift)


def test_unknown_scheme_is_named(make_config):
  with pytest.raises(ValueError, match="config.model.init='xavier'.*mitchell"):
    param_table.param_specs(make_config(init="xavier"))
