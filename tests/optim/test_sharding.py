"""Eight fake devices: the same numbers, and no more traffic than needed."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optim

AXES, SHARDS = ("data", "fsdp"), 8
STACK = optim.DimensionNumbers(sides=(1, 2), stack=0)
# Six layers on eight devices: two zero matrices pad each stack.
SHAPES = dict(wq=(6, 16, 12), wo=(6, 12, 16), embed=(64, 16), gain=(16,))
EVEN = SHAPES | dict(wq=(8, 16, 12), wo=(8, 12, 16))
SPECS = dict(
  wq=P(None, "fsdp"), wo=P(None, None, "fsdp"), embed=P(None, "fsdp"), gain=P()
)
DIMENSIONS = dict(
  wq=STACK,
  wo=STACK,
  embed=optim.DimensionNumbers(),
  gain=None,
)
COLLECTIVE = re.compile(
  r"(all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)"
  r"(?:-start)?\("
)
TRANSFORMS = {
  "soap": dict(precondition_frequency=3, max_precond_dim=32),
  "shampoo": dict(
    precondition_frequency=3, max_precond_dim=32, matrix_eps=1e-2
  ),
  "muon": {},
}


AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit


def _mesh(kind=AUTO):
  if len(jax.devices()) < SHARDS:
    pytest.fail("Run with 8 CPU devices; tests/conftest.py asks for them.")
  return jax.make_mesh((2, 4), AXES, axis_types=(kind,) * 2)


def _build(name, axes):
  dims = DIMENSIONS if name != "muon" else DIMENSIONS | dict(embed=None)
  return getattr(optim, name)(
    1e-2,
    dimension_numbers=dims,
    placement=optim.Placement(axes, SHARDS, None if axes is None else SPECS),
    weight_decay=0.1,
    **TRANSFORMS[name],
  )


def _grads(seed, shapes=SHAPES):
  rng = np.random.default_rng(seed)
  return {
    k: jnp.asarray(rng.normal(size=shape), jnp.float32)
    for k, shape in shapes.items()
  }


def _shardings(mesh, specs):
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda x: isinstance(x, P),
  )


def _sharded_update(mesh, tx, shapes=SHAPES):
  params = jax.eval_shape(lambda: _grads(0, shapes))
  state = jax.eval_shape(tx.init, params)
  specs = optim.state_specs(state, optim.Placement(AXES, SHARDS, SPECS))
  place = _shardings(mesh, SPECS), _shardings(mesh, specs)
  init = jax.jit(tx.init, out_shardings=place[1])
  update = jax.jit(
    tx.update, in_shardings=(*place, place[0]), out_shardings=place
  )
  params, state = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    (params, state), place,
  )  # fmt: skip
  return init, update, place, (params, state, params)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_eight_devices_are_one_device(name):
  mesh, params = _mesh(), _grads(0)
  plain = _build(name, None)
  state, update = plain.init(params), jax.jit(plain.update)
  with jax.set_mesh(mesh):
    init, sharded, (param_place, state_place), _ = _sharded_update(
      mesh, _build(name, AXES)
    )
    spread = init(params)
    for step in range(5):
      grads = _grads(step + 1)
      wanted, state = update(grads, state, params)
      actual, spread = sharded(
        jax.device_put(grads, param_place), spread, params
      )
      for k in SHAPES:
        np.testing.assert_allclose(actual[k], wanted[k], atol=2e-4, rtol=1e-2)
  places = jax.tree.map(lambda x: x.sharding, spread)
  jax.tree.map(
    lambda x, place, want: (
      x.sharding.is_equivalent_to(want, x.ndim)
      or pytest.fail(f"{place} is not {want}")
    ),
    spread,
    places,
    state_place,
  )


def _traffic(text):
  """Collectives, and those within a branch, where a refresh would be."""
  total, inside = collections.Counter(), collections.Counter()
  for line in text.splitlines():
    found = COLLECTIVE.search(line)
    if found and " = " in line:
      total[found.group(1)] += 1
      if "cond/branch" in line or "while/body" in line:
        inside[found.group(1)] += 1
  return total, inside


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    # Each matrix's gradient goes to its device (all-to-all), and its update
    # comes back (another along fsdp, then all-gather along data, over which
    # parameters are replicated). Of the embedding, cut along its vocabulary,
    # the [16, 16] Gram matrix and its norms are summed.
    ("soap", {"all-to-all": 6, "all-gather": 3, "all-reduce": 2}),
    ("shampoo", {"all-to-all": 6, "all-gather": 3, "all-reduce": 3}),
    ("muon", {"all-to-all": 4, "all-gather": 2, "all-reduce": 1}),
  ],
)
def test_factorisations_are_local(name, wanted, kind):
  mesh = _mesh(kind)
  with jax.set_mesh(mesh):
    _, update, _, arguments = _sharded_update(mesh, _build(name, AXES), EVEN)
    text = update.lower(*arguments).compile().as_text()
  total, inside = _traffic(text)
  assert not inside
  assert dict(total) == wanted
  stack = r"= \(?f32\[(\d+),\d+,\d+\][^=]*custom-call\(.*lapack"
  calls = re.findall(stack, text)
  assert set(calls) == (set() if name == "muon" else {"1"})


def test_matrices_of_leaves_that_lie_differently_make_no_detour():
  """Three of each on 2 x 4 devices: none of them stays where it was."""
  shapes = dict(wq=(3, 16, 16), wo=(3, 16, 16))
  specs = dict(wq=P(None, "fsdp"), wo=P(None, None, "fsdp"))
  placement = optim.Placement(AXES, SHARDS, specs)
  dims = dict(wq=STACK, wo=STACK)
  plain = optim.muon(1e-2, dimension_numbers=dims)
  muon = optim.muon(1e-2, dimension_numbers=dims, placement=placement)
  mesh, grads = _mesh(), _grads(1, shapes)
  wanted = plain.update(grads, plain.init(grads), grads)[0]
  with jax.set_mesh(mesh):
    state = jax.jit(muon.init)(grads)
    place = _shardings(mesh, specs)
    update = jax.jit(lambda g, s: muon.update(g, s, g)[0], out_shardings=place)
    update = update.lower(jax.device_put(grads, place), state).compile()
    actual = update(jax.device_put(grads, place), state)
  for k in shapes:
    np.testing.assert_allclose(actual[k], wanted[k], atol=1e-6)
  # wo changes sides and back; of the stack, one there and one back; then the
  # replicas gather it.
  total, _ = _traffic(update.as_text())
  assert dict(total) == {"all-to-all": 4, "all-gather": 1}


def test_without_constraints_there_is_more_traffic():
  # Guards the test above: the counts do depend on the constraints.
  mesh = _mesh()
  with jax.set_mesh(mesh):
    _, update, _, arguments = _sharded_update(mesh, _build("soap", None), EVEN)
    total, _ = _traffic(update.lower(*arguments).compile().as_text())
  assert sum(total.values()) > 11


def test_specs_of_stacks_and_of_optax_states():
  tx = optax.MultiSteps(
    optax.chain(optax.clip_by_global_norm(1.0), _build("soap", AXES)), 2
  )
  params = jax.eval_shape(lambda: _grads(0))
  state = jax.eval_shape(tx.init, params)
  specs = optim.state_specs(state, optim.Placement(AXES, SHARDS, SPECS))
  assert jax.tree.structure(specs, is_leaf=lambda x: isinstance(x, P)) == (
    jax.tree.structure(state)
  )
  assert specs.acc_grads == SPECS
  assert specs.gradient_step == P()
  inner = specs.inner_opt_state[1][0]
  assert inner.inner.mu.stacks["16x12_01"] == P(AXES)
  assert inner.inner.mu.stacks["64x16_1"] == P(None, AXES)
  assert inner.inner.mu.rest["gain"] == SPECS["gain"]
  assert inner.kronecker["16x12_01"].derived == (P(AXES), P(AXES))
  assert inner.kronecker["64x16_1"].factors == (None, P())
  assert state.inner_opt_state[1][0].inner.mu.stacks["16x12_01"].shape[0] == 8


def test_specs_want_partition_specs():
  with pytest.raises(ValueError, match=r"\['w'\].*PartitionSpec"):
    optim.state_specs(jnp.zeros(2), optim.Placement(param_specs=dict(w="fsdp")))


@pytest.mark.parametrize("shards", [2, 8, 64, 4096])
@pytest.mark.parametrize("count", [1, 2, 24])
@pytest.mark.parametrize("longest", [300, 2000, 100_000])
def test_a_device_keeps_little_however_many_there_are(shards, count, longest):
  """Never more than all of a stack, and about the least of what there is."""
  leaf = jax.ShapeDtypeStruct((count, 4096, 256), jnp.float32)
  (bucket,) = optim.make_plan(
    leaf, STACK, max_precond_dim=longest, stack_shards=shards
  ).buckets
  moment = 4096 * 256
  factors = 256**2 + (4096**2 if longest > 4096 else 0)
  matrix = moment + factors
  kept = {
    None: count * matrix,
    0: -(-count // shards) * matrix,
    1: count * (moment / shards + factors),
  }
  assert kept[bucket.shard_axis] <= kept[None]
  if factors > 256**2:  # Both sides have one; none can be cut.
    kept.pop(1)
  assert kept[bucket.shard_axis] <= 2 * min(kept.values())
  # What the length of a stack says, padded or not, is where it lies.
  placement = optim.Placement(("x",), shards, P())
  tx = optim.scale_by_soap(
    dimension_numbers=STACK, max_precond_dim=longest, placement=placement
  )
  state = jax.eval_shape(tx.init, leaf)
  spec = optim.state_specs(state, placement).kronecker[bucket.name]
  lies = P("x") if bucket.shard_axis == 0 else P()
  assert spec.factors[1] == lies
