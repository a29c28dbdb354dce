"""Explicit mesh axes, the default of `jax.make_mesh`, for all of `optim`.

What each transform gives there is a row of `test_contract.py`, and how much
travels of `test_sharding.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optim

SPECS = dict(w=P("d", None), v=P(None, "d"))
SHAPES = dict(w=(16, 8), v=(8, 16))
TOLD = optim.Placement(("a", "d"), 8, SPECS)
B, L = 4, 6


@pytest.fixture(scope="module")
def mesh():
  if len(jax.devices()) < 8:
    pytest.fail("Run with 8 CPU devices; tests/conftest.py asks for them.")
  mesh = jax.make_mesh((2, 4), ("a", "d"))
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}
  return mesh


def _tree(seed=0):
  rng = np.random.default_rng(seed)
  return {k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}


def _spread(tree, mesh):
  place = {k: NamedSharding(mesh, spec) for k, spec in SPECS.items()}
  return jax.device_put(tree, place)


def _check(actual, wanted, like, atol=2e-4):
  for k, want in wanted.items():
    np.testing.assert_allclose(actual[k], want, atol=atol, rtol=1e-3)
    assert jax.typeof(actual[k]).sharding == jax.typeof(like[k]).sharding


def _steps(tx, trees, wrap=jax.jit):
  params, update = trees[0], wrap(tx.update)
  state = tx.init(params)
  for grads in trees[1:]:
    updates, state = update(grads, state, params)
  return updates, state


@pytest.mark.parametrize(
  ("told", "set_mesh"),
  [
    (True, False),
    (False, True),
    pytest.param(True, True, marks=pytest.mark.slow),
    pytest.param(False, False, marks=pytest.mark.slow),
  ],
)
def test_without_jit(mesh, set_mesh, told):
  """As optax.adamw, also without a mesh in the context."""
  placement = TOLD if told else optim.Placement()
  tx = optim.muon(1e-2, weight_decay=0.1, placement=placement)
  trees = [_tree(seed) for seed in range(2)]
  wanted, _ = _steps(optim.muon(1e-2, weight_decay=0.1), trees)
  spread = [_spread(tree, mesh) for tree in trees]
  context = jax.set_mesh(mesh) if set_mesh else jax.default_device(None)
  with context:
    actual, _ = _steps(tx, spread, wrap=lambda f: f)
    _check(actual, wanted, spread[0])
    actual, _ = _steps(tx, spread)
    _check(actual, wanted, spread[0])


def test_states_lie_where_the_specs_say(mesh):
  specs = dict(layers=P(None, "d"), gain=P("d"))
  dims = dict(layers=optim.DimensionNumbers(sides=(1, 2), stack=0), gain=None)
  told = optim.Placement(("a", "d"), 8, specs)
  tx = optim.scale_by_soap(dimension_numbers=dims, placement=told)
  with jax.set_mesh(mesh):
    place = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    params = dict(layers=jnp.ones((6, 8, 8)), gain=jnp.ones(8))
    params = jax.device_put(params, place)
    for init in (tx.init, jax.jit(tx.init)):
      state = init(params)
      (kept,) = state.kronecker.values()
      for x in jax.tree.leaves(kept):
        assert jax.typeof(x).sharding.spec[0] == ("a", "d")
      assert jax.typeof(state.inner.mu.rest["gain"]).sharding.spec == P("d")
      lie = optim.state_specs(state, told)
      jax.tree.map(
        lambda x, spec: x.sharding.is_equivalent_to(
          NamedSharding(mesh, spec), x.ndim
        ) or pytest.fail(f"{x.sharding} is not {spec}"),
        state, lie,
      )  # fmt: skip
    # Not told: the matrices on all devices, other leaves with their parameter.
    tx = optim.scale_by_soap(dimension_numbers=dims)
    state = jax.jit(tx.init)(params)
    (kept,) = state.kronecker.values()
    assert kept.factors[0].sharding.is_fully_replicated
    assert jax.typeof(state.inner.mu.rest["gain"]).sharding.spec == P("d")


def _wrapped(name, **options):
  chosen = dict(w=True, v=False)
  static = ("precondition_frequency", "max_precond_dim")
  soap = optim.scale_by_soap(first_step="identity", **options)
  return dict(
    inject=lambda: optax.inject_hyperparams(optim.soap, static_args=static)(
      1e-2, b1=0.9, weight_decay=0.1, first_step="identity", **options
    ),
    masked=lambda: optax.masked(soap, chosen),
    steps=lambda: optax.MultiSteps(soap, 2),
    chain=lambda: optax.chain(optax.clip_by_global_norm(1.0), soap),
    lion=lambda: optim.scale_by_soap(
      inner=optax.scale_by_lion(0.9, 0.99), first_step="identity", **options
    ),
  )[name]()


@pytest.mark.parametrize(
  "name",
  [
    "inject",
    "masked",
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ("steps", "chain", "lion")
    ),
  ],
)
def test_wrapped(mesh, name):
  trees = [_tree(seed) for seed in range(3)]
  shards = optim.Placement(None, 8)
  wanted, _ = _steps(_wrapped(name, placement=shards), trees)
  with jax.set_mesh(mesh):
    spread = [_spread(tree, mesh) for tree in trees]
    actual, _ = _steps(_wrapped(name, placement=TOLD), spread)
  _check(actual, wanted, spread[0])


@pytest.mark.parametrize("axis", [None, "a"])
def test_vmap(mesh, axis):
  """Over an axis that is on each device, and over one that is spread."""
  trees = [
    {k: np.stack([x, -2 * x]) for k, x in _tree(seed).items()}
    for seed in range(2)
  ]
  tx = optim.muon(1e-2)

  def run(params, grads):
    state = jax.vmap(tx.init)(params)
    return jax.vmap(tx.update)(grads, state, params)[0]

  wanted = jax.jit(run)(*trees)
  with jax.set_mesh(mesh):
    place = {k: NamedSharding(mesh, P(axis, *s)) for k, s in SPECS.items()}
    spread = jax.device_put(trees, [place, place])
    actual = jax.jit(run)(*spread)
  _check(actual, wanted, spread[0])


def _dot(x, w):
  """[B, L, D] [D, E]; the rows stay along "a" where that is an axis."""
  mesh = jax.sharding.get_abstract_mesh()
  place = None
  if not mesh.empty:
    assert set(mesh.explicit_axes) == {"a", "d"}, "a model out of its mode"
    place = P(jax.typeof(x).sharding.spec[0], None, None)
  return jnp.einsum("bld,de->ble", x, w, out_sharding=place)


def _body(params, batch):
  return jnp.tanh(_dot(batch["x"], params["w"]))


def _model(params, batch):
  return _dot(_body(params, batch), params["v"])


HEAD = optim.chunked_lm_head(_body, "v", 2, head_fn=lambda v, h: _dot(h, v))
LOSS = optim.softmax_cross_entropy(lambda batch: (batch["y"], None))


def _batches(count, seed=5):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, B, L, 16)).astype(np.float32)
  return dict(x=x, y=rng.integers(0, 16, (count, B, L)))


def _by_rows(batches, mesh):
  return jax.device_put(batches, NamedSharding(mesh, P(None, "a")))


@pytest.mark.parametrize(
  "options",
  [
    dict(model_fn=HEAD, splits=2, warm_start=0.5),
    pytest.param(
      dict(model_fn=HEAD, scope=dict(w="one", v="two")),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      dict(model_fn=_model, solver=optim.CG(4)), marks=pytest.mark.slow
    ),
  ],
  ids=["chunked", "layerwise", "cg"],
)
def test_gauss_newton(mesh, options):
  """The model runs on Explicit axes, and the state stays where it is."""
  tx = optim.gauss_newton(
    loss_fn=LOSS, inner_optimizer=optax.adam(1.0), inner_steps=2,
    line_search=optim.LineSearch(num_batches=1), **options,
  )  # fmt: skip
  params, data = _tree(), (_batches(2), _batches(1, 6))

  @jax.jit
  def step(params, state, batches, ls_batches):
    return tx.update(
      None, state, params, batches=batches, ls_batches=ls_batches
    )

  wanted, _ = step(params, tx.init(params), *data)
  with jax.set_mesh(mesh):
    spread = _spread(params, mesh)
    state = tx.init(spread)
    actual, new = step(spread, state, *(_by_rows(x, mesh) for x in data))
  _check(actual, wanted, spread)
  assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)


KEY = jax.random.key(3)
CURVATURES = dict(
  ggn=lambda p, b: optim.ggn_vector_product(HEAD, LOSS, p, b, p),
  hvp=lambda p, b: optim.hvp(_model, LOSS, p, b, p),
  hutchinson=lambda p, b: optim.hutchinson_diagonal(
    lambda v: optim.ggn_vector_product(_model, LOSS, p, b, v), p, KEY,
    num_probes=2,
  ),
  exact=lambda p, b: optim.exact_ggn_diagonal(_model, LOSS, p, b),
  fisher=lambda p, b: optim.sampled_fisher_diagonal(
    _model, p, b, KEY, chunk_size=2
  ),
  bartlett=lambda p, b: optim.gauss_newton_bartlett_diagonal(
    _model, p, b, KEY, num_draws=2
  ),
  normal=lambda p, b: optim.gauss_newton_bartlett_diagonal(
    _model, p, b, KEY, likelihood="normal"
  ),
)  # fmt: skip


@pytest.mark.parametrize(
  "name",
  [
    *("exact", "fisher", "ggn", "hutchinson"),
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in ("bartlett", "hvp", "normal")
    ),
  ],
)
def test_curvature(mesh, name):
  params = _tree()
  batch = jax.tree.map(lambda x: x[0], _batches(1))
  function = jax.jit(CURVATURES[name])
  wanted = function(params, batch)
  with jax.set_mesh(mesh):
    spread = _spread(params, mesh)
    actual = function(spread, jax.device_put(batch, P("a")))
  _check(actual, wanted, spread, atol=1e-5)


@pytest.mark.parametrize(
  "estimator",
  ["gnb", pytest.param("ggn", marks=pytest.mark.slow)],
)
def test_diagonal_of_a_model(mesh, estimator):
  """The model on Explicit axes, the eigenvectors on Auto ones."""
  tx = optim.scale_by_diagonal_preconditioner(
    -1.0, "kronecker", estimator, model_fn=_model, loss_fn=LOSS, damping=0.1
  )
  batch = jax.tree.map(lambda x: x[0], _batches(1))

  @jax.jit
  def step(params, batch):
    state = tx.init(params)
    extra = dict(curvature_batch=batch, key=KEY)
    return tx.update(params, state, params, **extra)[0]

  params = _tree()
  wanted = step(params, batch)
  with jax.set_mesh(mesh):
    spread = _spread(params, mesh)
    actual = step(spread, jax.device_put(batch, P("a")))
  _check(actual, wanted, spread, atol=1e-3)


# Of the 16 rows of w, 4 a device: aligned, across devices, and padded.
@pytest.mark.parametrize(
  "size", [pytest.param(4, marks=pytest.mark.slow), 8, 5]
)
def test_rounding(mesh, size):
  quantizer = optim.Quantizer(optim.INT4, 0, size)

  def functions(x):
    codes, scales = optim.quantize(x, quantizer)
    straight = jax.grad(
      lambda x: jnp.sum(
        x * optim.straight_through(x, quantizer, scale_gradient=True)
      )
    )
    exact = dict(
      nearest=optim.round_nearest(x, quantizer),
      random=optim.round_random(KEY, x, quantizer),
      again=optim.dequantize(codes, scales, quantizer),
    )
    return exact, straight(x), optim.unique_codes(x, quantizer)

  w = _tree()["w"]
  wanted = jax.jit(functions)(w)
  with jax.set_mesh(mesh):
    spread = _spread(_tree(), mesh)["w"]
    actual = jax.jit(functions)(spread)
  for name, x in actual[0].items():
    np.testing.assert_array_equal(x, wanted[0][name])
    assert jax.typeof(x) == jax.typeof(spread)
  np.testing.assert_allclose(actual[1], wanted[1], rtol=1e-4, atol=1e-5)
  assert jax.typeof(actual[1]) == jax.typeof(spread)
  assert actual[2] == wanted[2]


def test_reports(mesh):
  """Those that return numbers, and the diagonal of factors."""
  tx = optim.scale_by_soap(first_step="identity")

  def numbers(params):
    _, state = tx.update(params, tx.init(params), params)
    stack = jnp.stack([params["w"], params["w"] ** 2])
    return optim.factor_diagonal(state, params), optim.kronecker_report(
      stack, num_steps=3
    )

  params = _tree()
  wanted = jax.jit(numbers)(params)
  with jax.set_mesh(mesh):
    spread = _spread(params, mesh)
    actual = jax.jit(numbers)(spread)
    assert optim.treatment_table(spread) == optim.treatment_table(params)
  _check(actual[0], wanted[0], spread, atol=1e-5)
  np.testing.assert_allclose(actual[1], wanted[1], rtol=1e-3)
