"""Gauss-Newton on eight fake devices, and what it keeps in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optim

N, M, ROWS, L, D, V = 2, 1, 8, 6, 16, 24
SPECS = dict(
  embed=P(None, "fsdp"),
  layers=[dict(up=P("fsdp"), down=P(None, "fsdp"))],
  gain=P(),
)
GROUPS = {"ends": ["embed", "gain"], "layer {}": "layers/*"}
LOSS = optim.softmax_cross_entropy(
  lambda tokens: (tokens[:, 1:], tokens[:, 1:] != 0)
)


def _params(d=D, v=V):
  keys = iter(jax.random.split(jax.random.key(0), 3))

  def normal(*shape):
    return jax.random.normal(next(keys), shape) * shape[0] ** -0.5

  return dict(
    embed=normal(v, d),
    layers=[dict(up=normal(d, 2 * d), down=normal(2 * d, d)) for _ in range(1)],
    gain=jnp.ones(d),
  )


def _body(params, tokens):
  h = params["embed"][tokens[:, :-1]]
  for layer in params["layers"]:
    mixed = jnp.cumsum(h, axis=1) / (1 + jnp.arange(h.shape[1]))[:, None]
    h = h + jnp.tanh(mixed @ layer["up"]) @ layer["down"]
  return h * params["gain"]


MODEL = optim.chunked_lm_head(_body, "embed", 3, transpose=True)


def _tokens(seed, count):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(0, V, (count, ROWS, L + 1)))


def _build(scope, **options):
  return optim.gauss_newton(
    MODEL, LOSS, optax.adamw(1.0, weight_decay=0.1), inner_steps=N,
    line_search=optim.LineSearch(num_batches=M), scope=scope,
    learning_rate=lambda t, i: 0.03 / (1 + i), **options,
  )  # fmt: skip


SCOPES = dict(
  full="full", layerwise=lambda params: optim.path_groups(params, GROUPS)
)
OPTIONS = dict(full=dict(splits=2), layerwise=dict(damping=0.1))


def _step(tx):
  def step(params, state, batches, ls_batches):
    updates, state = tx.update(
      None, state, params, batches=batches, ls_batches=ls_batches
    )
    return optax.apply_updates(params, updates), state

  return step


def _mesh():
  if len(jax.devices()) < 8:
    pytest.fail("Run with 8 CPU devices; tests/conftest.py asks for them.")
  auto = jax.sharding.AxisType.Auto
  return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(auto,) * 2)


@pytest.mark.parametrize(
  "scope", ["full", pytest.param("layerwise", marks=pytest.mark.slow)]
)
def test_eight_devices_are_one(scope):
  tx, mesh = _build(SCOPES[scope], **OPTIONS[scope]), _mesh()
  params = _params()
  state, plain = tx.init(params), jax.jit(_step(tx))
  data = [(_tokens(2 * t, N), _tokens(2 * t + 1, M)) for t in range(3)]
  wanted = params, state
  for pair in data:
    wanted = plain(*wanted, *pair)
  specs = optim.state_specs(
    jax.eval_shape(tx.init, params), optim.Placement(param_specs=SPECS)
  )
  place = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), (SPECS, specs),
    is_leaf=lambda x: isinstance(x, P),
  )  # fmt: skip
  rows = NamedSharding(mesh, P(None, ("data", "fsdp")))
  with jax.set_mesh(mesh):
    # Copied: a replicated leaf may share its buffer with the original.
    spread = jax.device_put(jax.tree.map(jnp.copy, (params, state)), place)
    step = jax.jit(
      _step(tx), donate_argnums=(0, 1), out_shardings=place,
      in_shardings=(*place, rows, rows),
    )  # fmt: skip
    for pair in data:
      spread = step(*spread, *jax.device_put(pair, rows))
  # 0: JAX kept no entry.
  assert max(step._cache_size(), plain._cache_size()) <= 1
  for a, b in zip(
    jax.tree.leaves(spread), jax.tree.leaves(wanted), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
  assert float(wanted[1].alpha) > 0
  for x, want in zip(
    jax.tree.leaves(spread), jax.tree.leaves(place), strict=True
  ):
    assert x.sharding.is_equivalent_to(want, x.ndim)


def test_states_lie_where_the_parameters_do():
  tx = _build(SCOPES["layerwise"])
  state = jax.eval_shape(tx.init, _params())
  specs = optim.state_specs(state, optim.Placement(param_specs=SPECS))
  assert specs.delta == SPECS
  assert specs.count == specs.info.losses == specs.alpha == P()
  inner = specs.inner_state.inner_states
  assert inner["ends"].inner_state[0].mu["embed"] == P(None, "fsdp")
  assert inner["layer 0"].inner_state[0].nu["layers"][0]["up"] == P("fsdp")
  streaming = optim.average_weights(
    optim.gauss_newton_microsteps(optax.adam(1.0), inner_steps=2), 0.9
  )
  specs = optim.state_specs(
    jax.eval_shape(streaming.init, _params()),
    optim.Placement(param_specs=SPECS),
  )
  assert specs.average == specs.inner.solver.delta == SPECS


def test_each_device_holds_its_share_only():
  tx, mesh = _build("full"), _mesh()
  params = jax.eval_shape(_params)
  state = jax.eval_shape(tx.init, params)
  place = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    (SPECS, optim.state_specs(state, optim.Placement(param_specs=SPECS))),
    is_leaf=lambda x: isinstance(x, P),
  )
  rows = NamedSharding(mesh, P(None, ("data", "fsdp")))
  tokens = jax.ShapeDtypeStruct((N, ROWS, L + 1), jnp.int32)
  search = jax.ShapeDtypeStruct((M, ROWS, L + 1), jnp.int32)
  with jax.set_mesh(mesh):
    compiled = (
      jax.jit(_step(tx), in_shardings=(*place, rows, rows), out_shardings=place)
      .lower(params, state, tokens, search)
      .compile()
    )
  size = compiled.memory_analysis()
  each = sum(x.size * 4 for x in jax.tree.leaves(params))
  # In: params, delta, mu and nu, an eighth or a quarter of each on a device.
  assert size.argument_size_in_bytes < 4 * each / 4 + 2048


def _temporaries(function, *args):
  compiled = jax.jit(function).lower(*args).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_that_of_a_gradient():
  # Logits are the largest array by far, as in a language model.
  vocabulary, width = 1024, 32
  params = _params(width, vocabulary)
  tokens = jnp.zeros((8, 64 + 1), jnp.int32)
  model = optim.chunked_lm_head(_body, "embed", 8, transpose=True)

  def plain(params):
    return LOSS(model(params, tokens), tokens)

  def inner(mode, model):
    return lambda params: optim.local_value_and_grad(
      model, LOSS, params, params, tokens, mode=mode
    )

  gradient = _temporaries(jax.grad(plain), params)
  for mode in ("quadratic", "prox_linear"):
    assert _temporaries(inner(mode, model), params) < 1.25 * gradient
  # And so far below it because of the chunks: without them it is above.
  whole = _temporaries(inner("quadratic", lambda p, b: model(p, b)), params)
  assert whole > 1.25 * gradient
