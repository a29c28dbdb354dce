"""What every exported transform promises; one row each, a missing row fails.

To add a transform: export it from `optim`, and give it a `Row` in
`oracles/contract.py`.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from oracles.contract import SHAPES, SPECS, TRANSFORMS, make_params

import optim

AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit


def _trace(tx, row, steps=4, dtype=jnp.float32, wrap=jax.jit):
  """[(updates, state)] of some steps from the same parameters."""
  params = make_params(dtype)
  update, state = wrap(tx.update), tx.init(params)
  trace = []
  for step in range(steps):
    grads = make_params(dtype, seed=1 + step)
    updates, state = update(grads, state, params, **row.extra_args(params))
    trace.append((updates, state))
  return trace


def _types(tree):
  return jax.tree.map(jax.typeof, tree)


def _same(a, b, atol=2e-4):
  """Equal up to rounding, which Adam's division makes larger."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, atol=atol, rtol=1e-3)


def _marked(name):
  row = TRANSFORMS[name]
  marks = pytest.mark.slow if row.repeats or row.slow else ()
  return pytest.param(name, marks=marks)


@pytest.fixture(scope="module", params=map(_marked, sorted(TRANSFORMS)))
def row(request):
  return TRANSFORMS[request.param]


@pytest.fixture(scope="module")
def trace(row):
  return _trace(row.build(), row)


def test_every_exported_factory_has_a_row():
  kinds = (
    optax.GradientTransformation,
    optax.GradientTransformationExtraArgs,
  )
  exported = {
    name
    for name in optim.__all__
    if inspect.isfunction(getattr(optim, name))
    and inspect.signature(getattr(optim, name)).return_annotation in kinds
  }
  assert exported == set(TRANSFORMS)


_ALIASES = {
  name: row.repeats for name, row in TRANSFORMS.items() if row.repeats
} | {name: f"scale_by_{name}" for name in ("soap", "shampoo", "muon")}


@pytest.mark.parametrize("name", sorted(_ALIASES))
def test_aliases_repeat_the_defaults_of_their_directions(name):
  have = inspect.signature(getattr(optim, name)).parameters
  direction = inspect.signature(TRANSFORMS[_ALIASES[name]].make).parameters
  for argument, parameter in direction.items():
    assert have[argument].default == parameter.default, argument


@pytest.mark.parametrize(
  "name", [name for name, row in TRANSFORMS.items() if row.repeats]
)
def test_an_alias_is_its_direction_with_decay_and_a_rate(name):
  row, shared = TRANSFORMS[name], TRANSFORMS[TRANSFORMS[name].repeats]
  options = {k: v for k, v in row.options.items() if k not in row.rates}
  direction = optax.with_extra_args_support(shared.make(**options))
  rates = dict.fromkeys(row.rates, 0.1)
  params = make_params()
  by_hand = _trace(direction, shared, steps=2)
  whole = _trace(row.build(**rates, weight_decay=0.2), row, steps=2)
  for (wanted, _), (updates, _) in zip(by_hand, whole, strict=True):
    stepped = jax.tree.map(lambda u, w: -0.1 * (u + 0.2 * w), wanted, params)
    _same(updates, stepped)


def test_types_are_stable(row, trace):
  params = make_params()
  for updates, state in trace:
    assert _types(updates) == _types(params)
    assert _types(state) == _types(row.build().init(params))
  assert not any(x.weak_type for x in jax.tree.leaves(_types(trace)))


def test_bfloat16_params_keep_float32_statistics(row):
  params = make_params(jnp.bfloat16)
  tx = row.build()
  for updates, state in _trace(tx, row, dtype=jnp.bfloat16):
    assert _types(updates) == _types(params)
    assert _types(state) == _types(tx.init(params))
    floating = [
      x for x in jax.tree.leaves(state)
      if jnp.issubdtype(x.dtype, jnp.floating)
    ]  # fmt: skip
    assert {x.dtype for x in floating} == {jnp.dtype(jnp.float32)}


def test_init_needs_shapes_only(row):
  params, tx = make_params(), row.build()
  assert _types(tx.init(params)) == _types(jax.eval_shape(tx.init, params))
  shapes = jax.eval_shape(lambda: params)
  assert _types(tx.init(params)) == _types(jax.eval_shape(tx.init, shapes))


def test_jit_is_no_jit(row, trace):
  _same(_trace(row.build(), row, wrap=lambda f: f), trace)


