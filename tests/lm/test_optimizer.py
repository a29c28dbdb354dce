"""Optimisers by name: found, checked by signature, and masked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

import optim
from lm.config import load
from lm.methods import factories, optimizer
from lm.model import params as param_table
from lm.step import build
from ml_collections_configs import base

_PARAMS = {"kernel": jnp.ones((4, 4)), "gain": jnp.ones(4)}
_SPECS = {
  "kernel": param_table.ParamSpec((4, 4), ("embed", "mlp"), "hidden", (0,)),
  "gain": param_table.ParamSpec((4,), ("gain",), "gain"),
}


def _config(name, decay="matrices", **kwargs):
  c = base.get_config()
  c.optim.name, c.optim.decay = name, decay
  c.optim.kwargs = kwargs
  return load.from_config_dict(c)


def _make(config):
  choice = optimizer.of_config(config)
  return optimizer.make(config, choice, lambda count: 0.1, _SPECS)


# Factories that need more than a learning rate, or refuse a schedule.
_NEED_MORE = {
  "descend", "dpsgd", "on_sphere", "primal_averaging", "schedule_free",
}  # fmt: skip
_REFUSE = {"optimistic_adam", "rprop", "sm3"}


@pytest.mark.filterwarnings("ignore:Specifying a key:UserWarning")
@pytest.mark.parametrize(
  "name", sorted(set(factories.names()) - _NEED_MORE - _REFUSE)
)
def test_every_optimiser_of_optax_and_optim_makes_an_update(name):
  config = _config(name)
  assert build.problems(config) == []
  if name in ("lbfgs", "sophia"):  # They want the loss function itself.
    with pytest.raises(ValueError, match=f"was refused by {name}"):
      _make(config)
    return
  tx = _make(config)
  loss = jnp.float32(1.0)
  extra = {"value": loss}
  if name == "sophia_g":  # From `lm/methods/sophia.py`.
    extra["estimate"] = _PARAMS
  updates, _ = tx.update(_PARAMS, tx.init(_PARAMS), _PARAMS, **extra)
  assert jax.tree.structure(updates) == jax.tree.structure(_PARAMS)


def test_a_module_before_the_name_tells_two_factories_apart():
  assert factories.find("muon") is optim.muon
  assert factories.find("optax.contrib.muon") is optax.contrib.muon
  for name in ("numpy.muon", "optax.muon", "optax.lotion_adamw"):
    with pytest.raises(ValueError, match="is not in optim, optax or"):
      factories.find(name)


@pytest.mark.parametrize("name", sorted(_NEED_MORE))
def test_a_missing_argument_is_named(name):
  assert any("is missing" in p for p in build.problems(_config(name)))


def test_a_direction_is_a_section_of_a_name_and_arguments():
  base = {"name": "scale_by_muon", "kwargs": {"beta": 0.5, "ns_steps": 2}}
  config = _config("primal_averaging", base=base, eval_interp=0.9)
  assert build.problems(config) == []
  tx = _make(config)
  numbers = {"kernel": optim.DimensionNumbers(), "gain": None}
  muon = optim.scale_by_muon(0.5, ns_steps=2, dimension_numbers=numbers)
  same = optim.primal_averaging(
    muon,
    lambda count: 0.1,
    eval_interp=0.9,
    mask={"kernel": True, "gain": False},
  )
  kernel = {"kernel": jnp.tri(4), "gain": jnp.ones(4)}
  updates = tx.update(kernel, tx.init(_PARAMS), _PARAMS)
  wanted = same.update(kernel, same.init(_PARAMS), _PARAMS)
  jax.tree.map(np.testing.assert_array_equal, updates, wanted)


def test_a_decay_is_a_section_of_its_arguments():
  decay = {"weight_decay": 0.1, "cautious": True}
  tx = _make(_config("muon", weight_decay=decay))
  same = optim.muon(
    lambda count: 0.1,
    weight_decay=optim.Decay(0.1, cautious=True),
    mask={"kernel": True, "gain": False},
  )
  grads = {"kernel": jnp.tri(4) - 0.5, "gain": jnp.ones(4)}
  updates = tx.update(grads, tx.init(_PARAMS), _PARAMS)
  wanted = same.update(grads, same.init(_PARAMS), _PARAMS)
  jax.tree.map(np.testing.assert_array_equal, updates[0], wanted[0])
  with pytest.raises(ValueError, match="was refused by muon"):
    _make(_config("muon", weight_decay={"weight_decay": 0.1, "careful": True}))


@pytest.mark.parametrize(
  ("base", "message"),
  [
    ("scale_by_muon", "must be a section of a name and kwargs"),
    ({"kwargs": {}}, "must be a section of a name and kwargs"),
    ({"name": "muon"}, "kwargs.base.name='muon' is no direction"),
    (
      {"name": "scale_by_muon", "kwargs": {"bata": 0.5}},
      "kwargs.base.kwargs.bata is not an argument of scale_by_muon. Did you "
      "mean 'beta'?",
    ),
  ],
)
def test_what_is_wrong_with_a_direction_is_said(base, message):
  problems = build.problems(_config("primal_averaging", base=base))
  assert len(problems) == 1
  assert message in problems[0]


@pytest.mark.parametrize("name", sorted(_REFUSE))
def test_a_refused_value_is_an_error_of_ours(name):
  config = _config(name)
  with pytest.raises(ValueError, match="config.optim.kwargs"):
    _make(config)


@pytest.mark.parametrize(("decay", "expected"), [("matrices", 0), ("all", 1)])
def test_only_matrices_decay_unless_told(decay, expected):
  config = _config("adamw", decay, weight_decay=1.0)
  tx = _make(config)
  zeros = jax.tree.map(jnp.zeros_like, _PARAMS)
  updates, _ = tx.update(zeros, tx.init(_PARAMS), _PARAMS)
  np.testing.assert_allclose(updates["kernel"], -0.1)
  np.testing.assert_allclose(updates["gain"], -0.1 * expected)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
@pytest.mark.parametrize("name", ["soap", "shampoo", "muon"])
def test_matrix_methods_are_told_the_axes(tiny, name, layers):
  """Their leaves [layers, embed, heads, channels] would be refused else."""
  config = tiny.config(optim__name=name, optim__kwargs={}, model__layers=layers)
  parts = build.build(
    build.resolve(config, build.find_data(config)), jax.devices()[:1]
  )
  table = optimizer._dimension_numbers(
    parts.specs, optimizer._ours, "elementwise"
  )
  blocks = table["blocks"] if layers == "scan" else table["blocks"]["0"]
  first = 1 if layers == "scan" else 0
  assert blocks["attention"]["out"].side_axes == (
    (first, first + 1),
    (first + 2,),
  )
  assert blocks["norm1"]["gain"] is None
  assert table["embed"]["table"] is None


@pytest.mark.parametrize(("tied", "head"), [(True, "embed"), (False, "head")])
def test_adalayer_is_told_the_roles_and_the_stacks(tiny, tied, head):
  """No second moment is shared by two layers; each word of the head has one."""
  config = tiny.config(
    optim__name="adalayer",
    optim__kwargs={},
    model__layers="scan",
    model__tied=tied,
  )
  config = build.resolve(config, build.find_data(config))
  specs = param_table.param_specs(config.model)
  tx = optimizer.make(
    config, optimizer.of_config(config), lambda count: 0.1, specs
  )
  state, _ = jax.eval_shape(tx.init, param_table.abstract(specs))
  moments = param_table.by_path(state.nu)
  assert {path.split("/")[0] for path in moments} >= {"blocks", head}
  sizes = dict(blocks=(config.model.N,)) | {head: (config.model.V,)}
  for path, leaf in moments.items():
    assert leaf.shape == sizes.get(path.split("/")[0], ()), path


def test_embedding_and_head_can_have_a_factor_on_the_width(tiny):
  config = tiny.config(
    optim__name="soap", optim__kwargs={}, optim__embeddings="one_sided",
    model__tied=False,
  )  # fmt: skip
  parts = build.build(
    build.resolve(config, build.find_data(config)), jax.devices()[:1]
  )
  table = optimizer._dimension_numbers(
    parts.specs, optimizer._ours, "one_sided"
  )
  assert table["embed"]["table"].precondition == (1,)
  assert table["head"]["kernel"].precondition == (0,)
  for leaf in ("embed/table", "head/kernel"):
    side, name = parts.specs, leaf.split("/")
    axes = side[name[0]][name[1]].axes
    (factor,) = table[name[0]][name[1]].precondition
    assert axes[factor] == "embed"
  # Their moments are in stacks now, not with the leaves of Adam.
  moments = parts.abstract_state.opt_state[0].inner.mu
  vocabulary = parts.config.model.V
  assert any(vocabulary in leaf.shape for leaf in moments.stacks.values())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_methods_with_factors_have_one_sided_embeddings(name):
  c = base.get_config()
  c.optim.name, c.optim.kwargs = name, {}
  c.optim.embeddings = "one_sided"
  config = load.from_config_dict(c)
  (problem,) = build.problems(config)
  assert "config.optim.embeddings" in problem
  assert "elementwise" in problem


def test_the_health_of_the_factors_is_logged(tiny):
  config = tiny.config(optim__name="soap", optim__kwargs={})
  config = build.resolve(config, build.find_data(config))
  parts = build.build(config, jax.devices()[:1])
  with jax.set_mesh(parts.mesh):
    now = build.init_state(parts)
    counts = optimizer.metrics(now.opt_state)
  assert counts == {"optim/refresh_failures": 0, "optim/rejected_gradients": 0}
  adam = _make(_config("adamw"))
  assert optimizer.metrics(adam.init(_PARAMS)) == {}
