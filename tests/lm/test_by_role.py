"""`config.optim.by_role`: another optimiser for some roles of parameters."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim
from lm.config import load
from lm.methods import plain, schedule
from lm.model import params as param_table
from lm.step import build, state
from ml_collections_configs import base

_SPECS = {
  "embed": param_table.ParamSpec((6, 4), ("vocab", "embed"), "input", (1,)),
  "in": param_table.ParamSpec((4, 8), ("embed", "mlp"), "hidden", (0,)),
  "out": param_table.ParamSpec((8, 4), ("mlp", "embed"), "hidden", (0,)),
  "gain": param_table.ParamSpec((4,), ("gain",), "gain"),
}


def _config_dict(by_role, name="adamw", **kwargs):
  c = base.get_config()
  c.optim.name, c.optim.kwargs, c.optim.by_role = name, kwargs, by_role
  c.train.num_steps, c.train.num_tokens = 20, 0
  return c


def _config(by_role, name="adamw", **kwargs):
  return load.from_config_dict(
    _config_dict(by_role, name, **kwargs), build.problems
  )


def _random(seed):
  rng = np.random.default_rng(seed)
  return {
    name: jnp.asarray(rng.standard_normal(spec.shape), jnp.float32)
    for name, spec in _SPECS.items()
  }


def _walk(tx, params, names):
  """Updates of three gradients, of some of the parameters."""
  params = {name: params[name] for name in names}
  opt_state, found = tx.init(params), []
  for step in range(3):
    grads = {name: _random(step)[name] for name in names}
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    found.append(updates)
  return found


@pytest.mark.parametrize("method", ["muon", "soap"])
def test_two_optimisers_are_two_transforms_side_by_side(method):
  """Each made by hand, for its own leaves alone."""
  config = _config(
    {"hidden": {"name": method, "learning_rate": 0.02}},
    b1=0.8, weight_decay=0.1,
  )  # fmt: skip
  tx = plain.make(config, None, _SPECS)
  params = _random(9)
  found = _walk(tx, params, list(_SPECS))
  peak, shared = config.optim.learning_rate, schedule.learning_rate(config)
  hidden = ("in", "out")
  numbers = {name: optim.DimensionNumbers(((0,), (1,)), ()) for name in hidden}
  matrices = getattr(optim, method)(
    lambda n: 0.02 / peak * shared(n), dimension_numbers=numbers
  )
  rest = optax.adamw(
    shared, b1=0.8, weight_decay=0.1, mask={"embed": True, "gain": False}
  )
  for names, by_hand in ((hidden, matrices), (("embed", "gain"), rest)):
    wanted = _walk(by_hand, params, names)
    for a, b in zip(found, wanted, strict=True):
      for name in names:
        np.testing.assert_allclose(a[name], b[name], rtol=2e-6, atol=1e-9)


def _parts(tiny, **changes):
  config = tiny.config(**changes, mesh__data=1)
  config = build.resolve(config, build.find_data(config))
  return build.build(config, jax.devices()[:1])


def _trained(tiny, **changes):
  parts = _parts(tiny, **changes)
  with jax.set_mesh(parts.mesh):
    now = build.init_state(parts)
    train_step = build.compile_step(parts)
    rng = np.random.default_rng(0)
    for _ in range(3):
      rows = rng.integers(3, 90, parts.buffer_shape).astype(np.int32)
      now, _ = train_step(now, build.put_buffer(parts, rows), np.int32(1))
  return now


def test_one_optimiser_for_every_role_is_that_optimiser(tiny):
  """Bit by bit, clipping and decay included."""
  alone = _trained(tiny, optim__learning_rate=0.01)
  every = {role: {"name": "adamw"} for role in plain.ROLES}
  split = _trained(tiny, optim__learning_rate=0.01, optim__by_role=every)
  assert state.digest(split.params) == state.digest(alone.params)


def test_two_that_are_the_same_have_the_bits_of_one():
  """Not compiled, where a fusion may round otherwise."""
  shared = {"b1": 0.8, "weight_decay": 0.1}
  split = _config(
    {"hidden": {"kwargs": shared | {"eps_root": 0.0}}, "gain": {}}, **shared
  )
  txs = [plain.make(c, None, _SPECS) for c in (split, _config({}, **shared))]
  states = [tx.init(_random(9)) for tx in txs]
  assert jax.tree.structure(states[0]) != jax.tree.structure(states[1])
  a, b = (_walk(tx, _random(9), list(_SPECS)) for tx in txs)
  assert state.digest(a) == state.digest(b)


def test_a_role_can_stand_still(tiny):
  now = _trained(tiny, optim__by_role={"hidden": {"learning_rate": 0.0}})
  begin = build.init_state(_parts(tiny)).params
  same = jax.tree.map(lambda a, b: bool((a == b).all()), now.params, begin)
  assert same["blocks"]["0"]["mlp"]["in"]
  assert same["blocks"]["0"]["attention"]["q"]
  assert not same["embed"]["table"]
  assert not same["blocks"]["0"]["norm1"]["gain"]


def test_moments_of_a_role_lie_as_its_weights_do(tiny):
  config = tiny.config(
    optim__by_role={"hidden": {"name": "lion"}}, model__D=64, model__F=128,
    mesh__data=4, mesh__fsdp=2,
  )  # fmt: skip
  parts = build.build(build.resolve(config, build.find_data(config)))
  for tree in (parts.shardings.opt_state,):
    lies = [
      lie.spec
      for path, lie in jax.tree_util.tree_leaves_with_path(tree)
      if jax.tree_util.keystr(path).endswith("['0']['mlp']['in']")
    ]
    assert len(lies) == 1  # Lion has one moment, and AdamW none of this leaf.
    assert lies[0] == parts.shardings.params["blocks"]["0"]["mlp"]["in"].spec


def test_what_is_left_out_is_that_of_the_rest():
  config = _config(
    {"gain": {}, "hidden": {"name": "lion"}, "input": {"learning_rate": 1.0}},
    b1=0.7,
  )  # fmt: skip
  found = plain.choices(config)
  assert found["gain"][:3] == found["rest"][:3]
  assert dict(found["hidden"].kwargs) == {}
  assert dict(found["input"].kwargs) == {"b1": 0.7}
  assert found["input"].learning_rate == 1.0


def test_it_survives_json():
  config = _config({"hidden": {"name": "muon", "kwargs": {"beta": 0.9}}})
  plain_ = json.loads(json.dumps(load.to_dict(config)))
  assert plain_["optim"]["by_role"]["hidden"]["kwargs"] == {"beta": 0.9}
  assert load.from_dict(plain_) == config


@pytest.mark.parametrize(
  ("by_role", "words"),
  [
    ({"hiddens": {"name": "muon"}}, "'hiddens'.*Did you mean 'hidden'"),
    ({"hidden": "muon"}, r"by_role.hidden='muon' must be a section"),
    (
      {"hidden": {"names": "muon"}},
      r"by_role.hidden.names .*Did you mean 'name'",
    ),
    ({"hidden": {"name": "muom"}}, r"hidden.name='muom'.*Did you mean 'muon'"),
    ({"gain": {"learning_rate": -1.0}}, r"gain.learning_rate=-1.0"),
    ({"gain": {"learning_rate": "fast"}}, r"gain.learning_rate='fast'"),
    (
      {"hidden": {"name": "muon", "kwargs": {"beat": 0.9}}},
      r"by_role.hidden.kwargs.beat is not an argument of muon.*'beta'",
    ),
    ({"hidden": {"name": "gauss_newton"}}, "nor that of a role"),
  ],
)
def test_what_is_refused(by_role, words):
  with pytest.raises(ValueError, match=words):
    _config(by_role)


def test_other_methods_refuse_it(tiny):
  c = _config_dict({"hidden": {"name": "lion"}}, "gauss_newton")
  with pytest.raises(ValueError, match="by_role is not for gauss_newton"):
    load.from_config_dict(c, build.problems)