def test_no_recompilation_and_no_shared_buffers(row):
  params, tx = make_params(), row.build()
  update = jax.jit(tx.update, donate_argnums=1)  # Refuses a buffer used twice.
  state = tx.init(params)
  for _ in range(3):
    _, state = update(params, state, params, **row.extra_args(params))
  assert update._cache_size() <= 1  # 0: JAX kept no entry.


def test_updates_are_finite_and_of_every_leaf(row, trace):
  for name, leaf in trace[-1][0].items():
    assert np.all(np.isfinite(leaf))
    assert leaf.size == 0 or np.any(np.asarray(leaf) != 0), name


def test_unknown_extra_args_are_ignored(row, trace):
  params, tx = make_params(), row.build()
  updates, _ = jax.jit(tx.update)(
    make_params(seed=1), tx.init(params), params, something=jnp.ones(2),
    **row.extra_args(params),
  )  # fmt: skip
  _same(updates, trace[0][0])


def test_chain(row, trace):
  chained = optax.chain(optax.identity(), row.build(), optax.scale(2.0))
  for (updates, _), (wanted, _) in zip(
    _trace(chained, row), trace, strict=True
  ):
    _same(updates, jax.tree.map(lambda x: 2 * x, wanted), atol=4e-4)


@pytest.mark.parametrize("kind", ["masked", "partition"])
def test_on_some_leaves_only(row, trace, kind):
  chosen = {name: name != "matrix" for name in SHAPES}
  if kind == "masked":
    tx = optax.masked(row.build(), chosen)
  else:
    labels = {name: "a" if value else "b" for name, value in chosen.items()}
    tx = optax.partition(dict(a=row.build(), b=optax.identity()), labels)
  tx = optax.with_extra_args_support(tx)
  for step, (updates, _) in enumerate(_trace(tx, row)):
    wanted = dict(trace[step][0], matrix=make_params(seed=1 + step)["matrix"])
    _same(updates, wanted)


def test_accumulation(row, trace):
  # The same gradient twice is the gradient once, every second call.
  params, tx = make_params(), optax.MultiSteps(row.build(), 2)
  update, state = jax.jit(tx.update), tx.init(params)
  for step, (wanted, _) in enumerate(trace):
    grads = make_params(seed=1 + step)
    for half in range(2):
      updates, state = update(grads, state, params, **row.extra_args(params))
      if half == 0:
        assert not any(np.count_nonzero(x) for x in updates.values())
    _same(updates, wanted)


def test_injected_is_plain_and_learning_rates_do_not_recompile(row, trace):
  options = dict(row.options)
  if row.descends:
    options["learning_rate"] = 1e-2
  injected = optax.inject_hyperparams(row.make, static_args=row.static)
  tx = injected(**options)
  params, update = make_params(), jax.jit(tx.update)
  state = tx.init(params)
  for step, (wanted, _) in enumerate(trace):
    updates, state = update(
      make_params(seed=1 + step), state, params, **row.extra_args(params)
    )
    _same(updates, wanted)
  if row.descends:
    rate = state.hyperparams["learning_rate"]
    state.hyperparams["learning_rate"] = jnp.zeros_like(rate)
    updates, _ = update(params, state, params, **row.extra_args(params))
    assert row.coasts or not np.any(updates["stacked"])
  assert update._cache_size() <= 1  # 0: JAX kept no entry.


def test_vmap(row, trace):
  tx = row.build()

  def two(tree):
    return jax.tree.map(lambda x: jnp.stack([x, x]), tree)

  params = two(make_params())
  state = jax.vmap(tx.init)(params)
  extra = row.extra_args(make_params())
  update = jax.jit(jax.vmap(lambda *args: tx.update(*args, **extra)))
  for step in range(2):
    updates, state = update(two(make_params(seed=1 + step)), state, params)
  _same(updates, two(trace[1][0]))


def _check_on_axes(tx, row, wanted, *types):
  """One device's updates, in the layout of the parameters; the state stays."""
  mesh = jax.make_mesh((2, 4), ("a", "d"), axis_types=types)
  place = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
  with jax.set_mesh(mesh):
    params = jax.device_put(make_params(), place)
    update, state = jax.jit(tx.update), tx.init(params)
    for step, want in enumerate(wanted[:2]):
      grads = jax.device_put(make_params(seed=1 + step), place)
      old, extra = state, row.extra_args(params)
      updates, state = update(grads, state, params, **extra)
      _same(updates, want)
      assert _types(updates) == _types(params)
      assert _types(state) == _types(old)


