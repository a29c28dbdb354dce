"""Curvature from Kronecker factors: Monte Carlo, reductions, no feedback."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optim

INT4 = optim.Quantizer(optim.INT4)


def lotion_soap(learning_rate, quantizer, strength, *, mask=None, **options):
  """SOAP on the penalised loss, its curvature the factors of SOAP."""
  tx = optim.soap(learning_rate, **options)
  curvature = functools.partial(optim.factor_diagonal, decay=0.95)
  return optim.with_rounding_penalty(
    tx, quantizer, strength, curvature, mask=mask
  )


STACK = optim.DimensionNumbers(sides=(1, 2), stack=0)
FREQUENT = dict(precondition_frequency=2)


def _kronecker_gradients(count, seed=0):
  """G = A^(1/2) Z B^(1/2): E vec(G) vec(G)^T is a Kronecker product."""
  rng = np.random.default_rng(seed)
  roots = []
  for n in (4, 6):
    x = rng.normal(size=(n, n)) * (1.0 + np.arange(n)) ** -0.7
    roots.append(x)
  z = rng.normal(size=(count, 4, 6))
  left, right = (root @ root.T for root in roots)
  second = np.outer(np.diag(left), np.diag(right))
  return roots[0] @ z @ roots[1].T, second


def _state_after(tx, grads, params):
  def step(state, g):
    return tx.update(g, state, params)[1], None

  return jax.jit(lambda g: jax.lax.scan(step, tx.init(params), g)[0])(grads)


@pytest.mark.parametrize("make", [optim.soap, optim.shampoo])
def test_recovers_the_second_moment_of_kronecker_noise(make):
  draws = 4000
  grads, wanted = _kronecker_gradients(draws)
  beta = 1 - 2 / draws
  tx = make(1e-3, shampoo_beta=beta, precondition_frequency=1000)
  params = jnp.zeros((4, 6))
  state = _state_after(tx, jnp.asarray(grads, jnp.float32), params)
  actual = optim.factor_diagonal(state, params, decay=beta)
  # Averages over the columns: a relative error of a few per cent.
  np.testing.assert_allclose(actual, wanted, rtol=0.12)
  # Without the correction a share beta^t is missing.
  raw = optim.factor_diagonal(state, params)
  np.testing.assert_allclose(raw, actual * (1 - beta**draws), rtol=1e-4)


def _rank_one(shape, seed):
  rng = np.random.default_rng(seed)
  parts = [rng.uniform(0.3, 2, size=n) for n in shape]
  return parts, np.einsum(
    ",".join("abc"[: len(shape)]) + "->" + "abc"[: len(shape)], *parts
  )


@pytest.mark.parametrize("one_sided", [False, True])
def test_is_exact_for_one_gradient_of_rank_one(one_sided):
  parts, g = _rank_one((5, 3), 0)
  options = dict(one_sided=one_sided)
  tx = optim.scale_by_soap(first_step="identity", **options)
  params = jnp.zeros((5, 3))
  update = jax.jit(tx.update)
  _, state = update(jnp.asarray(g, jnp.float32), tx.init(params))
  actual = optim.factor_diagonal(state, params, decay=0.95, **options)
  wanted = g**2
  if one_sided:  # The shorter side keeps its sums, the other is flat.
    wanted = np.broadcast_to(np.mean(wanted, axis=0), (5, 3))
  np.testing.assert_allclose(actual, wanted, rtol=1e-5)


def test_tensors_blocks_stacks_and_lonely_leaves():
  params = dict(
    tensor=jnp.zeros((3, 4, 2)), blocked=jnp.zeros((6, 4)),
    layers=jnp.zeros((3, 4, 4)), gain=jnp.zeros(5),
  )  # fmt: skip
  options = dict(
    dimension_numbers=dict(
      tensor=optim.DimensionNumbers(sides=(0, 1, 2)),
      blocked=optim.DimensionNumbers(),
      layers=STACK,
      gain=None,
    ),
    block_size=4,
  )
  grads = dict(
    tensor=_rank_one((3, 4, 2), 0)[1],
    # Blocks of 3 x 4, each of rank one, though the whole is not.
    blocked=np.concatenate([_rank_one((3, 4), i)[1] for i in (1, 2)]),
    layers=np.stack([_rank_one((4, 4), i)[1] for i in (3, 4, 5)]),
    gain=np.ones(5),
  )
  tx = optim.scale_by_soap(first_step="identity", **options)
  grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads)

  @jax.jit
  def curvature(grads):
    _, state = tx.update(grads, tx.init(params))
    chained = (optax.EmptyState(), dict(inner=state))  # Found wherever it is.
    return optim.factor_diagonal(chained, params, decay=0.95, **options)

  actual = curvature(grads)
  assert actual.pop("gain") == optax.MaskedNode()
  for name, leaf in actual.items():
    np.testing.assert_allclose(leaf, grads[name] ** 2, rtol=1e-5)


def test_is_zero_before_the_first_update():
  params = jnp.zeros((3, 3))
  state = optim.soap(1e-3).init(params)
  diagonal = optim.factor_diagonal(state, params, decay=0.9)
  np.testing.assert_array_equal(diagonal, 0)


def test_soap_keeps_no_second_copy():
  params = dict(w=jnp.ones((8, 4)), gain=jnp.ones(4))
  plain = jax.eval_shape(optim.soap(1e-3).init, params)
  tx = lotion_soap(1e-3, INT4, 1.0)
  penalized = jax.eval_shape(tx.init, params)
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
  # A count, and the average of the leaf that has no factor.
  assert count(penalized) - count(plain) == 1 + 4
  masked = lotion_soap(1e-3, INT4, 1.0, mask=dict(w=True, gain=False))
  assert count(jax.eval_shape(masked.init, params)) - count(plain) == 1


def _grads(seed):
  rng = np.random.default_rng(seed)
  shapes = dict(w=(4, 4), gain=(4,))
  return {
    k: jnp.asarray(rng.normal(size=v), jnp.float32) for k, v in shapes.items()
  }


def test_soap_sees_the_penalised_gradient_and_its_factors_the_task():
  params, strength = _grads(0), 3.0
  options = dict(weight_decay=0.0, **FREQUENT)
  tx = lotion_soap(1e-2, INT4, strength, **options)
  plain = optim.soap(1e-2, **options)
  state, reference = tx.init(params), plain.init(params)
  update, update_plain = jax.jit(tx.update), jax.jit(plain.update)
  diagonal_of = jax.jit(optim.factor_diagonal, static_argnames="decay")
  force_of = jax.jit(jax.grad(optim.rounding_penalty), static_argnums=2)
  average = jnp.zeros(4)
  for step in range(5):
    grads = _grads(1 + step)
    diagonal = diagonal_of(reference, params, decay=0.95)
    average = 0.99 * average + 0.01 * grads["gain"] ** 2
    curvature = dict(w=diagonal["w"], gain=average / (1 - 0.99 ** (step + 1)))
    force = force_of(params, curvature, INT4)
    penalized = jax.tree.map(lambda g, f: g + strength * f, grads, force)
    wanted, reference = update_plain(
      penalized, reference, params, statistics=grads
    )
    updates, state = update(grads, state, params)
    for name in params:
      np.testing.assert_allclose(
        updates[name], wanted[name], rtol=1e-3, atol=1e-6
      )
    params = optax.apply_updates(params, updates)
  # The factors are those of the task's gradients alone.
  factors = state.inner[0].kronecker["4x4_01"].factors
  left = sum(
    0.05 * 0.95 ** (4 - i) * _grads(1 + i)["w"] @ _grads(1 + i)["w"].T
    for i in range(5)
  )
  np.testing.assert_allclose(factors[0][0], left, rtol=1e-4, atol=1e-5)


def test_shampoo_composes_and_takes_statistics():
  params, grads = _grads(0), _grads(1)
  options = dict(b2=0.9)
  tx = optim.with_rounding_penalty(
    optim.shampoo(1e-2, **options),
    INT4,
    1.0,
    lambda state, params: optim.factor_diagonal(state, params, decay=0.9),
  )
  state = tx.init(params)
  for _ in range(2):
    updates, state = jax.jit(tx.update)(grads, state, params)
  left = grads["w"] @ grads["w"].T * (1 - 0.9**2)
  factors = state.inner[0].kronecker["4x4_01"].factors
  np.testing.assert_allclose(factors[0][0], left, rtol=1e-4, atol=1e-5)
  assert all(np.all(np.isfinite(u)) for u in updates.values())


def test_adams_second_moment_can_serve_as_well():
  # A curvature function of any optimiser; leaves it leaves out average.
  def second_moment(state, params):
    del params
    return dict(w=state[0].nu["w"], gain=optax.MaskedNode())

  params = _grads(0)
  tx = optim.with_rounding_penalty(optax.adam(1e-2), INT4, 1.0, second_moment)
  state = tx.init(params)
  assert [x.shape for x in jax.tree.leaves(state.penalty)] == [(), (4,)]
  updates, _ = tx.update(_grads(1), state, params)
  assert np.all(np.isfinite(updates["w"]))


@pytest.mark.parametrize(
  ("state", "options", "message"),
  [
    (optax.adam(1e-3), {}, "0 states of SOAP or Shampoo"),
    (
      optim.soap(1e-3),
      dict(one_sided=True),
      "'4x4_1'.*'4x4_01'.*as to the optimiser",
    ),
  ],
)
def test_bad_states(state, options, message):
  params = _grads(0)
  with pytest.raises(ValueError, match=message):
    optim.factor_diagonal(state.init(params), params, **options)