@pytest.mark.parametrize(
  "types",
  [
    pytest.param((EXPLICIT,) * 2, id="explicit"),
    pytest.param((EXPLICIT, AUTO), id="mixed", marks=pytest.mark.slow),
  ],
)
def test_explicit_axes(row, trace, types):
  _check_on_axes(row.build(), row, [updates for updates, _ in trace], *types)


@pytest.mark.parametrize(
  "types",
  [
    pytest.param((EXPLICIT,) * 2, id="explicit", marks=pytest.mark.slow),
    pytest.param((EXPLICIT, AUTO), id="mixed"),
  ],
)
@pytest.mark.parametrize(
  "name",
  [
    pytest.param(
      name, marks=() if name in ("muon", "soap") else pytest.mark.slow
    )
    for name, row in sorted(TRANSFORMS.items())
    if "placement" in inspect.signature(row.make).parameters
  ],
)
def test_explicit_axes_with_stacks_in_their_places(name, types):
  row = TRANSFORMS[name]
  # Who is refreshed when depends on the number of parts of a stack.
  alone = row.build(placement=optim.Placement(None, 8))
  wanted = [updates for updates, _ in _trace(alone, row, steps=2)]
  tx = row.build(placement=optim.Placement(("a", "d"), 8, SPECS))
  _check_on_axes(tx, row, wanted, *types)


def test_checkpoint_round_trip(row, tmp_path):
  # Orbax refuses arrays without entries.
  def some(seed):
    return {k: v for k, v in make_params(seed=seed).items() if v.size}

  tx, params = row.build(), some(0)
  extra = row.extra_args(params)
  extra = jax.tree_util.tree_map_with_path(
    lambda path, x: x if path[-1].key in params else None, extra
  )
  update = jax.jit(lambda *args: tx.update(*args, **extra))
  _, state = update(some(1), tx.init(params), params)
  wanted, _ = update(some(2), state, params)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    shapes = jax.eval_shape(tx.init, params)
    restored = checkpointer.restore(tmp_path / "state", shapes)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  updates, _ = update(some(2), restored, params)
  jax.tree.map(np.testing.assert_array_equal, updates, wanted)


def test_map_params_sees_the_element_wise_leaves(row):
  tx, seen = row.build(), []
  state = tx.init(make_params())
  marked = optax.tree.map_params(
    tx, lambda x: seen.append(x.shape) or x * 0 + 7, state
  )
  assert _types(marked) == _types(state)
  assert ((3,) in seen and () in seen) == row.element_wise


def test_descends_a_quadratic(row):
  rates = [name for name in row.rates if row.descends]
  tx = row.build(**dict.fromkeys(rates, 0.05))
  if not row.descends:
    tx = optax.chain(tx, optax.scale(-0.05))
  params = make_params()
  target = make_params(seed=9)

  def loss_fn(p):
    return sum(jnp.sum((p[k] - target[k]) ** 2) for k in SHAPES)

  @jax.jit
  def step(params, state):
    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, state, params, **row.extra_args(params))
    return loss, optax.apply_updates(params, updates), state

  state, losses = tx.init(params), []
  for _ in range(120):
    loss, params, state = step(params, state)
    losses.append(float(loss))
  assert losses[-1] < 0.1 * losses[0]


def test_state_sizes_are_the_documented_ones():
  # Float32 words a parameter, for the matrices of a transformer block.
  d = 64
  block = {k: (d, d) for k in "qkvo"} | dict(w1=(d, 4 * d), w2=(4 * d, d))
  params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in block.items()}
  size = sum(p.size for p in params.values())
  for tx, wanted in (
    (optim.scale_by_soap(), 9),
    (optim.scale_by_soap(one_sided=True), 3),
    (optim.scale_by_soap(factorized=True), 8),
    (optim.scale_by_soap(one_sided=True, factorized=True), 2),
    (optim.scale_by_shampoo(), 9),
    (optim.scale_by_muon(), 1),
    (optim.scale_by_soap_muon(), 9),
    (optim.scale_by_moso(), 3),
  ):
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    words = sum(x.size for x in leaves if x.dtype == jnp.float32)
    assert wanted <= words / size < wanted + 0.03
